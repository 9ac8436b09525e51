//! `/metrics`: the status in the Prometheus text exposition format, version 0.0.4.

use std::fmt::{self, Write};

use lb_common::verdict::Verdict;

use super::lateness::Lateness;
use super::status::{BackendStatus, Health, PrimaryState, Routing, ServiceStatus, Status};

mod announced;
mod certificates;

/// Media type of the answer.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of a status.
pub fn encode(status: &Status) -> String {
    let mut text = Encoder(String::with_capacity(16 << 10));
    node(&mut text, status);
    services(&mut text, &status.services);
    backends(&mut text, &status.services);
    text.0
}

fn node(text: &mut Encoder, status: &Status) {
    let node = &status.node;
    text.family("lb_info", GAUGE, "Version of the agent.");
    text.sample("lb_info", &[("version", &node.version)], 1);
    text.single(
        "lb_uptime_seconds",
        GAUGE,
        "Time since the agent started.",
        node.uptime_seconds,
    );
    text.single(
        "lb_ready",
        GAUGE,
        "1 while /readyz answers 200.",
        u8::from(node.ready()),
    );
    text.single(
        "lb_verdict_age_seconds",
        GAUGE,
        "Time since the data plane was last confirmed to hold the wanted verdicts.",
        node.verdict_age_seconds,
    );
    histogram(
        text,
        "lb_verdict_gap_seconds",
        "Time from a verdict to the data plane that follows it.",
        &node.verdict_gap,
    );
    text.single(
        "lb_config_refused",
        GAUGE,
        "1 if the last reload was refused and the old configuration runs on.",
        u8::from(node.reload_error.is_some()),
    );
    text.single(
        "lb_state_unsaved",
        GAUGE,
        "1 if the state file cannot be written: what it lacks would not outlive the agent.",
        u8::from(node.state_error.is_some()),
    );
    if !node.names.is_empty() {
        text.family(
            "lb_name_resolved",
            GAUGE,
            "1 if a backend's host name was resolved at the last attempt, 0 while its last addresses stay.",
        );
    }
    for name in &node.names {
        let labels = [
            ("name", name.name.as_str()),
            ("family", name.family.as_str()),
        ];
        let resolved = u8::from(name.error.is_none());
        text.sample("lb_name_resolved", &labels, resolved);
    }
    text.family(
        "lb_interface_attached",
        GAUGE,
        "Interfaces with the program, by mode.",
    );
    for interface in &node.interfaces {
        let labels = [
            ("interface", interface.name.as_str()),
            ("mode", interface.mode.name()),
        ];
        let attached = interface.mode != super::status::Mode::Off;
        text.sample("lb_interface_attached", &labels, u8::from(attached));
    }
    text.single(
        "lb_flows",
        GAUGE,
        "Entries in the flow table.",
        node.flows.used,
    );
    text.single(
        "lb_flows_capacity",
        GAUGE,
        "Room in the flow table.",
        node.flows.capacity,
    );
    let prober = &node.prober;
    text.family("lb_probes_total", COUNTER, "Probes finished, by outcome.");
    for (outcome, count) in [
        ("success", prober.success),
        ("failure", prober.failure),
        ("internal", prober.internal),
    ] {
        text.sample("lb_probes_total", &[("outcome", outcome)], count);
    }
    text.single(
        "lb_probes_skipped_total",
        COUNTER,
        "Probes left out because they would have been late.",
        prober.skipped,
    );
    text.single(
        "lb_probe_lag_seconds",
        GAUGE,
        "How late the last probe started.",
        prober.lag_seconds,
    );
    text.single(
        "lb_prober_overloaded",
        GAUGE,
        "1 while the prober does not keep up, so that timeouts are not counted.",
        u8::from(prober.overloaded),
    );
    text.single(
        "lb_prober_short",
        GAUGE,
        "Backends whose last probe was late or lacked CPU, descriptors, ports or memory.",
        prober.short,
    );
    text.single(
        "lb_probes_held_total",
        COUNTER,
        "Timeouts that were not counted because the prober was overloaded.",
        prober.held,
    );
    histogram(
        text,
        "lb_probe_start_lateness_seconds",
        "How late probes started.",
        &prober.lateness,
    );
    text.family(
        "lb_verdicts_total",
        COUNTER,
        "Packets that were not forwarded to a backend, by verdict; service is empty for those of none.",
    );
    let services = status.services.iter();
    let all = std::iter::once(("", &node.verdicts))
        .chain(services.map(|service| (service.name.as_str(), &service.verdicts)));
    for (service, verdicts) in all {
        // Those that did not happen yet too: a rate needs the zero before the first one.
        for verdict in Verdict::ALL {
            let verdict = verdict.label();
            let labels = [("service", service), ("verdict", verdict)];
            let count = verdicts.get(verdict).copied().unwrap_or(0);
            text.sample("lb_verdicts_total", &labels, count);
        }
    }
}

