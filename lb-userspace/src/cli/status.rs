//! `lb status` for people: what matters at night first, aligned, with the reason beside it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lb_common::verdict::Verdict;

use super::columns::{Columns, STALE, last_probe, not_followed, old, seconds};
use super::output::{Palette, span, tame};
use crate::api::status::{
    Admin, BackendStatus, Health, Mode, Node, PrimaryState, PrimaryStatus, Routing, ServiceStatus,
    Status,
};

mod certificates;
mod detail;

/// The status as seen at `now`.
pub fn render(status: &Status, now: Timestamp, palette: Palette) -> String {
    let mut lines = Vec::new();
    node(&mut lines, &status.node, now, palette);
    for text in certificates::warnings(status, now) {
        lines.push(palette.shout(&format!("!! {text}")));
    }
    if status.services.is_empty() {
        lines.push(String::new());
        lines.push("no services are configured".to_owned());
    }
    for service in &status.services {
        lines.push(String::new());
        render_service(&mut lines, service, now, palette);
    }
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

fn node(lines: &mut Vec<String>, node: &Node, now: Timestamp, palette: Palette) {
    let state = match node {
        node if node.ready() => palette.good("ready"),
        node if node.draining => palette.soft("shutting down"),
        node if !node.attached => palette.bad("not attached"),
        node if !node.first_round_done => palette.soft("starting: first probes are under way"),
        _ => palette.bad("not ready"),
    };
    let interfaces: Vec<String> = node
        .interfaces
        .iter()
        .map(|interface| format!("{} ({})", tame(&interface.name), interface.mode.name()))
        .collect();
    let interfaces = if interfaces.is_empty() {
        "no interfaces".to_owned()
    } else {
        interfaces.join(", ")
    };
    lines.push(format!(
        "lb {}  {state}  up {}  on {interfaces}  flows {}/{}  pid {}",
        tame(&node.version),
        span(node.uptime_seconds),
        node.flows.used,
        node.flows.capacity,
        node.pid,
    ));
    if !node.config.is_empty() {
        lines.push(format!("config {}", tame(&node.config)));
    }
    let mut warn = |text: String| lines.push(palette.shout(&format!("!! {text}")));
    old(node, now).map(&mut warn);
    let off = node.interfaces.iter().filter(|on| on.mode == Mode::Off);
    for interface in off {
        warn(format!(
            "not attached to {}, so no packet is balanced there: it is gone, or `lb events` says why",
            tame(&interface.name)
        ));
    }
    for interface in &node.interfaces {
        if let Some(why) = &interface.down {
            warn(format!(
                "{}: {}, so no packet passes there",
                tame(&interface.name),
                tame(why)
            ));
        }
    }
    not_followed(node).map(&mut warn);
    if node.verdict_age_seconds > STALE {
        warn(format!(
            "packets go by verdicts that are {} old",
            span(node.verdict_age_seconds)
        ));
    }
    if node.prober.overloaded {
        warn(format!(
            "the prober is overloaded (the last probe of {} backends was late or lacked CPU, \
             descriptors, ports or memory): timeouts eject nobody until that has passed",
            node.prober.short
        ));
    }
    if let Some(error) = &node.reload_error {
        // The first of what may be many lines; another `lb reload` has them all.
        let first = error.lines().next().unwrap_or_default();
        let first = first.strip_prefix("error: ").unwrap_or(first);
        warn(format!(
            "the last reload was refused, the old configuration runs on: {} (`lb reload` says where)",
            tame(first)
        ));
    }
    if let Some(error) = &node.announce_error {
        warn(format!("announcing VIPs: {}", tame(error)));
    }
    if let Some(error) = &node.state_error {
        warn(format!(
            "what was said and decided lately would not outlive the agent: {}",
            tame(error)
        ));
    }
    for name in &node.names {
        if let Some(error) = &name.error {
            warn(format!(
                "{} cannot be resolved: {}; {} known addresses stay",
                tame(&name.name),
                tame(error),
                name.addresses.len()
            ));
        }
    }
    if node.capturing {
        let text = "packets are being captured (`lb events` tells for whom)";
        lines.push(palette.soft(text));
    }
    if let Some(text) = counters(&node.verdicts) {
        lines.push(palette.faint(&format!("dropped, of no service: {text}")));
    }
}

const HEADER: [&str; 12] = [
    "BACKEND",
    "ADDRESS",
    "ROUTING",
    "HEALTH",
    "ADMIN",
    "WEIGHT",
    "SLOTS",
    "FLOWS",
    "PACKETS",
    "LAST PROBE",
    "SINCE",
    "REASON",
];
/// Columns of numbers, aligned to the right.
const NUMBERS: std::ops::Range<usize> = 5..9;
const ROUTING: usize = 2;
const HEALTH: usize = 3;
const ADMIN: usize = 4;

fn render_service(
    lines: &mut Vec<String>,
    service: &ServiceStatus,
    now: Timestamp,
    palette: Palette,
) {
    let active = service.backends.iter().filter(|b| b.takes_new_flows());
    let threshold = match (service.panic_threshold, service.panic_min_healthy) {
        (0, 0) => "never panics".to_owned(),
        (percent, 0) => format!("panics under {percent} %"),
        (0, count) => format!("panics under {count} healthy"),
        (percent, count) => format!("panics under {percent} % or {count} healthy"),
    };
    lines.push(format!(
        "{}  {} {}  {}  {:.1} % healthy ({threshold})  {} of {} backends take new flows",
        palette.strong(&tame(&service.name)),
        tame(&service.protocol),
        tame(&service.address),
        tame(&service.forwarding),
        service.healthy_percent,
        active.clone().count(),
        service.backends.len(),
    ));
    if let Some(primary) = &service.primary {
        render_primary(lines, primary, now, palette);
    }
    if let Some(announced) = service.announced {
        let why = tame(service.announced_reason.as_deref().unwrap_or_default());
        lines.push(match announced {
            true => format!("  VIP announced: {why}"),
            false => palette.shout(&format!("!! VIP NOT ANNOUNCED: {why}")),
        });
    }
    if service.panic {
        lines.push(palette.shout(match service.panic_action.as_str() {
            "fail" => "!! PANIC: too few backends are healthy, so new flows are dropped",
            "fallback" => {
                "!! PANIC: too few backends are healthy, so the fallback backends get the new \
                 flows, or all if none of them is healthy"
            }
            _ => {
                "!! PANIC: too few backends are healthy, so health is ignored and all that are \
                 not administratively out get traffic, those with a closed port last"
            }
        }));
    } else if active.count() == 0 && !service.backends.is_empty() {
        let mut states = service.backends.iter().map(|backend| backend.health);
        lines.push(if states.all(|health| health == Health::Unknown) {
            palette.soft("waiting for the first verdicts: no backend takes new flows yet")
        } else {
            let mut weights = service.backends.iter().map(|backend| backend.weight);
            palette.shout(match weights.all(|weight| weight == 0) {
                true => {
                    "!! NO BACKEND takes new flows, since all have weight 0: clients are dropped"
                }
                false => "!! NO BACKEND takes new flows: clients are dropped",
            })
        });
    }
    let rows: Vec<[String; 12]> = service
        .backends
        .iter()
        .map(|backend| row(backend, now))
        .collect();
    let columns = Columns::new(&HEADER, rows.iter(), NUMBERS);
    let header = HEADER.map(str::to_owned);
    lines.push(palette.faint(&line(columns.fill(&header), |_, cell| cell)));
    for (row, backend) in rows.iter().zip(&service.backends) {
        lines.push(line(columns.fill(row), |column, cell| match column {
            ROUTING => paint_routing(palette, backend.routing, &cell),
            HEALTH => paint_health(palette, backend.health, &cell),
            ADMIN if backend.admin != Admin::Enabled => palette.soft(&cell),
            _ => cell,
        }));
    }
    for backend in &service.backends {
        detail::render(lines, backend, now, palette);
    }
    if let Some(text) = counters(&service.verdicts) {
        lines.push(palette.faint(&format!("  dropped or reset: {text}")));
    }
    match service.verdicts.get(Verdict::Rescued.label()) {
        Some(rescued) if *rescued > 0 => {
            lines.push(palette.faint(&format!("  flows rescued: {rescued}")));
        }
        Some(_) | None => {}
    }
}

/// The active backend, and what is about to become of it.
fn render_primary(
    lines: &mut Vec<String>,
    primary: &PrimaryStatus,
    now: Timestamp,
    palette: Palette,
) {
    let name = tame(&primary.backend);
    lines.push(format!(
        "  active: {} for {} ({})",
        palette.strong(&name),
        span(seconds(primary.since, now)),
        tame(&primary.reason),
    ));
    let trouble = tame(primary.trouble.as_deref().unwrap_or_default());
    let ahead = primary.until.map_or(0.0, |until| seconds(now, until));
    let text = match primary.state {
        PrimaryState::Serving => return,
        PrimaryState::Failing if ahead > 0.0 => {
            format!("FAILING: {trouble}; another is promoted in {}", span(ahead))
        }
        PrimaryState::Failing => format!("FAILING: {trouble}; no backend can take over"),
        PrimaryState::Fencing => format!(
            "FENCING: {name} is cut off for another to take over, attempt {}: {trouble}",
            primary.attempt.unwrap_or(1)
        ),
        PrimaryState::FenceFailed => format!(
            "FENCE FAILED {} times, so nobody is promoted: {}; next attempt in {} ({trouble})",
            primary.attempt.unwrap_or(1),
            tame(primary.fence_error.as_deref().unwrap_or_default()),
            span(ahead.max(0.0)),
        ),
        PrimaryState::Fenced => format!("FENCED: {trouble}; no backend can take over"),
    };
    lines.push(palette.shout(&format!("!! {text}")));
}

fn line(cells: [String; 12], paint: impl Fn(usize, String) -> String) -> String {
    let mut line = " ".to_owned();
    for (column, cell) in cells.into_iter().enumerate() {
        line.push_str(if column == 0 { " " } else { "  " });
        line.push_str(&paint(column, cell));
    }
    line
}

fn row(backend: &BackendStatus, now: Timestamp) -> [String; 12] {
    let weight = match backend.configured_weight {
        None => backend.weight.to_string(),
        Some(configured) => format!("{} (config {configured})", backend.weight),
    };
    let mut reason = tame(&backend.reason);
    if let Some(until) = backend.drain_until {
        reason.push_str(&format!("; drains for {} more", span(seconds(now, until))));
    }
    if backend.unresolved {
        reason.push_str("; NO NEXT HOP: packets to it are dropped");
        if let Some(why) = &backend.unresolved_reason {
            reason.push_str(&format!(" ({})", tame(why)));
        }
    }
    if let Some(since) = backend.paused_since {
        reason.push_str(&format!("; NOT PROBED for {}", span(seconds(since, now))));
    }
    if let Some(what) = &backend.disagreement {
        reason.push_str(&format!("; BUT ITS TRAFFIC SAYS: {}", tame(what)));
    }
    [
        tame(&backend.name),
        tame(&backend.address),
        backend.routing.name().to_owned(),
        backend.health.name().to_owned(),
        backend.admin.name().to_owned(),
        weight,
        backend.slots.to_string(),
        backend.active_flows.to_string(),
        backend.packets.to_string(),
        last_probe(backend, now),
        format!("{} ago", span(seconds(backend.since, now))),
        reason,
    ]
}

fn paint_routing(palette: Palette, routing: Routing, text: &str) -> String {
    match routing {
        Routing::Active => palette.good(text),
        Routing::Draining | Routing::Standby => palette.soft(text),
        Routing::Out | Routing::Panic => palette.bad(text),
    }
}

fn paint_health(palette: Palette, health: Health, text: &str) -> String {
    match health {
        Health::Healthy => palette.good(text),
        Health::Unknown => palette.soft(text),
        Health::Unhealthy => palette.bad(text),
    }
}

/// The counters of packets that somebody may miss.
fn counters(verdicts: &BTreeMap<String, u64>) -> Option<String> {
    let counted: Vec<String> = verdicts
        .iter()
        .filter(|(name, count)| {
            **count > 0 && (name.starts_with("drop_") || name.starts_with("reset_"))
        })
        .map(|(name, count)| format!("{} {count}", tame(name)))
        .collect();
    (!counted.is_empty()).then(|| counted.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::tests::sample;

    fn shown(status: &Status) -> String {
        render(status, status.node.at, Palette::PLAIN)
    }

    #[test]
    fn one_backend_is_out() {
        insta::assert_snapshot!(shown(&sample()));
    }

    #[test]
    fn an_active_backend_is_told_with_what_becomes_of_it() {
        let mut status = sample();
        let at = status.node.at;
        let primary = PrimaryStatus {
            backend: "web-1".into(),
            state: PrimaryState::Serving,
            since: "2026-01-01T00:00:10Z".parse().unwrap(),
            reason: "the first in the configuration".into(),
            trouble: None,
            until: None,
            attempt: None,
            fence_error: None,
        };
        let mut line = |primary: PrimaryStatus| {
            status.services[0].primary = Some(primary);
            let text = shown(&status);
            let lines = text.lines().skip_while(|line| !line.contains("active: "));
            let lines: Vec<&str> = lines.take(2).collect();
            assert_eq!(
                lines[0],
                "  active: web-1 for 1m30s (the first in the configuration)"
            );
            lines[1].trim().to_owned()
        };
        assert!(line(primary.clone()).starts_with("BACKEND"));
        let trouble = Some("web-1 is unhealthy: 3 failures".to_owned());
        let failing = PrimaryStatus {
            state: PrimaryState::Failing,
            trouble,
            until: Some(at + std::time::Duration::from_secs(7)),
            ..primary
        };
        assert_eq!(
            line(failing.clone()),
            "!! FAILING: web-1 is unhealthy: 3 failures; another is promoted in 7s"
        );
        let stuck = PrimaryStatus {
            until: Some(at),
            ..failing.clone()
        };
        assert_eq!(
            line(stuck),
            "!! FAILING: web-1 is unhealthy: 3 failures; no backend can take over"
        );
        let failed = PrimaryStatus {
            state: PrimaryState::FenceFailed,
            attempt: Some(3),
            fence_error: Some("exit status 1".into()),
            ..failing
        };
        assert_eq!(
            line(failed),
            "!! FENCE FAILED 3 times, so nobody is promoted: exit status 1; next attempt in 7s \
             (web-1 is unhealthy: 3 failures)"
        );
    }

    #[test]
    fn everything_is_wrong() {
        let mut status = sample();
        status.node.datapath_error = Some("updating a map: EPERM".into());
        status.node.verdict_age_seconds = 75.0;
        status.node.interfaces[0].mode = Mode::Off;
        status.node.reload_error = Some("error: unknown key `nam`\n --> lb.toml:3".into());
        status.node.verdicts.insert("drop_malformed".into(), 2);
        let service = &mut status.services[0];
        service.panic = true;
        service.backends[0].admin = Admin::Drain;
        service.backends[0].routing = Routing::Draining;
        service.backends[0].drain_until = Some("2026-01-01T00:02:00Z".parse().unwrap());
        service.backends[0].configured_weight = Some(50);
        service.backends[0].slots = 0;
        service.backends[1].routing = Routing::Panic;
        service.backends[1].slots = 65537;
        service.backends[1].unresolved = true;
        service.backends[1].last_probe = None;
        let now = "2026-01-01T00:01:50Z".parse().unwrap();
        insta::assert_snapshot!(render(&status, now, Palette::PLAIN));
    }

    #[test]
    fn a_service_without_a_backend_to_take_flows_is_shouted() {
        let mut status = sample();
        status.services[0].backends.remove(0);
        assert!(shown(&status).contains("!! NO BACKEND takes new flows"));
        status.services[0].backends[0].health = Health::Unknown;
        assert!(shown(&status).contains("\nwaiting for the first verdicts"));
    }

    #[test]
    fn a_backend_without_weight_takes_no_new_flows() {
        let mut status = sample();
        assert!(shown(&status).contains("1 of 2 backends take new flows"));
        for backend in &mut status.services[0].backends {
            (backend.weight, backend.slots) = (0, 0);
        }
        let text = shown(&status);
        assert!(text.contains("0 of 2 backends take new flows"), "{text}");
        assert!(text.contains("!! NO BACKEND takes new flows, since all have weight 0"));
    }

    #[test]
    fn an_interface_that_is_down_and_a_state_that_is_not_saved_are_shouted() {
        let mut status = sample();
        assert!(!shown(&status).contains("!!"));
        status.node.interfaces[0].down = Some("no carrier".into());
        status.node.state_error = Some("/var/lib/lb/state.json: disk full".into());
        let text = shown(&status);
        assert!(
            text.contains("\n!! eth0: no carrier, so no packet passes there\n"),
            "{text}"
        );
        assert!(text.contains("would not outlive the agent: /var/lib/lb/state.json: disk full\n"));
    }
}
