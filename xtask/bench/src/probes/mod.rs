//! What probes cost: processor time of `lb run` and of HAProxy for the same checks of the same
//! responder, and how `lb` keeps up with ten thousand backends on one core.

mod meter;
mod probers;
mod responder;

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lb_tests::process::Process;
use lb_tests::wait::pause;
use lb_tests::{Agent, Lab, interrupt, skip};

use lb_userspace::api::lateness::Lateness;

use crate::page;
use crate::stats::Spread;
use probers::{Check, Pace};
use responder::Responder;

/// A small part of what a core can do, so that both probers keep the pace.
const PLAIN: Pace = Pace {
    backends: 1_000,
    interval: Duration::from_millis(500),
    timeout: Duration::from_millis(400),
};
/// The same with full handshakes.
const TLS: Pace = Pace {
    backends: 400,
    interval: Duration::from_secs(2),
    timeout: Duration::from_millis(1_800),
};
/// The scale test.
const SCALE: Pace = Pace {
    backends: 10_000,
    interval: Duration::from_secs(1),
    timeout: Duration::from_millis(900),
};
/// What memory is compared with.
const FEW: Pace = Pace {
    backends: 10,
    ..SCALE
};
/// A prober that keeps less than this share of the pace was not measured, whatever was. A bit less
/// than all of it is the host's want of CPU, and shows in the table.
const LEAST_RATE: f64 = 0.25;
/// Time for the first round to be over, and for what is only done once.
const WARM: Duration = Duration::from_secs(3);

/// Who is measured doing what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    LbPlain,
    HaproxyPlain,
    LbKept,
    LbTls,
    HaproxyTlsResumed,
    HaproxyTls,
}

impl Row {
    const ALL: [Self; 6] = [
        Self::LbPlain,
        Self::HaproxyPlain,
        Self::LbKept,
        Self::LbTls,
        Self::HaproxyTlsResumed,
        Self::HaproxyTls,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::LbPlain => "lb, plain HTTP",
            Self::HaproxyPlain => "HAProxy, plain HTTP",
            Self::LbKept => "lb, kept connections (reuse)",
            Self::LbTls => "lb, HTTPS",
            Self::HaproxyTlsResumed => "HAProxy, HTTPS",
            Self::HaproxyTls => "HAProxy, HTTPS, no-ssl-reuse",
        }
    }

    const fn pace(self) -> Pace {
        match self {
            Self::LbPlain | Self::HaproxyPlain | Self::LbKept => PLAIN,
            Self::LbTls | Self::HaproxyTlsResumed | Self::HaproxyTls => TLS,
        }
    }

    /// Starts it, does `work` with its process, and ends it.
    fn with<T>(self, lab: &Lab, work: impl FnOnce(u32) -> Result<T>) -> Result<T> {
        let by_lb = |check, work: Work<'_, T>| {
            let agent = probers::lb(lab, check, self.pace())?;
            let process = agent.process_id().context("lb does not run")?;
            let result = work(process);
            probers::end_lb(agent)?;
            result
        };
        let by_haproxy = |check, resume, work: Work<'_, T>| {
            let mut process: Process = probers::haproxy(lab, check, resume, self.pace())?;
            let result = work(process.id());
            ensure!(process.ended()?.is_none(), "HAProxy ended");
            process.kill()?;
            result
        };
        let work: Work<'_, T> = Box::new(work);
        match self {
            Self::LbPlain => by_lb(Check::Plain, work),
            Self::LbKept => by_lb(Check::Kept, work),
            Self::LbTls => by_lb(Check::Tls, work),
            Self::HaproxyPlain => by_haproxy(Check::Plain, false, work),
            Self::HaproxyTlsResumed => by_haproxy(Check::Tls, true, work),
            Self::HaproxyTls => by_haproxy(Check::Tls, false, work),
        }
    }
}

type Work<'a, T> = Box<dyn FnOnce(u32) -> Result<T> + 'a>;

/// One measurement.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Processor time of the process for 1,000 checks, milliseconds.
    cpu: f64,
    /// Checks in a second.
    rate: f64,
    /// Connections for each check.
    connections: f64,
    /// Share of the TLS handshakes that resumed a session, percent; of none without TLS.
    resumed: Option<f64>,
}

/// What the run with ten thousand backends is called by those who want it alone.
const SCALE_NAME: &str = "10000 backends";