fn histogram(text: &mut Encoder, name: &str, help: &str, late: &Lateness) {
    text.family(name, "histogram", help);
    let bucket = format!("{name}_bucket");
    for (bound, count) in late.cumulative() {
        text.sample(&bucket, &[("le", &bound.to_string())], count);
    }
    text.sample(&bucket, &[("le", "+Inf")], late.probes());
    text.sample(&format!("{name}_sum"), &[], late.seconds());
    text.sample(&format!("{name}_count"), &[], late.probes());
}

fn services(text: &mut Encoder, services: &[ServiceStatus]) {
    text.family(
        "lb_service_panic",
        GAUGE,
        "1 while health is ignored: too few are healthy.",
    );
    for service in services {
        text.sample(
            "lb_service_panic",
            &[("service", &service.name)],
            u8::from(service.panic),
        );
    }
    let primaries = || {
        let services = services.iter();
        services.filter_map(|service| Some((&service.name, service.primary.as_ref()?)))
    };
    if primaries().next().is_some() {
        text.family(
            "lb_service_primary",
            GAUGE,
            "1 for the state that the service's active backend is in; only with one active backend.",
        );
        for (service, primary) in primaries() {
            for state in PrimaryState::ALL {
                let labels = [("service", service.as_str()), ("state", state.name())];
                let is = u8::from(primary.state == *state);
                text.sample("lb_service_primary", &labels, is);
            }
        }
    }
    announced::encode(text, services);
    text.family(
        "lb_service_healthy_ratio",
        GAUGE,
        "Healthy share of the enabled weight whose health is decided, 0 to 1.",
    );
    for service in services {
        let ratio = service.healthy_percent / 100.0;
        text.sample(
            "lb_service_healthy_ratio",
            &[("service", &service.name)],
            ratio,
        );
    }
    text.family(
        "lb_ejections_refused_total",
        COUNTER,
        "Ejections that did not happen, since as many backends were out as may be.",
    );
    for service in services {
        let refused = service.ejections_refused;
        for (by, count) in [("probes", refused.probes), ("packets", refused.packets)] {
            let labels = [("service", service.name.as_str()), ("by", by)];
            text.sample("lb_ejections_refused_total", &labels, count);
        }
    }
    text.family(
        "lb_service_generation",
        GAUGE,
        "Tables published for the service.",
    );
    for service in services {
        text.sample(
            "lb_service_generation",
            &[("service", &service.name)],
            service.generation,
        );
    }
}

/// A metric of a backend: name, type, help, value.
type BackendMetric = (
    &'static str,
    &'static str,
    &'static str,
    fn(&BackendStatus) -> f64,
);

