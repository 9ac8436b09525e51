//! Keys of `[service.health]` that say when outcomes make a verdict, beside the plain thresholds.

use std::time::Duration;

use super::duration::format;
use super::reader::{At, Errors, Problem, Reader, Value};
use super::schema::Key;
use super::suggest::nearest;
use super::value;
use crate::model::{Assume, Class, HoldDown, Window};

/// What the tables say, value by value.
#[derive(Debug)]
pub struct Settings {
    unhealthy_window: Option<At<Window>>,
    immediate_on: Option<At<Vec<Class>>>,
    hold_down: Option<At<Duration>>,
    hold_down_max: Option<At<Duration>>,
    degraded_weight: Option<At<u8>>,
    always_log_failures: Option<At<bool>>,
    assume: Option<At<Assume>>,
}

/// What they mean together.
pub struct Rules {
    pub unhealthy_window: Option<Window>,
    pub immediate_on: Vec<Class>,
    pub hold_down: Option<HoldDown>,
    pub degraded_weight: u8,
    pub always_log_failures: bool,
    pub assume: Assume,
}

pub fn read(reader: &Reader<'_>, errors: &mut Errors<'_>) -> Settings {
    Settings {
        unhealthy_window: reader.get(errors, "unhealthy_window", window),
        immediate_on: reader.get(errors, "immediate_on", classes),
        hold_down: reader.get(errors, "hold_down", value::duration),
        hold_down_max: reader.get(errors, "hold_down_max", value::positive_duration),
        degraded_weight: reader.get(errors, "degraded_weight", value::integer),
        always_log_failures: reader.get(errors, "always_log_failures", value::boolean),
        assume: reader.get(errors, "assume", assume),
    }
}

/// Puts them together; `None` only if there are errors.
pub fn rules(settings: &Settings, reader: &Reader<'_>, errors: &mut Errors<'_>) -> Option<Rules> {
    let base = settings.hold_down.as_ref()?;
    let most = settings.hold_down_max.as_ref()?;
    if base.value > most.value {
        let span = if reader.own("hold_down").is_some() {
            &base.span
        } else {
            &most.span
        };
        errors.add(
            span.clone(),
            format!(
                "`hold_down` ({}) is more than `hold_down_max` ({})",
                format(base.value),
                format(most.value)
            ),
            format!(
                "lower it, or write hold_down_max = \"{}\"",
                format(base.value.saturating_mul(10))
            ),
        );
        return None;
    }
    Some(Rules {
        unhealthy_window: settings.unhealthy_window.as_ref().map(|at| at.value),
        immediate_on: settings.immediate_on.as_ref()?.value.clone(),
        hold_down: (!base.value.is_zero()).then_some(HoldDown {
            base: base.value,
            most: most.value,
        }),
        degraded_weight: settings.degraded_weight.as_ref()?.value,
        always_log_failures: settings.always_log_failures.as_ref()?.value,
        assume: settings.assume.as_ref()?.value,
    })
}

fn assume(key: &Key, value: &Value<'_>) -> Result<Assume, Problem> {
    Ok(match value::choice(key, value)? {
        "down" => Assume::Down,
        "up" => Assume::Up,
        _ => Assume::Restore,
    })
}

/// `"3/5"`.
fn window(key: &Key, value: &Value<'_>) -> Result<Window, Problem> {
    let text = value::text(key, value)?;
    let numbers = text.split_once('/').and_then(|(failures, outcomes)| {
        Some(Window {
            failures: failures.trim().parse().ok()?,
            outcomes: outcomes.trim().parse().ok()?,
        })
    });
    let help = format!(
        "write {} = \"3/5\" for 3 failures in the last 5 probes; the second number is {} at the most",
        key.name,
        Window::LONGEST
    );
    match numbers {
        None => Err(Problem::new(
            format!(
                "`{}` is {}, which is not two numbers with a slash",
                key.name,
                value::shown(&text)
            ),
            help,
        )),
        Some(Window { failures, outcomes })
            if failures == 0 || failures > outcomes || outcomes > Window::LONGEST =>
        {
            Err(Problem::new(
                format!(
                    "`{}` asks for {failures} failures in the last {outcomes} probes",
                    key.name
                ),
                help,
            ))
        }
        Some(window) => Ok(window),
    }
}

/// Names of classes of failure.
fn classes(key: &Key, value: &Value<'_>) -> Result<Vec<Class>, Problem> {
    let mut classes = value::texts(key, value)?
        .into_iter()
        .map(|name| class(&name.value).map_err(|problem| problem.at(name.span)))
        .collect::<Result<Vec<_>, _>>()?;
    classes.sort_unstable();
    classes.dedup();
    Ok(classes)
}

fn class(name: &str) -> Result<Class, Problem> {
    let names = Class::FAILURES.map(Class::name);
    let found = Class::FAILURES.iter().find(|class| class.name() == name);
    found.copied().ok_or_else(|| {
        let help = match nearest(name, &names) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!("known are {}", names.join(", ")),
        };
        Problem::new(
            format!("{} is no class of failure", value::shown(name)),
            help,
        )
    })
}
