//! `[service.health]`, over `[defaults.health]`, over the defaults of the schema.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::duration::format;
use super::reader::{At, Errors, Problem, Reader, Value};
use super::schema::Key;
use super::value;
use super::{deciding, egress, kinds, web};
use crate::model::{HeaderMatch, HealthPolicy, Pattern, ProbeKind, Protocol, StatusRange};

mod http;
mod question;
mod users;

use http::{metadata, settings_http, tls_options};
pub use question::{Asked, Checks};
use users::{refuse_meaningless, users};

/// Kind of probe, as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    None,
    Tcp,
    Http,
    Https,
    Grpc,
    Redis,
    Postgres,
    Mysql,
    Smtp,
    Ldap,
    Dns,
    Exec,
    Agent,
}

/// What the tables say, value by value.
#[derive(Debug)]
pub struct Settings {
    name: Option<At<String>>,
    probe: Option<At<Probe>>,
    interval: Option<At<Duration>>,
    timeout: Option<At<Duration>>,
    unhealthy_threshold: Option<At<u32>>,
    healthy_threshold: Option<At<u32>>,
    fast_interval: Option<At<Duration>>,
    down_interval: Option<At<Duration>>,
    jitter: Option<At<u8>>,
    port: Option<At<u16>>,
    path: Option<At<String>>,
    method: Option<At<&'static str>>,
    host: Option<At<String>>,
    headers: Option<At<Vec<(String, String)>>>,
    expect_status: Option<At<Vec<StatusRange>>>,
    body: Option<At<String>>,
    expect_header: Option<At<Vec<HeaderMatch>>>,
    reject_header: Option<At<Vec<HeaderMatch>>>,
    expect_body: Option<At<String>>,
    expect_body_regex: Option<At<Pattern>>,
    reject_body: Option<At<String>>,
    reject_body_regex: Option<At<Pattern>>,
    degraded_body: Option<At<String>>,
    drain_status: Option<At<Vec<StatusRange>>>,
    drain_header: Option<At<HeaderMatch>>,
    reuse: Option<At<Duration>>,
    reuse_limit: Option<At<u32>>,
    service: Option<At<String>>,
    authority: Option<At<String>>,
    accept_status: Option<At<Vec<u32>>>,
    watch: Option<At<bool>>,
    tls: Option<At<bool>>,
    verify: Option<At<bool>>,
    ca: Option<At<PathBuf>>,
    sni: Option<At<String>>,
    alpn: Option<At<Vec<String>>>,
    client_cert: Option<At<PathBuf>>,
    client_key: Option<At<PathBuf>>,
    deciding: deciding::Settings,
    kinds: kinds::Settings,
    egress: egress::Settings,
}

/// Reads every key and reports what is wrong with any by itself.
pub fn read(reader: &Reader<'_>, errors: &mut Errors<'_>) -> Settings {
    Settings {
        name: reader.get(errors, "name", super::service::name),
        probe: reader.get(errors, "probe", probe),
        interval: reader.get(errors, "interval", value::positive_duration),
        timeout: reader.get(errors, "timeout", value::positive_duration),
        unhealthy_threshold: reader.get(errors, "unhealthy_threshold", value::integer),
        healthy_threshold: reader.get(errors, "healthy_threshold", value::integer),
        fast_interval: reader.get(errors, "fast_interval", value::positive_duration),
        down_interval: reader.get(errors, "down_interval", value::positive_duration),
        jitter: reader.get(errors, "jitter", value::integer),
        port: reader.get(errors, "port", value::integer),
        path: reader.get(errors, "path", web::path),
        method: reader.get(errors, "method", value::choice),
        host: reader.get(errors, "host", web::authority),
        headers: reader.get(errors, "headers", value::headers),
        expect_status: reader.get(errors, "expect_status", value::statuses),
        body: reader.get(errors, "body", web::body),
        expect_header: reader.get(errors, "expect_header", value::header_rules),
        reject_header: reader.get(errors, "reject_header", value::header_rules),
        expect_body: reader.get(errors, "expect_body", web::not_empty),
        expect_body_regex: reader.get(errors, "expect_body_regex", web::pattern),
        reject_body: reader.get(errors, "reject_body", web::not_empty),
        reject_body_regex: reader.get(errors, "reject_body_regex", web::pattern),
        degraded_body: reader.get(errors, "degraded_body", web::not_empty),
        drain_status: reader.get(errors, "drain_status", value::statuses),
        drain_header: reader.get(errors, "drain_header", value::header),
        reuse: reader.get(errors, "reuse", value::positive_duration),
        reuse_limit: reader.get(errors, "reuse_limit", value::integer),
        service: reader.get(errors, "service", value::text),
        authority: reader.get(errors, "authority", web::authority),
        accept_status: reader.get(errors, "accept_status", value::grpc_codes),
        watch: reader.get(errors, "watch", value::boolean),
        tls: reader.get(errors, "tls", value::boolean),
        verify: reader.get(errors, "verify", value::boolean),
        ca: reader.get(errors, "ca", value::path),
        sni: reader.get(errors, "sni", web::server_name),
        alpn: reader.get(errors, "alpn", web::protocols),
        client_cert: reader.get(errors, "client_cert", value::path),
        client_key: reader.get(errors, "client_key", value::path),
        deciding: deciding::read(reader, errors),
        kinds: kinds::read(reader, errors),
        egress: egress::read(reader, errors),
    }
}