const BACKEND_METRICS: &[BackendMetric] = &[
    ("lb_backend_weight", GAUGE, "Weight in force.", |b| {
        b.weight.into()
    }),
    (
        "lb_backend_slots",
        GAUGE,
        "Slots of the service's table that it owns.",
        |b| b.slots.into(),
    ),
    (
        "lb_backend_active_flows",
        GAUGE,
        "Established flows.",
        |b| count(b.active_flows),
    ),
    ("lb_backend_new_flows_total", COUNTER, "New flows.", |b| {
        count(b.new_flows)
    }),
    (
        "lb_backend_packets_total",
        COUNTER,
        "Packets forwarded to it.",
        |b| count(b.packets),
    ),
    (
        "lb_backend_bytes_total",
        COUNTER,
        "Bytes forwarded to it.",
        |b| count(b.bytes),
    ),
    (
        "lb_backend_flaps_total",
        COUNTER,
        "Ejections and readmissions.",
        |b| count(b.probes.flaps),
    ),
    (
        "lb_backend_share_percent",
        GAUGE,
        "Percent of its slots that it takes new flows for: less in slow start, degraded, or by its agent's word.",
        |b| b.share.into(),
    ),
    (
        "lb_backend_held_down",
        GAUGE,
        "1 while it stays out for having been ejected before.",
        |b| f64::from(u8::from(b.held_until.is_some())),
    ),
    (
        "lb_backend_unresolved",
        GAUGE,
        "1 while its next hop is not resolved.",
        |b| f64::from(u8::from(b.unresolved)),
    ),
    (
        "lb_backend_disagreement",
        GAUGE,
        "1 while the packets of its flows say of it what its probes do not.",
        |b| f64::from(u8::from(b.disagreement.is_some())),
    ),
    (
        "lb_backend_probes_paused",
        GAUGE,
        "1 while the operator has its probes paused.",
        |b| f64::from(u8::from(b.paused_since.is_some())),
    ),
    (
        "lb_backend_answered_total",
        COUNTER,
        "New flows that it has answered (NAT).",
        |b| count(b.signs.answered),
    ),
    (
        "lb_backend_refused_total",
        COUNTER,
        "New flows that it has answered with a RST (NAT).",
        |b| count(b.signs.refused),
    ),
    (
        "lb_backend_answer_seconds_total",
        COUNTER,
        "Seconds from SYNs to their first answers, of those timed (NAT).",
        |b| b.signs.timed_seconds,
    ),
    (
        "lb_backend_timed_answers_total",
        COUNTER,
        "SYNs whose answers were timed (NAT).",
        |b| count(b.signs.timed),
    ),
    (
        "lb_backend_repeated_syns_total",
        COUNTER,
        "SYNs that came again (NAT: before it had answered).",
        |b| count(b.signs.repeated),
    ),
    (
        "lb_backend_unreachable_total",
        COUNTER,
        "ICMP errors that say that it cannot be reached (NAT; tunnels: about outer headers).",
        |b| count(b.signs.unreachable),
    ),
    (
        "lb_backend_http_ok_total",
        COUNTER,
        "HTTP answers with a status below 500 (passive_http).",
        |b| count(b.signs.http_ok),
    ),
    (
        "lb_backend_http_errors_total",
        COUNTER,
        "HTTP answers with a status of 500 and above (passive_http).",
        |b| count(b.signs.http_errors),
    ),
];

/// Prometheus has no integers; above 2^53 the last digits go.
fn count(value: u64) -> f64 {
    value as f64
}

fn backends(text: &mut Encoder, services: &[ServiceStatus]) {
    let all = || {
        services.iter().flat_map(|service| {
            let backends = service.backends.iter();
            backends.map(|backend| (service.name.as_str(), backend))
        })
    };
    for (name, kind, help, value) in BACKEND_METRICS {
        text.family(name, kind, help);
        for (service, backend) in all() {
            let labels = [("service", service), ("backend", &*backend.name)];
            text.sample(name, &labels, value(backend));
        }
    }
    text.family(
        "lb_backend_health",
        GAUGE,
        "1 for the state that the probes found.",
    );
    for (service, backend) in all() {
        for state in Health::ALL {
            let labels = [
                ("service", service),
                ("backend", &*backend.name),
                ("state", state.name()),
            ];
            text.sample(
                "lb_backend_health",
                &labels,
                u8::from(backend.health == *state),
            );
        }
    }
    text.family(
        "lb_backend_routing",
        GAUGE,
        "1 for what the data plane does with it.",
    );
    for (service, backend) in all() {
        for state in Routing::ALL {
            let labels = [
                ("service", service),
                ("backend", &*backend.name),
                ("state", state.name()),
            ];
            text.sample(
                "lb_backend_routing",
                &labels,
                u8::from(backend.routing == *state),
            );
        }
    }
    text.family(
        "lb_backend_probes_total",
        COUNTER,
        "Probes finished, by outcome.",
    );
    for (service, backend) in all() {
        let probes = backend.probes;
        for (outcome, count) in [
            ("success", probes.success),
            ("failure", probes.failure),
            ("internal", probes.internal),
        ] {
            let labels = [
                ("service", service),
                ("backend", &*backend.name),
                ("outcome", outcome),
            ];
            text.sample("lb_backend_probes_total", &labels, count);
        }
    }
    text.family(
        "lb_backend_probe_latency_seconds",
        GAUGE,
        "Latency of the last probe.",
    );
    for (service, backend) in all() {
        if let Some(probe) = &backend.last_probe {
            let labels = [("service", service), ("backend", &*backend.name)];
            let seconds = probe.latency_ms / 1e3;
            text.sample("lb_backend_probe_latency_seconds", &labels, seconds);
        }
    }
    certificates::encode(text, all());
}

const GAUGE: &str = "gauge";
const COUNTER: &str = "counter";

/// Writes the format. Writing to a string cannot fail.
struct Encoder(String);