/// Measures and prints; writes the result into the page `write`, too, if one is given. Of the rows
/// only those whose names contain `only`.
pub fn run(quick: bool, only: Option<&str>, write: Option<&Path>) -> Result<()> {
    let wanted = |name: &str| only.is_none_or(|part| name.contains(part));
    let known = Row::ALL.iter().map(|row| row.label());
    ensure!(
        known.chain([SCALE_NAME]).any(wanted),
        "no measurement of probes has {:?} in its name",
        only.unwrap_or_default()
    );
    if let Some(reason) = skip::reason() {
        bail!("probes cannot be measured: {reason}");
    }
    interrupt::watch()?;
    let (rounds, time) = match quick {
        true => (1, Duration::from_secs(5)),
        false => (3, Duration::from_secs(15)),
    };
    let lab = Lab::new(1)?;
    lab.lb.namespace.ip(
        "link add traffic type veth peer name unused\nlink set traffic up\nlink set unused up",
    )?;
    let responder = Responder::start(&lab)?;
    let mut costs = Row::ALL.map(|_| Vec::new());
    for _ in 0..rounds {
        let rows = Row::ALL.iter().zip(&mut costs);
        for (row, costs) in rows.filter(|(row, _)| wanted(row.label())) {
            let cost = row
                .with(&lab, |process| {
                    cost(&lab, &responder, process, row.pace(), time)
                })
                .with_context(|| format!("measuring {}", row.label()))?;
            eprintln!(
                "{}: {:.1} ms for 1,000 of {:.0} checks/s, resumed {:?} %",
                row.label(),
                cost.cpu,
                cost.rate,
                cost.resumed
            );
            costs.push(cost);
        }
    }
    let mut text = format!(
        "Processor time of the process, user and kernel, for 1,000 checks; the median, least and\n\
         greatest of {rounds} rounds of {} s. {} backends every {} ms, with TLS {} every {} ms.\n\n",
        time.as_secs(),
        PLAIN.backends,
        PLAIN.interval.as_millis(),
        TLS.backends,
        TLS.interval.as_millis(),
    );
    table(&mut text, &costs);
    goals(&mut text, &costs);
    let scaled = match wanted(SCALE_NAME) {
        true => scale(&mut text, &lab, time),
        false => Ok(()),
    };
    if scaled.is_err() {
        let _ = writeln!(text, "\n{} backends: not measured.", SCALE.backends);
    }
    println!("\n{text}");
    if let Some(path) = write {
        page::replace(path, "probes", &format!("```text\n{text}```\n"))?;
    }
    scaled
}

/// Keeps a process and all its threads on one core, and the responder on another, where there are
/// several.
fn pin(lab: &Lab, process: u32, core: &str) -> Result<()> {
    let process = process.to_string();
    let words = ["-a", "-c", "-p", core, &process];
    lab.lb.namespace.run("taskset", &words).map(drop)
}

fn cost(
    lab: &Lab,
    responder: &Responder<'_>,
    process: u32,
    pace: Pace,
    time: Duration,
) -> Result<Cost> {
    pin(lab, process, "0")?;
    pause(WARM)?;
    let (asked, cpu) = (responder.asked()?, meter::cpu(process)?);
    let start = Instant::now();
    pause(time)?;
    let used = meter::cpu(process)? - cpu;
    let elapsed = start.elapsed().as_secs_f64();
    let asked = responder.asked()?.since(asked);
    let (requests, handshakes) = (asked.requests as f64, (asked.resumed + asked.full) as f64);
    let rate = requests / elapsed;
    let wanted = f64::from(pace.backends) / pace.interval.as_secs_f64();
    ensure!(
        rate > LEAST_RATE * wanted,
        "only {rate:.0} checks a second were made, of {wanted:.0}"
    );
    Ok(Cost {
        cpu: used * 1e6 / requests,
        rate,
        connections: asked.connections as f64 / requests,
        resumed: (handshakes > 0.0).then(|| asked.resumed as f64 * 100.0 / handshakes),
    })
}

fn table(text: &mut String, costs: &[Vec<Cost>]) {
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{:<32}{:>10}{:>16}{:>12}{:>14}{:>10}",
        "", "CPU ms", "range", "checks/s", "connections", "resumed"
    );
    for (row, costs) in Row::ALL.iter().zip(costs) {
        let Some(cpu) = spread(costs) else { continue };
        let (Some(last), range) = (
            costs.last(),
            format!("{:.1}–{:.1}", cpu.least, cpu.greatest),
        ) else {
            continue;
        };
        let resumed = last.resumed.map(|share| format!("{share:.0} %"));
        let _ = writeln!(
            text,
            "{:<32}{:>10.1}{range:>16}{:>12.0}{:>14.2}{:>10}",
            row.label(),
            cpu.median,
            last.rate,
            last.connections,
            resumed.unwrap_or_else(|| "-".to_owned())
        );
    }
}

fn spread(costs: &[Cost]) -> Option<Spread> {
    Spread::of(&costs.iter().map(|cost| cost.cpu).collect::<Vec<_>>())
}