/// Puts the settings of a probe together. `Some(None)`: it has no probes; `None` only if there
/// are errors.
pub fn checks(
    settings: Settings,
    reader: &Reader<'_>,
    protocol: Protocol,
    errors: &mut Errors<'_>,
) -> Option<Option<Checks>> {
    let probe = match (&settings.probe, reader.written("probe"), protocol) {
        (Some(probe), _, _) => Some(probe.value),
        (None, Some(_), _) => None,
        (None, None, Protocol::Tcp) => Some(Probe::Tcp),
        (None, None, Protocol::Udp) => Some(Probe::None),
    };
    if let Some(probe) = probe {
        let tls = settings.tls.as_ref().is_some_and(|tls| tls.value);
        refuse_meaningless(reader, probe, tls, errors);
    }
    let policy = policy(&settings, reader, probe, errors);
    let egress = egress::rules(&settings.egress, reader, probe?, errors);
    let question = match probe? {
        Probe::None => return Some(None),
        Probe::Tcp
        | Probe::Redis
        | Probe::Postgres
        | Probe::Mysql
        | Probe::Smtp
        | Probe::Ldap
        | Probe::Dns
        | Probe::Agent
        | Probe::Exec => {
            // Inherited keys may be meant for other kinds.
            let tls = users("tls").contains(&probe?) && settings.tls.as_ref()?.value;
            let tls = match tls {
                true => Some(tls_options(&settings, probe?, None, errors)?),
                false => None,
            };
            let kinds = settings.kinds;
            kinds::question(probe?, kinds, tls, reader, errors)?
        }
        Probe::Http => ProbeKind::Http(settings_http(&settings, None, reader, errors)?),
        Probe::Https => {
            let name = settings.host.as_ref().map(|host| host.value.as_str());
            let tls = tls_options(&settings, probe?, name, errors)?;
            ProbeKind::Http(settings_http(&settings, Some(tls), reader, errors)?)
        }
        Probe::Grpc => {
            let name = settings.authority.as_ref().map(|name| name.value.as_str());
            let tls = match settings.tls.as_ref()?.value {
                true => Some(tls_options(&settings, probe?, name, errors)?),
                false => None,
            };
            let metadata = match &settings.headers {
                Some(headers) => metadata(headers, errors)?,
                None => Vec::new(),
            };
            ProbeKind::Grpc {
                metadata,
                service: settings.service?.value,
                authority: settings.authority.map(|authority| authority.value),
                accept_status: settings.accept_status?.value,
                tls,
                watch: settings.watch?.value,
            }
        }
    };
    let mut egress = egress?;
    if let ProbeKind::TcpHalfOpen = question
        && egress.drop_header()
        && let Some(own) = reader.own("proxy_protocol").map(Value::span)
    {
        errors.add(
            own,
            "`proxy_protocol` cannot stand with `half_open`: the connection is never established",
            "remove one of the two: `half_open` or `proxy_protocol`",
        );
        return None;
    }
    Some(Some(Checks {
        policy: policy?,
        port: settings.port.map(|port| port.value),
        question: Arc::new(question),
        egress,
    }))
}

