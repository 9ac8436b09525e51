//! What each axis says of a backend, and its last probes: for `lb status SERVICE`.

use jiff::Timestamp;

use super::{seconds, span, tame};
use crate::api::detail::AxisStatus;
use crate::api::status::{BackendStatus, CheckStatus, LastProbe};
use crate::cli::output::Palette;

/// Nothing for a backend without details.
pub(super) fn render(
    lines: &mut Vec<String>,
    backend: &BackendStatus,
    now: Timestamp,
    palette: Palette,
) {
    if backend.axes.is_empty() {
        return;
    }
    lines.push(format!("  {}", palette.strong(&tame(&backend.name))));
    lines.extend(backend.axes.iter().map(|axis| said(axis, now)));
    for check in &backend.checks {
        lines.push(palette.faint(&asked(check, now)));
    }
}

/// `    probes    unhealthy for 10s (refused): 3 consecutive failures: connection refused`.
fn said(axis: &AxisStatus, now: Timestamp) -> String {
    let mut text = format!("    {:<9} {}", axis.axis.name(), tame(&axis.state));
    if let Some(since) = axis.since {
        text += &format!(" for {}", span(seconds(since, now)));
    }
    if let Some(until) = axis.until {
        text += &format!(", {} more", span(seconds(now, until)));
    }
    if !axis.code.is_empty() {
        text += &format!(" ({})", tame(&axis.code));
    }
    if !axis.reason.is_empty() {
        text += &format!(": {}", tame(&axis.reason));
    }
    text
}

/// `      http: connection refused in 0.2 ms, 1s ago; HTTP 200 in 1.2 ms, 6s ago`.
fn asked(check: &CheckStatus, now: Timestamp) -> String {
    let one = |probe: &LastProbe| {
        format!(
            "{} in {:.1} ms, {} ago",
            tame(&probe.detail),
            probe.latency_ms,
            span(seconds(probe.at, now))
        )
    };
    let probes: Vec<String> = check.history.iter().map(one).collect();
    let probes = match probes.as_slice() {
        [] => "none yet".to_owned(),
        probes => probes.join("; "),
    };
    let certificate = match check.certificate_not_after {
        Some(end) => format!(" (certificate until {end})"),
        None => String::new(),
    };
    format!("      {}{certificate}: {probes}", tame(&check.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::detail::Axis;
    use crate::api::status::Health;
    use crate::api::status::tests::sample;

    #[test]
    fn each_axis_and_each_probe_has_a_line() {
        let status = sample();
        let now = status.node.at;
        let mut backend = status.services[0].backends[1].clone();
        let shown = |backend: &BackendStatus| {
            let mut lines = Vec::new();
            render(&mut lines, backend, now, Palette::PLAIN);
            lines
        };
        assert!(shown(&backend).is_empty());
        let axis = |axis, state: &str| AxisStatus {
            axis,
            state: state.into(),
            since: None,
            code: String::new(),
            reason: String::new(),
            until: None,
        };
        backend.axes = vec![
            axis(Axis::Operator, "enabled"),
            AxisStatus {
                since: Some(backend.since),
                code: "refused".into(),
                reason: backend.reason.clone(),
                until: Some(now + std::time::Duration::from_secs(20)),
                ..axis(Axis::Probes, "unhealthy")
            },
        ];
        let last = backend.last_probe.clone().unwrap();
        let check = CheckStatus {
            name: "http".into(),
            health: Health::Unhealthy,
            since: backend.since,
            reason: backend.reason.clone(),
            last_probe: Some(last.clone()),
            next_probe: None,
            certificate_not_after: Some("2026-01-09T00:01:40Z".parse().unwrap()),
            history: vec![last.clone(), last],
        };
        let silent = CheckStatus {
            name: "db".into(),
            certificate_not_after: None,
            history: Vec::new(),
            ..check.clone()
        };
        backend.checks = vec![check, silent];
        assert_eq!(
            shown(&backend),
            [
                "  web-2",
                "    operator  enabled",
                "    probes    unhealthy for 10s, 20s more (refused): 3 consecutive failures: \
                 connection refused",
                "      http (certificate until 2026-01-09T00:01:40Z): connection refused in 0.2 ms, 1s ago; connection refused in 0.2 ms, 1s \
                 ago",
                "      db: none yet",
            ]
        );
    }
}
