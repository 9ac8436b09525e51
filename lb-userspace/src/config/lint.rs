//! Known mistakes: configurations that are valid and will hurt.

use std::ops::Range;
use std::time::Duration;

use super::budget::Budget;
use super::diagnostic::{Diagnostic, Severity};
use super::duration::format;
use super::places::{Places, health_key};
use crate::model::{Announce, Backend, HealthPolicy, Mode, Model, ProbeKind, Protocol, Service};

/// Every warning there is: its id and when it is given.
pub const LINTS: &[(&str, &str)] = &[
    ("no-services", "The file has no service."),
    (
        "http-without-token",
        "`node.http` is not a loopback address, and there is no `http_token_file`.",
    ),
    ("no-probe", "A TCP service has `probe = \"none\"`."),
    (
        "probe-root-path",
        "An HTTP probe asks for `/` instead of a path made for it.",
    ),
    (
        "liveness-path",
        "An HTTP probe asks for `/livez`, `/healthz` or `/live`, which say that a process runs, not that it can serve.",
    ),
    (
        "wide-status",
        "`expect_status` accepts codes other than 2xx.",
    ),
    ("tcp-probe-http-port", "A TCP probe asks a usual HTTP port."),
    (
        "half-open",
        "A TCP probe has `half_open = true`, so that only the backend's kernel is asked.",
    ),
    (
        "mysql-without-user",
        "A MySQL probe has no `user`: the server would block this host after 100 probes.",
    ),
    (
        "tls-short-interval",
        "A probe over TLS runs more often than every 5 s, each on a fresh connection: a handshake each time, the full one at least every minute.",
    ),
    (
        "service-without-grpc",
        "`[service.health]` names a gRPC `service` for an HTTP probe, which does not ask for it.",
    ),
    ("single-success", "`healthy_threshold` is 1."),
    ("slow-eject", "The worst-case time to eject is over 30 s."),
    (
        "short-drain",
        "`drain_deadline` is under the probe's `timeout`.",
    ),
    ("single-backend", "The service has one backend."),
    (
        "no-headroom",
        "Without its largest backend, and with no higher tier to stand in, a service keeps less than half of its weight or less than `panic_threshold` percent of it.",
    ),
    (
        "panic-off",
        "`panic_threshold` is 0 although backends are probed.",
    ),
    (
        "probe-load",
        "All services together ask for more probes than `probes_per_second` allows.",
    ),
    (
        "loopback-backend",
        "A backend has a loopback address: probes reach it, forwarded packets do not.",
    ),
    (
        "announce-no-spare",
        "With `announce`, what is left of a service without its largest backend is less than `quorum`.",
    ),
    (
        "announce-unprobed",
        "With `announce`, a service has `probe = \"none\"`.",
    ),
    (
        "announce-main-table",
        "`announce_table` is the main one, 254, and probes with `via = \"vip\"` go to an announced VIP.",
    ),
];

/// Worst-case time to eject beyond which it is a mistake.
const SLOWEST_EJECT: Duration = Duration::from_secs(30);
/// The kernel's main routing table (RT_TABLE_MAIN).
const MAIN_TABLE: u32 = 254;
/// Interval under which TLS handshakes are a cost worth a word.
const TLS_INTERVAL: Duration = Duration::from_secs(5);
/// Ports on which HTTP is usual.
const HTTP_PORTS: [u16; 8] = [80, 443, 8000, 8008, 8080, 8081, 8443, 8888];
/// Paths by which orchestrators ask whether to restart a process.
const LIVENESS_PATHS: [&str; 4] = ["/livez", "/healthz", "/live", "/liveness"];

