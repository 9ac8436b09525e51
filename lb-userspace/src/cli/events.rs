//! `lb events` for people: a line each.

use super::output::{Palette, tame};
use crate::api::event::{Event, Evidence, Kind, Origin, Via};

/// One event, one line.
pub fn render(event: &Event, palette: Palette) -> String {
    let change = &event.change;
    let about = match (&change.service, &change.backend) {
        (Some(service), Some(backend)) => format!("{service}/{backend}"),
        (Some(service), None) => service.clone(),
        (None, _) => "node".to_owned(),
    };
    let mut line = format!(
        "{:<24}  {}  {}",
        event.at.to_string(),
        paint(palette, change.kind),
        palette.strong(&tame(&about)),
    );
    if let (Some(from), Some(to)) = (&change.from, &change.to) {
        line.push_str(&format!("  {} -> {}", tame(from), tame(to)));
    }
    line.push_str("  ");
    line.push_str(&tame(&one_line(&change.reason)));
    if let Some(evidence) = evidence(&change.evidence) {
        line.push_str(&format!(" ({evidence})"));
    }
    line.push_str(&palette.faint(&format!("  by {}", origin(&change.origin))));
    line.push('\n');
    line
}

/// Errors of the configuration have several lines: what they say, without the lines of the file that
/// they quote.
fn one_line(text: &str) -> String {
    let quoted = |line: &str| {
        let line = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        line.starts_with('|')
    };
    let said = text.lines().filter(|line| !quoted(line)).map(str::trim);
    said.filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

fn paint(palette: Palette, kind: Kind) -> String {
    // As wide as the longest name in common use; a longer one shifts its own line only.
    let name = format!("{:<13}", kind.name());
    match kind {
        Kind::Ejected
        | Kind::PanicEntered
        | Kind::Panicked
        | Kind::EjectionRefused
        | Kind::ReloadRefused
        | Kind::FenceFailed
        | Kind::Withdrawn
        | Kind::CommandFailed
        | Kind::Detached => palette.bad(&name),
        Kind::Readmitted | Kind::PanicLeft | Kind::Promoted | Kind::Announced | Kind::Attached => {
            palette.good(&name)
        }
        Kind::Draining
        | Kind::Drained
        | Kind::Fencing
        | Kind::ProbeFailed
        | Kind::Stopping
        | Kind::Admin
        | Kind::Tier
        | Kind::Suspected
        | Kind::Datapath
        | Kind::Name
        | Kind::Prober
        | Kind::Weight => palette.soft(&name),
        Kind::Started
        | Kind::Stopped
        | Kind::Added
        | Kind::Removed
        | Kind::FirstVerdict
        | Kind::Reload
        | Kind::Neighbor => name,
    }
}

fn evidence(evidence: &Evidence) -> Option<String> {
    // Taken apart whole, so that a new field is not forgotten here.
    let Evidence {
        probe_class,
        probe_detail,
        latency_ms,
        took_ms,
        budget_ms,
        slots_moved,
        flows,
        healthy_percent,
        serving_percent,
    } = evidence;
    let mut parts = Vec::new();
    match (probe_class, probe_detail) {
        (Some(class), Some(detail)) => parts.push(format!("{}: {}", tame(class), tame(detail))),
        (Some(text), None) | (None, Some(text)) => parts.push(tame(text)),
        (None, None) => {}
    }
    if let Some(latency) = latency_ms {
        parts.push(format!("probe {latency:.1} ms"));
    }
    match (took_ms, budget_ms) {
        (Some(took), Some(budget)) => {
            parts.push(format!("took {took:.0} ms of at most {budget:.0} ms"));
        }
        (Some(took), None) => parts.push(format!("took {took:.0} ms")),
        (None, Some(budget)) => parts.push(format!("may take {budget:.0} ms")),
        (None, None) => {}
    }
    if let Some(slots) = slots_moved {
        parts.push(format!("{slots} slots moved"));
    }
    if let Some(flows) = flows {
        parts.push(format!("{flows} flows"));
    }
    if let Some(percent) = healthy_percent {
        parts.push(format!("{percent:.1} % healthy"));
    }
    if let Some(percent) = serving_percent {
        parts.push(format!("{percent:.1} % can serve"));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Probe => "probe".to_owned(),
        Origin::Traffic => "traffic".to_owned(),
        Origin::Config => "config".to_owned(),
        Origin::Agent => "agent".to_owned(),
        Origin::Operator {
            uid,
            pid,
            command,
            via,
        } => {
            let pid = pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
            match via {
                None => format!("`lb {}` (uid {uid}{pid})", tame(command)),
                Some(Via::HaproxySocket) => {
                    format!("{} on the HAProxy socket (uid {uid}{pid})", tame(command))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::event::Change;
    use crate::model::BackendKey;

    #[test]
    fn an_ejection_tells_its_evidence() {
        let key = BackendKey::new("web", "web-2");
        let change = Change::backend(Kind::Ejected, &key, Origin::Probe, "3 failures in a row")
            .states("active", "out")
            .on(Evidence {
                probe_class: Some("refused".into()),
                probe_detail: Some("connection refused".into()),
                latency_ms: Some(0.21),
                took_ms: Some(10_040.0),
                budget_ms: Some(17_000.0),
                slots_moved: Some(21846),
                ..Evidence::default()
            });
        let event = Event {
            id: 1,
            at: "2026-01-01T00:00:00.123Z".parse().unwrap(),
            change,
        };
        assert_eq!(
            render(&event, Palette::PLAIN),
            "2026-01-01T00:00:00.123Z  ejected        web/web-2  active -> out  \
             3 failures in a row (refused: connection refused, probe 0.2 ms, took 10040 ms of at \
             most 17000 ms, 21846 slots moved)  by probe\n"
        );
    }

    #[test]
    fn an_error_of_several_lines_is_told_in_one() {
        let why = crate::config::parse("[node]\ninterfaces = 7\n", "lb.toml").unwrap_err();
        let why = why.to_string();
        assert!(why.lines().count() > 3, "{why}");
        let event = Event {
            id: 3,
            at: "2026-01-01T00:00:00Z".parse().unwrap(),
            change: Change::node(Kind::ReloadRefused, Origin::Agent, why),
        };
        let line = render(&event, Palette::PLAIN);
        assert!(!line.contains('\u{fffd}') && !line.contains('|'), "{line}");
        assert!(line.contains(" --> lb.toml:2:14 = help: "), "{line}");
        // A bar that nobody quotes stays.
        assert_eq!(one_line("a | b\n  c"), "a | b c");
    }

    #[test]
    fn an_operator_is_named() {
        let origin = Origin::Operator {
            uid: 1000,
            pid: Some(42),
            command: "drain".into(),
            via: None,
        };
        let event = Event {
            id: 2,
            at: "2026-01-01T00:00:00Z".parse().unwrap(),
            change: Change::node(Kind::Admin, origin, "x"),
        };
        let line = render(&event, Palette::PLAIN);
        assert!(
            line.ends_with("by `lb drain` (uid 1000, pid 42)\n"),
            "{line}"
        );
    }
}