/// The measurements beside what they should be.
fn goals(text: &mut String, costs: &[Vec<Cost>]) {
    let median = |row: Row| {
        let place = Row::ALL.iter().position(|each| *each == row)?;
        Some(spread(costs.get(place)?)?.median)
    };
    text.push('\n');
    for (row, than, factor) in [
        (Row::LbPlain, Row::HaproxyPlain, 1.0),
        (Row::LbKept, Row::HaproxyPlain, 0.5),
        (Row::LbTls, Row::HaproxyTls, 0.25),
    ] {
        let (Some(own), Some(other)) = (median(row), median(than)) else {
            continue;
        };
        let _ = writeln!(
            text,
            "{:<32}{:>6.2} × {:<32}goal at most {factor:<6}{}",
            row.label(),
            own / other,
            than.label(),
            word(own <= factor * other)
        );
    }
}

const fn word(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

/// Ten thousand backends, and `lb` on one core.
fn scale(text: &mut String, lab: &Lab, time: Duration) -> Result<()> {
    let few = probers::lb(lab, Check::Plain, FEW)?;
    pause(WARM)?;
    let base = meter::memory(few.process_id().context("lb does not run")?)?;
    probers::end_lb(few)?;

    let mut agent = probers::lb_at_rest(lab, Check::Plain, SCALE)?;
    let process = agent.process_id().context("lb does not run")?;
    pin(lab, process, "0")?;
    pause(WARM)?;
    let (before, cpu, start) = (Prober::of(&agent)?, meter::cpu(process)?, Instant::now());
    pause(2 * time)?;
    let (after, cpu) = (Prober::of(&agent)?, meter::cpu(process)? - cpu);
    let elapsed = start.elapsed().as_secs_f64();
    let memory = meter::memory(process)? - base;
    let false_verdicts = false_verdicts(&mut agent)?;
    probers::end_lb(agent)?;

    let late = after.late(&before, 0.99)?;
    let probes = after.probes - before.probes;
    let each = memory / f64::from(SCALE.backends - FEW.backends) / 1024.0;
    let _ = writeln!(
        text,
        "\n{} backends every {} s, lb on one core, {:.0} s:\n",
        SCALE.backends,
        SCALE.interval.as_secs(),
        elapsed
    );
    for (what, value, goal) in [
        ("checks/s", format!("{:.0}", probes / elapsed), None),
        (
            "share of the core",
            format!("{:.0} %", cpu * 100.0 / elapsed),
            None,
        ),
        (
            "left out for lateness",
            format!("{:.0}", after.skipped - before.skipped),
            None,
        ),
        (
            "false verdicts",
            false_verdicts.to_string(),
            Some(("none", false_verdicts == 0)),
        ),
        (
            "start lateness, 99th percentile",
            format!("{:.0} ms or less", late * 1e3),
            Some(("under 50 ms", late <= 0.05)),
        ),
        (
            "memory for each backend",
            format!("{each:.1} KiB"),
            Some(("under 8 KiB", each < 8.0)),
        ),
    ] {
        let goal = goal.map(|(goal, met)| format!("goal {goal:<14}{}", word(met)));
        let line = format!("{what:<34}{value:>16}   {}", goal.unwrap_or_default());
        let _ = writeln!(text, "{}", line.trim_end());
    }
    Ok(())
}

/// Backends that are not healthy, and changes of verdicts that were not the first.
fn false_verdicts(agent: &mut Agent<'_>) -> Result<usize> {
    let status = agent.status()?;
    let backends = status.services.iter().flat_map(|service| &service.backends);
    let unhealthy = backends
        .filter(|backend| backend.health != "healthy")
        .count();
    let events = agent.events()?;
    let ejections = events.iter().filter(|event| event["kind"] == "ejected");
    Ok(unhealthy + ejections.count())
}

/// What `lb` says of its prober.
struct Prober {
    probes: f64,
    skipped: f64,
    lateness: Lateness,
}

impl Prober {
    fn of(agent: &Agent<'_>) -> Result<Self> {
        let prober = agent.raw_status()?["node"]["prober"].take();
        let prober: lb_userspace::api::status::Prober =
            serde_json::from_value(prober).context("the status has no node.prober")?;
        Ok(Self {
            probes: (prober.success + prober.failure + prober.internal) as f64,
            skipped: prober.skipped as f64,
            lateness: prober.lateness,
        })
    }

    /// By how much this share of the probes since `before` were late at most, seconds.
    fn late(&self, before: &Self, share: f64) -> Result<f64> {
        let late = self.lateness.since(&before.lateness);
        late.quantile(share).with_context(|| {
            let greatest = Lateness::BOUNDS.last().copied().unwrap_or_default();
            format!("probes started more than {greatest} s late")
        })
    }
}