/// The warnings on `model`, in the order of the file. `load`: the probes per second that it asks for.
pub fn warnings(model: &Model, places: &Places, load: f64, text: &str) -> Vec<Diagnostic> {
    let mut sink = Sink {
        text,
        found: Vec::new(),
    };
    if model.services.is_empty() {
        sink.add(
            "no-services",
            text.len()..text.len(),
            "the file has no service, so nothing is balanced",
            "add [[service]] with name, address and backends",
        );
    }
    let node = &model.node;
    if node.http.is_some_and(|http| !http.ip().is_loopback())
        && node.http_token_file.is_none()
        && let Some(span) = places.node("http")
    {
        sink.add(
            "http-without-token",
            span,
            "whoever reaches this address may read names and addresses of all backends: /, /metrics, /healthz?verbose",
            "bind it to loopback, or write http_token_file = \"/etc/lb/token\"",
        );
    }
    if let (Some(most), Some(span)) = (node.probes_per_second, places.node("probes_per_second"))
        && load > f64::from(most)
    {
        sink.add(
            "probe-load",
            span,
            format!(
                "the services ask for {load:.1} probes/s while all is well, and {most} are allowed: \
                 probes start late or are left out, and the times to eject do not hold"
            ),
            "raise it, or use longer intervals",
        );
    }
    for (index, service) in model.services.iter().enumerate() {
        let place = Place {
            places,
            service: index,
            check: 0,
        };
        if service.health.is_empty() {
            unprobed(service, &place, &mut sink);
        }
        for (check, policy) in service.health.iter().enumerate() {
            let place = Place { check, ..place };
            rhythm(service, policy, &place, &mut sink);
            if let Some(probe) = service.backends.iter().find_map(|b| b.probes.get(check)) {
                question(&probe.kind, policy, &place, &mut sink);
            }
        }
        tcp_on_http_port(service, &place, &mut sink);
        pool(service, &place, &mut sink);
        if let Some(rules) = &service.announce {
            announced(model, service, rules, &place, &mut sink);
        }
    }
    let mut found = sink.found;
    found.sort_by_key(|found| found.span.start);
    found
}

struct Sink<'t> {
    text: &'t str,
    found: Vec<Diagnostic>,
}

impl Sink<'_> {
    fn add(
        &mut self,
        id: &'static str,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        let found = Diagnostic::new(Severity::Warning, self.text, span, message, help).with_id(id);
        // Inherited from [defaults.health], it is one mistake for all services.
        if !self.found.contains(&found) {
            self.found.push(found);
        }
    }
}

/// Finds the keys of one service.
#[derive(Clone, Copy)]
struct Place<'p> {
    places: &'p Places,
    service: usize,
    /// Which of its health tables.
    check: usize,
}

impl Place<'_> {
    fn key(&self, key: &str) -> Range<usize> {
        match key.strip_prefix("health.") {
            Some(key) => (self.places).key(self.service, &health_key(self.check, key)),
            None => self.places.key(self.service, key),
        }
    }

    fn backend(&self, backend: usize) -> Range<usize> {
        self.places.backend(self.service, backend)
    }
}

fn unprobed(service: &Service, place: &Place<'_>, sink: &mut Sink<'_>) {
    match service.protocol {
        Protocol::Tcp => sink.add(
            "no-probe",
            place.key("health.probe"),
            "nothing is probed: a dead backend keeps its traffic until someone disables it",
            "use probe = \"tcp\" at least, or \"http\" with a readiness path",
        ),
        // A UDP service has no probe of its own protocol; none is its default.
        Protocol::Udp => {}
    }
}

/// Thresholds and times.
fn rhythm(service: &Service, policy: &HealthPolicy, place: &Place<'_>, sink: &mut Sink<'_>) {
    if policy.healthy_threshold == 1 {
        sink.add(
            "single-success",
            place.key("health.healthy_threshold"),
            "one lucky answer readmits a backend that keeps crashing",
            "use healthy_threshold = 2 or more",
        );
    }
    let worst = Budget::new(policy, service.backends.len()).eject_worst;
    if worst > SLOWEST_EJECT {
        sink.add(
            "slow-eject",
            place.key("health.interval"),
            format!(
                "a dead backend may get traffic for {}: interval {} + {} further failures every {} + timeout {}",
                format(worst),
                format(policy.interval),
                policy.unhealthy_threshold.saturating_sub(1),
                format(policy.fast_interval),
                format(policy.timeout)
            ),
            "lower interval, fast_interval or unhealthy_threshold so that it stays within 30s",
        );
    }
    if service.drain_deadline < policy.timeout {
        sink.add(
            "short-drain",
            place.key("drain_deadline"),
            format!(
                "`drain_deadline` ({}) is under the probe's timeout ({}): flows are reset sooner than one probe may take",
                format(service.drain_deadline),
                format(policy.timeout)
            ),
            "raise drain_deadline; 30s is usual",
        );
    }
    if service.panic_threshold == 0
        && service.panic.min_healthy == 0
        && service.mode == Mode::Balance
    {
        sink.add(
            "panic-off",
            place.key("panic_threshold"),
            "without panic, probes that fail everywhere, for instance after a change of the probed path, take the whole service down",
            "use panic_threshold = 50 unless no answer is better than a bad one",
        );
    }
}