impl Encoder {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl fmt::Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            self.0.push(if index == 0 { '{' } else { ',' });
            self.0.push_str(label);
            self.0.push_str("=\"");
            for character in text.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        self.write(format_args!(" {value}\n"));
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl fmt::Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn write(&mut self, arguments: fmt::Arguments<'_>) {
        // A String takes everything.
        let _ = self.0.write_fmt(arguments);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::status::tests::sample;
    use super::*;

    /// Reads the format back: (name, labels) → value. Panics where it is broken.
    pub(super) fn parse(text: &str) -> BTreeMap<String, f64> {
        let mut types = BTreeMap::new();
        let mut helped = BTreeSet::new();
        let mut samples = BTreeMap::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(!help.is_empty());
                assert!(helped.insert(name.to_owned()), "{name} twice");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                // Two counters that are divided by each other are named as a summary's parts.
                let counts = ["_total", "_sum", "_count"];
                let counts = counts.iter().any(|end| name.ends_with(end));
                assert_eq!(kind == "counter", counts, "{name}");
                types.insert(name.to_owned(), kind.to_owned());
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let name = series.split('{').next().unwrap();
                // A histogram is one metric with three kinds of sample.
                let whole = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|suffix| name.strip_suffix(suffix))
                    .filter(|name| types.get(*name).is_some_and(|kind| kind == "histogram"));
                let name = whole.unwrap_or(name);
                assert!(types.contains_key(name), "{name} has no type");
                assert!(helped.contains(name), "{name} has no help");
                assert!(
                    samples
                        .insert(series.to_owned(), value.parse().unwrap())
                        .is_none(),
                    "{series} twice"
                );
            }
        }
        samples
    }

    #[test]
    fn the_status_is_told_in_full() {
        let text = encode(&sample());
        assert!(text.ends_with('\n'));
        let samples = parse(&text);
        for (series, value) in [
            (r#"lb_info{version="0.1.0"}"#, 1.0),
            ("lb_ready", 1.0),
            (
                r#"lb_interface_attached{interface="eth0",mode="native"}"#,
                1.0,
            ),
            (
                r#"lb_verdicts_total{service="",verdict="pass_not_vip"}"#,
                55.0,
            ),
            (
                r#"lb_verdicts_total{service="web",verdict="reset_backend_out"}"#,
                3.0,
            ),
            (
                r#"lb_verdicts_total{service="web",verdict="drop_no_backend"}"#,
                0.0,
            ),
            (r#"lb_service_healthy_ratio{service="web"}"#, 0.5),
            (
                r#"lb_ejections_refused_total{service="web",by="probes"}"#,
                2.0,
            ),
            (
                r#"lb_ejections_refused_total{service="web",by="packets"}"#,
                1.0,
            ),
            (
                r#"lb_backend_packets_total{service="web",backend="web-1"}"#,
                1234.0,
            ),
            (
                r#"lb_backend_health{service="web",backend="web-2",state="unhealthy"}"#,
                1.0,
            ),
            (
                r#"lb_backend_health{service="web",backend="web-2",state="healthy"}"#,
                0.0,
            ),
            (
                r#"lb_backend_routing{service="web",backend="web-2",state="out"}"#,
                1.0,
            ),
            (
                r#"lb_backend_probes_total{service="web",backend="web-1",outcome="success"}"#,
                20.0,
            ),
            (
                r#"lb_backend_probe_latency_seconds{service="web",backend="web-1"}"#,
                0.0012,
            ),
        ] {
            assert_eq!(samples.get(series), Some(&value), "{series}");
        }
    }

    #[test]
    fn the_state_of_an_active_backend_is_a_series_each() {
        let mut status = sample();
        assert!(!encode(&status).contains("lb_service_primary"));
        status.services[0].primary = Some(crate::api::status::PrimaryStatus {
            backend: "web-1".into(),
            state: PrimaryState::FenceFailed,
            since: status.node.at,
            reason: String::new(),
            trouble: None,
            until: None,
            attempt: None,
            fence_error: None,
        });
        let text = encode(&status);
        let is = |state: &str, value: u8| {
            text.contains(&format!(
                "lb_service_primary{{service=\"web\",state=\"{state}\"}} {value}\n"
            ))
        };
        assert!(is("fence_failed", 1) && is("serving", 0) && is("fencing", 0));
    }

    #[test]
    fn label_values_are_escaped() {
        let mut status = sample();
        status.services[0].name = "a\"b\\c\nd".into();
        let text = encode(&status);
        assert!(text.contains(r#"lb_service_panic{service="a\"b\\c\nd"} 0"#));
    }
}
