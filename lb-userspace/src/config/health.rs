//! `[service.health]`, over `[defaults.health]`, over the defaults of the schema.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::duration::format;
use super::reader::{At, Errors, Problem, Reader, Value};
use super::schema::{HEALTH, Key};
use super::value;
use super::{deciding, egress, kinds, web};
use crate::model::{
    ClientCertificate, Endpoint, ExecProbe, Forwarding, HeaderMatch, HealthPolicy, HttpProbe,
    Pattern, ProbeKind, ProbeSpec, Protocol, Reuse, StatusRange, TlsOptions, host_text,
};

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
    expect_body: Option<At<String>>,
    expect_body_regex: Option<At<Pattern>>,
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
    client_cert: Option<At<PathBuf>>,
    client_key: Option<At<PathBuf>>,
    deciding: deciding::Settings,
    kinds: kinds::Settings,
    egress: egress::Settings,
}

/// One probe of a service's backends.
#[derive(Clone, Debug)]
pub struct Checks {
    pub policy: HealthPolicy,
    port: Option<u16>,
    question: Question,
    pub egress: egress::Rules,
}

/// A probe without its target.
#[derive(Clone, Debug)]
enum Question {
    /// The same of every backend, whatever its address.
    Same(ProbeKind),
    Http {
        probe: HttpProbe,
        /// `None`: the target.
        host: Option<String>,
    },
    Grpc {
        service: String,
        authority: Option<String>,
        accept_status: Vec<u32>,
        metadata: Vec<(String, String)>,
        tls: Option<TlsOptions>,
        watch: bool,
    },
}

impl Checks {
    /// Whether they run commands.
    pub fn runs_commands(&self) -> bool {
        matches!(self.question, Question::Same(ProbeKind::Exec(_)))
    }

    /// Whether there is a port to probe where the backend has none of its own.
    pub const fn has_port(&self) -> bool {
        self.port.is_some()
    }

    /// The probe of the backend `name` at `address`, written as `host`, whose service has this VIP
    /// and is forwarded so.
    pub fn of(
        &self,
        address: SocketAddr,
        written: Option<&str>,
        (vip, forwarding): (Endpoint, Forwarding),
        service: &Arc<str>,
        name: &Arc<str>,
    ) -> ProbeSpec {
        let port = self.port.unwrap_or(address.port());
        let (target, egress) = self.egress.of(address.ip(), port, vip, forwarding);
        let kind = match &self.question {
            Question::Same(ProbeKind::Exec(exec)) => ProbeKind::Exec(ExecProbe {
                service: service.clone(),
                backend: name.clone(),
                ..exec.clone()
            }),
            Question::Same(kind) => kind.clone(),
            Question::Http { probe, host } => {
                let usual = if probe.tls.is_some() { 443 } else { 80 };
                let named = host.is_none() && written.is_some();
                ProbeKind::Http(HttpProbe {
                    host: host
                        .clone()
                        .unwrap_or_else(|| authority_of(written, target, usual)),
                    tls: tls_of(&probe.tls, written.filter(|_| named)),
                    ..probe.clone()
                })
            }
            Question::Grpc {
                service,
                authority,
                accept_status,
                metadata,
                tls,
                watch,
            } => {
                let usual = if tls.is_some() { 443 } else { 80 };
                let named = authority.is_none() && written.is_some();
                let authority = authority.clone();
                ProbeKind::Grpc {
                    service: service.clone(),
                    authority: authority.unwrap_or_else(|| authority_of(written, target, usual)),
                    accept_status: accept_status.clone(),
                    metadata: metadata.clone(),
                    tls: tls_of(tls, written.filter(|_| named)),
                    watch: *watch,
                }
            }
        };
        ProbeSpec {
            target,
            timeout: self.policy.timeout,
            kind,
            egress,
        }
    }
}

/// `target`, or the host name that it has, as an authority; the scheme's usual port is left out
/// (RFC 9110, 4.2.3).
fn authority_of(written: Option<&str>, target: SocketAddr, usual_port: u16) -> String {
    let host = match written {
        Some(name) => name.trim_end_matches('.').to_owned(),
        None => host_text(target.ip()),
    };
    if target.port() == usual_port {
        host
    } else {
        format!("{host}:{}", target.port())
    }
}