/// What is asked and accepted.
fn question(kind: &ProbeKind, policy: &HealthPolicy, place: &Place<'_>, sink: &mut Sink<'_>) {
    let tls = match kind {
        ProbeKind::Tcp
        | ProbeKind::Postgres(_)
        | ProbeKind::Dns(_)
        | ProbeKind::Agent
        | ProbeKind::Exec(_) => false,
        ProbeKind::TcpHalfOpen => {
            sink.add(
                "half-open",
                place.key("health.half_open"),
                "a half-open probe succeeds as long as the backend's kernel listens, even if the process is stopped or its queue is full",
                "use half_open = false, or a probe that speaks the application's protocol",
            );
            false
        }
        ProbeKind::Mysql(mysql) => {
            if mysql.user.is_none() {
                sink.add(
                    "mysql-without-user",
                    place.key("health.probe"),
                    "a MySQL server counts connections without a login as errors, and blocks this host after max_connect_errors of them (100)",
                    "make a user without a password and rights, and write user = \"lb\"",
                );
            }
            false
        }
        ProbeKind::TcpScript(script) => script.tls.is_some(),
        ProbeKind::Redis(redis) => redis.tls.is_some(),
        ProbeKind::Smtp(smtp) => smtp.tls.is_some(),
        ProbeKind::Ldap(ldap) => ldap.tls.is_some(),
        ProbeKind::Grpc { tls, .. } => tls.is_some(),
        ProbeKind::Http(http) => {
            if let Some(span) = place.places.grpc_service(place.service, place.check) {
                sink.add(
                    "service-without-grpc",
                    span,
                    format!("`service` has no effect with probe = \"{}\"", kind.name()),
                    "remove it, or write probe = \"grpc\"",
                );
            }
            let path = http.path.split('?').next().unwrap_or_default();
            let bare = path.trim_end_matches('/');
            if bare.is_empty() {
                sink.add(
                    "probe-root-path",
                    place.key("health.path"),
                    "the probe asks for `/`, which says little about whether the application can serve",
                    "probe a path made for it, for example path = \"/readyz\"",
                );
            }
            if LIVENESS_PATHS.contains(&bare) {
                sink.add(
                    "liveness-path",
                    place.key("health.path"),
                    format!("`{bare}` by custom says that the process runs, not that it can serve"),
                    "probe the readiness path, for example path = \"/readyz\"",
                );
            }
            if (http.expect_status.iter()).any(|range| range.first < 200 || range.last > 299) {
                sink.add(
                    "wide-status",
                    place.key("health.expect_status"),
                    "codes other than 2xx count as healthy: a redirect to a login page or an error page would do",
                    "use expect_status = [\"200\"] or [\"200-299\"]",
                );
            }
            http.tls.is_some() && http.reuse.is_none()
        }
    };
    if tls && policy.interval < TLS_INTERVAL {
        sink.add(
            "tls-short-interval",
            place.key("health.interval"),
            format!(
                "every {} a TLS handshake with each backend, and a full one costs about ten times a plain probe",
                format(policy.interval)
            ),
            "use interval = \"5s\" or more, reuse = \"60s\" with probe = \"https\", or a plain port for probes with `port`",
        );
    }
}

fn tcp_on_http_port(service: &Service, place: &Place<'_>, sink: &mut Sink<'_>) {
    let port = service.backends.iter().find_map(|backend| {
        // Beside others it is the lesser one.
        let [probe] = &*backend.probes else {
            return None;
        };
        let port = probe.target.port();
        (matches!(*probe.kind, ProbeKind::Tcp | ProbeKind::TcpHalfOpen)
            && HTTP_PORTS.contains(&port))
        .then_some(port)
    });
    if let Some(port) = port {
        sink.add(
            "tcp-probe-http-port",
            place.key("health.probe"),
            format!("a TCP probe of port {port} succeeds even if the application answers only errors or hangs"),
            "use probe = \"http\" (or \"https\") with path = \"/readyz\"",
        );
    }
}