/// Thresholds and rhythm, and how they must stand to each other.
fn policy(
    settings: &Settings,
    reader: &Reader<'_>,
    probe: Option<Probe>,
    errors: &mut Errors<'_>,
) -> Option<HealthPolicy> {
    let interval = settings.interval.as_ref()?;
    let timeout = settings.timeout.as_ref()?;
    // A wrong one was reported; in its place the interval finds the other errors.
    let or_interval = |at: &Option<At<Duration>>| at.as_ref().map_or(interval.value, |at| at.value);
    let fast_interval = or_interval(&settings.fast_interval);
    let down_interval = or_interval(&settings.down_interval);
    let shortest = [
        ("interval", interval.value),
        ("fast_interval", fast_interval),
        ("down_interval", down_interval),
    ]
    .into_iter()
    .find(|(_, interval)| timeout.value >= *interval);
    if let (Some((name, value)), false) = (shortest, probe == Some(Probe::None)) {
        too_slow(reader, (name, value), timeout, errors);
    }
    let rules = deciding::rules(&settings.deciding, reader, errors)?;
    let name = match &settings.name {
        Some(name) => name.value.as_str(),
        None => probe?.name(),
    };
    Some(HealthPolicy {
        name: name.into(),
        degraded_weight: rules.degraded_weight,
        always_log_failures: rules.always_log_failures,
        assume: rules.assume,
        unhealthy_window: rules.unhealthy_window,
        immediate_on: rules.immediate_on,
        hold_down: rules.hold_down,
        interval: interval.value,
        timeout: timeout.value,
        unhealthy_threshold: settings.unhealthy_threshold.as_ref()?.value,
        healthy_threshold: settings.healthy_threshold.as_ref()?.value,
        fast_interval,
        down_interval,
        jitter: settings.jitter.as_ref()?.value,
    })
}

/// Reports a timeout that is not less than an interval: two probes of one backend would overlap,
/// or the rhythm, and with it the time to eject, would not hold.
fn too_slow(
    reader: &Reader<'_>,
    (name, interval): (&'static str, Duration),
    timeout: &At<Duration>,
    errors: &mut Errors<'_>,
) {
    let written = |key| reader.written(key).map(Value::span);
    let own = |key| reader.own(key).map(Value::span);
    let span = own("timeout")
        .or_else(|| own(name))
        .or_else(|| written("timeout"))
        .or_else(|| written(name))
        .unwrap_or_else(|| reader.span.clone());
    let note = match written("timeout") {
        Some(_) => "",
        None => ", by default",
    };
    errors.add(
        span,
        format!(
            "`timeout` ({}{note}) must be less than `{name}` ({})",
            format(timeout.value),
            format(interval)
        ),
        format!(
            "lower it, for example timeout = \"{}\", or raise `{name}` above {}",
            format((interval / 2).max(Duration::from_millis(1))),
            format(timeout.value)
        ),
    );
}

impl Probe {
    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Https => "https",
            Self::Grpc => "grpc",
            Self::Redis => "redis",
            Self::Postgres => "postgres",
            Self::Mysql => "mysql",
            Self::Smtp => "smtp",
            Self::Ldap => "ldap",
            Self::Dns => "dns",
            Self::Exec => "exec",
            Self::Agent => "agent",
        }
    }
}

fn probe(key: &Key, value: &Value<'_>) -> Result<Probe, Problem> {
    Ok(match value::choice(key, value)? {
        "tcp" => Probe::Tcp,
        "http" => Probe::Http,
        "https" => Probe::Https,
        "grpc" => Probe::Grpc,
        "redis" => Probe::Redis,
        "postgres" => Probe::Postgres,
        "mysql" => Probe::Mysql,
        "smtp" => Probe::Smtp,
        "ldap" => Probe::Ldap,
        "dns" => Probe::Dns,
        "exec" => Probe::Exec,
        "agent" => Probe::Agent,
        _ => Probe::None,
    })
}