/// TLS options for a server whose host name is known, unless the settings name another.
fn tls_of(options: &Option<TlsOptions>, name: Option<&str>) -> Option<TlsOptions> {
    let mut options = options.clone()?;
    if options.sni.is_none() {
        options.sni = name.and_then(name_in);
    }
    Some(options)
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
        expect_body: reader.get(errors, "expect_body", web::not_empty),
        expect_body_regex: reader.get(errors, "expect_body_regex", web::pattern),
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
                true => Some(tls_options(&settings, None, errors)?),
                false => None,
            };
            let kinds = settings.kinds;
            Question::Same(kinds::question(probe?, kinds, tls, reader, errors)?)
        }
        Probe::Http => http(settings_http(&settings, None, reader, errors)?),
        Probe::Https => {
            let name = settings.host.as_ref().map(|host| host.value.as_str());
            let tls = tls_options(&settings, name, errors)?;
            http(settings_http(&settings, Some(tls), reader, errors)?)
        }
        Probe::Grpc => {
            let name = settings.authority.as_ref().map(|name| name.value.as_str());
            let tls = match settings.tls.as_ref()?.value {
                true => Some(tls_options(&settings, name, errors)?),
                false => None,
            };
            let metadata = match &settings.headers {
                Some(headers) => metadata(headers, errors)?,
                None => Vec::new(),
            };
            Question::Grpc {
                metadata,
                service: settings.service?.value,
                authority: settings.authority.map(|authority| authority.value),
                accept_status: settings.accept_status?.value,
                tls,
                watch: settings.watch?.value,
            }
        }
    };
    Some(Some(Checks {
        policy: policy?,
        port: settings.port.map(|port| port.value),
        question,
        egress: egress?,
    }))
}

/// Headers as gRPC metadata: names in lower case, none that the call sets itself. Binary values
/// (`-bin`) would have to be in base64, which nobody checks here, so they are refused.
fn metadata(
    headers: &At<Vec<(String, String)>>,
    errors: &mut Errors<'_>,
) -> Option<Vec<(String, String)>> {
    let mut metadata = Vec::new();
    for (name, value) in &headers.value {
        let name = name.to_ascii_lowercase();
        if matches!(name.as_str(), "te" | "content-type") || name.starts_with("grpc-") {
            errors.add(
                headers.span.clone(),
                format!("header `{name}` cannot be set for gRPC"),
                "remove it: the prober sets this header itself",
            );
            return None;
        }
        if name.ends_with("-bin") {
            errors.add(
                headers.span.clone(),
                format!("header `{name}` would be binary metadata, which is not offered"),
                "use a name that does not end in -bin",
            );
            return None;
        }
        metadata.push((name, value.clone()));
    }
    Some(metadata)
}

fn http((probe, host): (HttpProbe, Option<String>)) -> Question {
    Question::Http { probe, host }
}

fn settings_http(
    settings: &Settings,
    tls: Option<TlsOptions>,
    reader: &Reader<'_>,
    errors: &mut Errors<'_>,
) -> Option<(HttpProbe, Option<String>)> {
    let method = settings.method.as_ref()?;
    let bodies = [
        (
            "expect_body",
            settings.expect_body.as_ref().map(|at| &at.span),
        ),
        (
            "expect_body_regex",
            settings.expect_body_regex.as_ref().map(|at| &at.span),
        ),
        (
            "degraded_body",
            settings.degraded_body.as_ref().map(|at| &at.span),
        ),
    ];
    for (name, body) in bodies {
        let (Some(body), "HEAD") = (body, method.value) else {
            continue;
        };
        let span = if reader.own("method").is_some() {
            &method.span
        } else {
            body
        };
        errors.add(
            span.clone(),
            format!("`{name}` can never be met: answers to HEAD have no body"),
            format!("write method = \"GET\" or remove `{name}`"),
        );
    }
    let drain_status = drain_status(settings, reader, errors)?;
    let probe = HttpProbe {
        degraded_body: settings.degraded_body.as_ref().map(|at| at.value.clone()),
        drain_status,
        drain_header: settings.drain_header.as_ref().map(|at| at.value.clone()),
        method: method.value.into(),
        path: settings.path.as_ref()?.value.clone(),
        host: String::new(),
        headers: match &settings.headers {
            Some(headers) => headers.value.clone(),
            None => Vec::new(),
        },
        expect_status: settings.expect_status.as_ref()?.value.clone(),
        expect_body: settings.expect_body.as_ref().map(|body| body.value.clone()),
        expect_body_regex: settings
            .expect_body_regex
            .as_ref()
            .map(|regex| regex.value.clone()),
        reuse: match &settings.reuse {
            None => None,
            Some(max_age) => Some(Reuse {
                max_age: max_age.value,
                max_uses: settings.reuse_limit.as_ref()?.value,
            }),
        },
        tls,
    };
    Some((probe, settings.host.as_ref().map(|host| host.value.clone())))
}