/// The set of backends.
fn pool(service: &Service, place: &Place<'_>, sink: &mut Sink<'_>) {
    for (index, backend) in service.backends.iter().enumerate() {
        if backend.address.ip().is_loopback() {
            sink.add(
                "loopback-backend",
                place.backend(index),
                "forwarded packets cannot reach a loopback address; only probes can",
                "write the server's address on the network",
            );
        }
    }
    // How many backends a host name stands for is not known here.
    let unknown = |backend: &Backend| backend.address.ip().is_unspecified();
    if service.backends.iter().any(unknown) {
        return;
    }
    if service.backends.len() == 1 {
        sink.add(
            "single-backend",
            place.backend(0),
            "the service has one backend: without it there is nothing to balance to",
            "add a second [[service.backend]]",
        );
        return;
    }
    match service.mode {
        Mode::Balance => headroom(service, place, sink),
        // One carries everything at any time.
        Mode::ActivePassive(_) => {}
    }
}

/// A service whose VIP is announced.
fn announced(
    model: &Model,
    service: &Service,
    rules: &Announce,
    place: &Place<'_>,
    sink: &mut Sink<'_>,
) {
    if service.health.is_empty() {
        sink.add(
            "announce-unprobed",
            place.key("announce"),
            "nothing is probed, so the VIP is announced whether its backends live or not",
            "give the service a probe, or remove `announce`",
        );
    }
    let probes = || service.backends.iter().flat_map(|backend| &backend.probes);
    if model.node.announce_table == MAIN_TABLE && probes().any(|probe| probe.egress.via.is_some()) {
        sink.add(
            "announce-main-table",
            place.key("announce"),
            "the route of the VIP stands in the main table, where the reverse path filter (rp_filter) \
             looks: with it, answers to probes with via = \"vip\" are dropped while the VIP is announced",
            "leave announce_table at 108, and let the routing daemon look there",
        );
    }
    let regular = || service.backends.iter().filter(|backend| !backend.fallback);
    // How many backends a host name stands for is not known here.
    if regular().any(|backend| backend.address.ip().is_unspecified()) {
        return;
    }
    let total: u64 = regular().map(|backend| u64::from(backend.weight)).sum();
    let largest = regular().max_by_key(|backend| backend.weight);
    let Some(largest) = largest.filter(|_| total > 0) else {
        return;
    };
    let rest = total - u64::from(largest.weight);
    if rest == 0 || rest * 100 < total * u64::from(rules.quorum) {
        sink.add(
            "announce-no-spare",
            place.key("quorum"),
            format!(
                "without backend \"{}\" {} % of the weight is left, and `quorum` is {}: whenever it \
                 fails, the VIP is withdrawn",
                largest.name,
                rest * 100 / total,
                rules.quorum
            ),
            "lower quorum, add backends or spread the weight",
        );
    }
}

/// Warns if the loss of one backend is more than the others can be expected to carry: they would
/// get more than twice their traffic, or the service would be in panic and ignore the loss.
/// With a higher tier to stand in, there is nothing to say.
fn headroom(service: &Service, place: &Place<'_>, sink: &mut Sink<'_>) {
    let carrying = || {
        let backends = service.backends.iter();
        backends.filter(|backend| backend.weight > 0 && !backend.fallback)
    };
    let Some(tier) = carrying().map(|backend| backend.tier).min() else {
        return;
    };
    if carrying().any(|backend| backend.tier > tier) {
        return;
    }
    let total: u64 = carrying().map(|backend| u64::from(backend.weight)).sum();
    // The first of the heaviest.
    let largest = (service.backends.iter().enumerate())
        .rev()
        .filter(|(_, backend)| !backend.fallback)
        .max_by_key(|(_, backend)| backend.weight);
    let Some((index, Backend { weight, name, .. })) = largest else {
        return;
    };
    let weight = u64::from(*weight);
    let rest = total - weight;
    let panic =
        !service.health.is_empty() && rest * 100 < u64::from(service.panic_threshold) * total;
    if weight * 2 <= total && !panic {
        return;
    }
    let consequence = match (weight * 100).checked_div(rest) {
        None => "nothing is left to carry traffic".into(),
        Some(more) if panic => format!(
            "the others would have to carry {more} % more, and the service would be in panic (panic_threshold {})",
            service.panic_threshold
        ),
        Some(more) => format!("the others would have to carry {more} % more"),
    };
    sink.add(
        "no-headroom",
        place.backend(index),
        format!(
            "backend \"{name}\" has {} % of the weight; without it {consequence}",
            weight * 100 / total
        ),
        "add backends, spread the weight, or let a higher tier stand by",
    );
}