/// No status can say both that all is well and that the backend wants to leave.
fn drain_status(
    settings: &Settings,
    reader: &Reader<'_>,
    errors: &mut Errors<'_>,
) -> Option<Vec<StatusRange>> {
    let good = settings.expect_status.as_ref()?;
    let Some(drain) = &settings.drain_status else {
        return Some(Vec::new());
    };
    for range in &drain.value {
        if good.value.iter().any(|good| good.overlaps(*range)) {
            let span = if reader.own("drain_status").is_some() {
                &drain.span
            } else {
                &good.span
            };
            errors.add(
                span.clone(),
                "`drain_status` and `expect_status` have a status code in common",
                "take it out of one of the two",
            );
            return None;
        }
    }
    Some(drain.value.clone())
}

fn tls_options(
    settings: &Settings,
    authority: Option<&str>,
    errors: &mut Errors<'_>,
) -> Option<TlsOptions> {
    let sni = match &settings.sni {
        Some(sni) => Some(sni.value.clone()),
        None => authority.and_then(name_in),
    };
    let client = match (&settings.client_cert, &settings.client_key) {
        (Some(certificate), Some(key)) => Some(ClientCertificate {
            certificate: certificate.value.clone(),
            key: key.value.clone(),
        }),
        (None, None) => None,
        (Some(At { span, .. }), None) | (None, Some(At { span, .. })) => {
            errors.add(
                span.clone(),
                "`client_cert` and `client_key` belong together, and one is missing",
                "write both: client_cert = \"/etc/lb/probe.pem\", client_key = \"/etc/lb/probe.key\"",
            );
            return None;
        }
    };
    Some(TlsOptions {
        client,
        sni,
        verify: settings.verify.as_ref()?.value,
        ca: settings.ca.as_ref().map(|ca| ca.value.clone()),
    })
}

/// The DNS name in an authority; `None` if there is an address.
fn name_in(authority: &str) -> Option<String> {
    let authority: http::uri::Authority = authority.parse().ok()?;
    let host = authority.host();
    rustls_pki_types::DnsName::try_from(host)
        .ok()
        .map(|_| host.to_string())
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

/// Keys that mean something only to a probe over TLS.
const TLS_KEYS: [&str; 5] = ["verify", "ca", "sni", "client_cert", "client_key"];

/// Reports keys of this very table that its kind of probe does not use. Inherited ones may be
/// meant for other services.
fn refuse_meaningless(reader: &Reader<'_>, probe: Probe, tls: bool, errors: &mut Errors<'_>) {
    for key in HEALTH.keys {
        let Some(span) = reader.key_span(key.name) else {
            continue;
        };
        let users = users(key.name);
        if !users.contains(&probe) {
            let names: Vec<String> = users
                .iter()
                .map(|user| format!("\"{}\"", user.name()))
                .collect();
            errors.add(
                span,
                format!(
                    "`{}` has no meaning with probe = \"{}\"",
                    key.name,
                    probe.name()
                ),
                format!("remove it, or write probe = {}", names.join(" or ")),
            );
        } else if probe != Probe::Https && !tls && TLS_KEYS.contains(&key.name) {
            errors.add(
                span,
                format!("`{}` has no meaning without TLS", key.name),
                "add tls = true or remove it",
            );
        }
    }
}

/// The kinds of probe that use a key.
fn users(key: &str) -> &'static [Probe] {
    use Probe::{
        Agent, Dns, Exec, Grpc, Http, Https, Ldap, Mysql, None, Postgres, Redis, Smtp, Tcp,
    };
    match key {
        "probe" => &[
            None, Tcp, Http, Https, Grpc, Redis, Postgres, Mysql, Smtp, Ldap, Dns, Exec, Agent,
        ],
        "headers" => &[Http, Https, Grpc],
        "path" | "method" | "host" | "expect_status" | "expect_body" | "expect_body_regex"
        | "degraded_body" | "drain_status" | "drain_header" | "reuse" | "reuse_limit"
        | "degraded_weight" => &[Http, Https],
        // The contract's own example has `service` beside an HTTP probe: it is a warning there.
        "service" => &[Grpc, Http, Https],
        "authority" | "accept_status" | "watch" => &[Grpc],
        "tls" => &[Grpc, Tcp, Redis, Smtp, Ldap],
        key if TLS_KEYS.contains(&key) => &[Https, Grpc, Tcp, Redis, Smtp, Ldap],
        "half_open" | "script" => &[Tcp],
        "user" => &[Redis, Postgres, Mysql],
        "password_file" | "role" => &[Redis],
        "database" => &[Postgres],
        "hello" => &[Smtp],
        "query" | "query_type" | "expect_rcode" | "expect_answer" => &[Dns],
        "command" => &[Exec],
        "via" | "source" | "mark" | "interface" => &[
            Tcp, Http, Https, Grpc, Redis, Postgres, Mysql, Smtp, Ldap, Dns, Agent,
        ],
        _ => &[
            Tcp, Http, Https, Grpc, Redis, Postgres, Mysql, Smtp, Ldap, Dns, Exec, Agent,
        ],
    }
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
