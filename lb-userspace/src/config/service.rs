//! `[[service]]` and its backends.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::announce::{self, AnnounceDraft};
use super::egress;
use super::health::{Asked, Checks};
use super::mode::{self, ModeDraft};
use super::places::{ServicePlaces, health_key};
use super::pool::{self, PoolDraft};
use super::reader::{At, Errors, Problem, Reader, Value};
use super::schema::{BACKEND, HEALTH, Key, SERVICE};
use super::value::Place;
use super::{rules, several, syntax, value};
use crate::model::{
    Affinity, Backend, Endpoint, Family, Forwarding, NamedBackend, OnDeath, PanicAction,
    PanicRules, PassiveHttp, PassiveRules, Protocol, Question, Service, backend_text, server_id,
};

/// Longest name, in bytes. Names stand in tables, metrics and events.
const LONGEST_NAME: usize = 64;

/// A service as far as it could be read: each part is `None` if it is wrong, which is then among
/// the errors.
#[derive(Debug)]
pub struct Draft {
    pub name: Option<At<String>>,
    pub address: Option<At<Endpoint>>,
    pub protocol: Option<Protocol>,
    pub forwarding: Option<Forwarding>,
    pub affinity: Option<Affinity>,
    pub mode: ModeDraft,
    /// As written, if it is.
    pub on_death: Option<At<OnDeath>>,
    /// As written, if it is.
    pub syn_rescue: Option<At<bool>>,
    pub server_id_length: Option<u8>,
    pub panic_threshold: Option<At<u8>>,
    pub panic_min_healthy: Option<At<u32>>,
    panic_action: Option<At<PanicAction>>,
    /// Whether the action is written and wrong.
    bad_panic_action: bool,
    panic_exclude_refused: Option<bool>,
    drain_deadline: Option<Duration>,
    pub announce: AnnounceDraft,
    pool: PoolDraft,
    /// None for `probe = "none"`.
    pub checks: Option<Vec<Checks>>,
    /// As written, if it is.
    pub passive: Option<At<bool>>,
    pub passive_http: Option<At<PassiveHttp>>,
    pub backends: Vec<BackendDraft>,
    /// Whether all of `backends` are tables.
    complete: bool,
    pub places: ServicePlaces,
}

/// A backend as far as it could be read.
#[derive(Debug)]
pub struct BackendDraft {
    /// `None` also if it is not written.
    pub name: Option<At<String>>,
    /// Whether the name is written and wrong.
    bad_name: bool,
    /// `None` also if it is written by name.
    pub address: Option<At<SocketAddr>>,
    /// Host name and port, if it is written by name.
    pub host: Option<At<(String, u16)>>,
    /// How many octets, and as a number. `None` also if it is not written.
    pub server_id: Option<At<(u8, u64)>>,
    /// Whether the server ID is written and wrong.
    pub bad_server_id: bool,
    pub probe_address: Option<At<IpAddr>>,
    pub probe_port: Option<At<u16>>,
    /// Whether one of the two is written and wrong.
    bad_probe: bool,
    pub weight: Option<At<u32>>,
    tier: Option<u8>,
    pub fallback: Option<At<bool>>,
}

/// Reads one service. What it says about itself is checked here and in
/// [`rules::within_service`].
pub fn read<'a>(
    reader: &'a Reader<'a>,
    defaults: Option<&'a Reader<'a>>,
    errors: &mut Errors<'_>,
) -> Draft {
    reader.refuse_unknown(errors);
    let protocol = reader.get(errors, "protocol", protocol).map(|at| at.value);
    let health = health_readers(reader, defaults, errors);
    let checks = protocol.and_then(|protocol| several::read(health.as_deref()?, protocol, errors));
    let tables = reader.own("backend").map_or(Some(Vec::new()), |value| {
        syntax::tables(&BACKEND, value, errors)
    });
    let backends: Vec<BackendDraft> = tables
        .iter()
        .flatten()
        .map(|reader| read_backend(reader, errors))
        .collect();
    let panic_action = reader.get(errors, "panic_action", panic_action);
    let mode = mode::read(reader, errors);
    let draft = Draft {
        pool: pool::read(reader, mode.is_active_passive(), errors),
        panic_min_healthy: reader.get(errors, "panic_min_healthy", value::integer),
        bad_panic_action: reader.is_wrong("panic_action", panic_action.as_ref()),
        panic_action,
        panic_exclude_refused: reader
            .get(errors, "panic_exclude_refused", value::boolean)
            .map(|at| at.value),
        name: reader.get(errors, "name", name),
        address: reader.get(errors, "address", vip),
        protocol,
        forwarding: reader
            .get(errors, "forwarding", forwarding)
            .map(|at| at.value),
        affinity: reader.get(errors, "affinity", affinity).map(|at| at.value),
        mode,
        on_death: reader.get(errors, "on_death", on_death),
        syn_rescue: reader.get(errors, "syn_rescue", value::boolean),
        server_id_length: reader
            .get(errors, "quic_server_id_length", value::integer)
            .map(|at| at.value),
        panic_threshold: reader.get(errors, "panic_threshold", value::integer),
        drain_deadline: reader
            .get(errors, "drain_deadline", value::duration)
            .map(|at| at.value),
        announce: announce::read(reader, errors),
        passive: reader.get(errors, "passive", passive),
        passive_http: reader.get(errors, "passive_http", passive_http),
        checks,
        places: places(reader, health.as_deref().unwrap_or_default(), &backends),
        backends,
        complete: tables.is_some(),
    };
    if draft.complete {
        rules::within_service(&draft, errors);
    }
    draft
}

/// The service's health tables, each over the defaults: `[service.health]`, or `[[service.health]]`
/// for each of several. `None` if one is not a table.
fn health_readers<'a>(
    reader: &'a Reader<'a>,
    defaults: Option<&'a Reader<'a>>,
    errors: &mut Errors<'_>,
) -> Option<Vec<Reader<'a>>> {
    let tables = match reader.own("health") {
        Some(value) if value.get_ref().is_array() => syntax::tables(&HEALTH, value, errors)?,
        Some(value) => vec![syntax::table(&HEALTH, value, errors)?],
        None => Vec::new(),
    };
    let tables = match tables.is_empty() {
        true => vec![Reader::absent(&HEALTH, reader.span.clone())],
        false => tables,
    };
    let over_defaults = |own: Reader<'a>| {
        own.refuse_unknown(errors);
        match defaults {
            Some(defaults) => own.inherit(defaults),
            None => own,
        }
    };
    Some(tables.into_iter().map(over_defaults).collect())
}

fn read_backend(reader: &Reader<'_>, errors: &mut Errors<'_>) -> BackendDraft {
    reader.refuse_unknown(errors);
    let name = reader.get(errors, "name", name);
    let server_id = reader.get(errors, "quic_server_id", value::hex);
    let (address, host) = match reader.get(errors, "address", backend_address) {
        None => (None, None),
        Some(At { value, span }) => match value {
            Place::Address(value) => (Some(At { value, span }), None),
            Place::Name(host, port) => {
                let value = (host, port);
                (None, Some(At { value, span }))
            }
        },
    };
    let probe_address = reader.get(errors, "probe_address", egress::host);
    let probe_port = reader.get(errors, "probe_port", value::integer);
    BackendDraft {
        bad_probe: reader.is_wrong("probe_address", probe_address.as_ref())
            || reader.is_wrong("probe_port", probe_port.as_ref()),
        probe_address,
        probe_port,
        host,
        bad_server_id: reader.is_wrong("quic_server_id", server_id.as_ref()),
        server_id,
        bad_name: reader.is_wrong("name", name.as_ref()),
        name,
        address,
        weight: reader.get(errors, "weight", value::integer),
        tier: reader
            .get(errors, "tier", value::integer)
            .map(|at| at.value),
        fallback: reader.get(errors, "fallback", value::boolean),
    }
}

fn places(
    reader: &Reader<'_>,
    health_tables: &[Reader<'_>],
    backends: &[BackendDraft],
) -> ServicePlaces {
    let own = SERVICE.keys.iter().filter_map(|key| {
        let value = reader.written(key.name)?;
        Some((key.name.to_string(), value.span()))
    });
    let health = health_tables.iter().enumerate().flat_map(|(check, table)| {
        HEALTH.keys.iter().filter_map(move |key| {
            let value = table.written(key.name)?;
            Some((health_key(check, key.name), value.span()))
        })
    });
    ServicePlaces {
        header: reader
            .own("name")
            .map_or_else(|| reader.span.clone(), Value::span),
        keys: own.chain(health).collect(),
        grpc_service: health_tables
            .iter()
            .map(|health| health.key_span("service"))
            .collect(),
        backends: backends
            .iter()
            .filter(|backend| backend.host.is_none())
            .map(|backend| backend.address.as_ref().map_or(0..0, |at| at.span.clone()))
            .collect(),
    }
}

impl Draft {
    /// Who gets the flows in panic, if that is written.
    pub fn panic_action(&self) -> Option<&At<PanicAction>> {
        self.panic_action.as_ref()
    }

    /// Whether its probes are commands.
    pub fn runs_commands(&self) -> bool {
        self.checks.iter().flatten().any(Checks::runs_commands)
    }

    /// The service and those of its backends that are written by name, if nothing in it is wrong.
    pub fn finish(self) -> Option<(Service, Vec<NamedBackend>)> {
        let checks = self.checks?;
        let name: Arc<str> = Arc::from(self.name?.value);
        let address = self.address.as_ref()?.value;
        let (affinity, forwarding) = (self.affinity?, self.forwarding?);
        let server_id_length = match affinity {
            Affinity::Quic => self.server_id_length?,
            Affinity::Flow | Affinity::Client => 0,
        };
        let mut backends = Vec::new();
        let mut names = Vec::new();
        for draft in self.backends {
            let host = draft.host.as_ref().map(|at| at.value.0.clone());
            let way = (address, forwarding);
            let backend = draft.finish(&name, way, server_id_length, &checks)?;
            match host {
                None => backends.push(backend),
                Some(host) => names.push(NamedBackend {
                    service: name.clone(),
                    question: Question {
                        host,
                        family: Family::of(address.ip()),
                    },
                    template: backend,
                }),
            }
        }
        self.complete.then_some(())?;
        let protocol = self.protocol?;
        let is_nat_tcp = protocol == Protocol::Tcp && forwarding == Forwarding::Nat;
        let on_death = if is_nat_tcp {
            OnDeath::Reset
        } else {
            OnDeath::Rehash
        };
        let panic_threshold = self.panic_threshold?.value;
        if self.bad_panic_action {
            return None;
        }
        let mut all = backends
            .iter()
            .chain(names.iter().map(|named| &named.template));
        let action = match self.panic_action {
            Some(at) => at.value,
            None if all.any(|backend| backend.fallback) => PanicAction::Fallback,
            None => PanicAction::All,
        };
        let panic = PanicRules {
            min_healthy: self.panic_min_healthy?.value,
            action,
            exclude_refused: self.panic_exclude_refused?,
        };
        let service = Service {
            name,
            address,
            protocol,
            forwarding,
            affinity,
            panic_threshold: if self.mode.is_active_passive() {
                0
            } else {
                panic_threshold
            },
            panic,
            mode: self.mode.finish()?,
            on_death: self.on_death.map_or(on_death, |at| at.value),
            // Who asks for one backend for each client does not want a connection to go to another.
            syn_rescue: self
                .syn_rescue
                .map_or(is_nat_tcp && affinity == Affinity::Flow, |at| at.value),
            server_id_length,
            drain_deadline: self.drain_deadline?,
            announce: self.announce.finish()?,
            slow_start: self.pool.slow_start()?,
            pool: self.pool.finish()?,
            passive: PassiveRules {
                connections: self
                    .passive
                    .map_or(protocol == Protocol::Tcp && !checks.is_empty(), |at| {
                        at.value
                    }),
                http: self.passive_http?.value,
                max_ejection_percent: self.pool.passive_max_ejection_percent()?,
            },
            health: checks.into_iter().map(|checks| checks.policy).collect(),
            backends,
        };
        Some((service, names))
    }
}

impl BackendDraft {
    /// Its address and port, 0 if packets keep one of several.
    ///
    /// The unspecified address of the VIP's family stands for those of a name.
    pub fn at(&self, vip: Endpoint) -> Option<SocketAddr> {
        let address = match (&self.address, &self.host) {
            (Some(address), _) => address.value,
            (None, Some(host)) => SocketAddr::new(Family::of(vip.ip()).any(), host.value.1),
            (None, None) => return None,
        };
        Some(match (address.port(), vip.port()) {
            // The same, and clearer.
            (0, Some(port)) => SocketAddr::new(address.ip(), port),
            _ => address,
        })
    }

    /// Its server ID of so many octets: as written, else the last ones of its address.
    pub fn server_id(&self, length: u8) -> Option<u64> {
        if let Some(written) = &self.server_id {
            return Some(written.value.1);
        }
        Some(server_id(self.address.as_ref()?.value.ip(), length))
    }

    /// Where its address or name stands.
    pub fn span(&self) -> Option<Range<usize>> {
        let address = self.address.as_ref().map(|at| at.span.clone());
        address.or_else(|| self.host.as_ref().map(|at| at.span.clone()))
    }

    fn finish(
        self,
        service: &Arc<str>,
        (vip, forwarding): (Endpoint, Forwarding),
        server_id_length: u8,
        checks: &[Checks],
    ) -> Option<Backend> {
        if self.bad_name || self.bad_probe {
            return None;
        }
        let address = self.at(vip)?;
        let asked = Asked {
            ip: self.probe_address.as_ref().map(|at| at.value),
            port: self.probe_port.as_ref().map(|at| at.value),
        };
        let server_id = match server_id_length {
            0 => None,
            // Each of a name's addresses has its own.
            _ if self.host.is_some() => None,
            length => Some(self.server_id(length)?),
        };
        let name: Arc<str> = match (self.name, &self.host) {
            (Some(name), _) => name.value.into(),
            (None, Some(host)) => host.value.0.as_str().into(),
            (None, None) => backend_text(address).into(),
        };
        Some(Backend {
            address,
            server_id,
            weight: self.weight?.value,
            tier: self.tier?,
            fallback: self.fallback?.value,
            probes: (checks.iter())
                .map(|checks| {
                    let host = self.host.as_ref().map(|at| at.value.0.as_str());
                    Arc::new(checks.of(address, host, asked, (vip, forwarding), service, &name))
                })
                .collect(),
            name,
        })
    }
}

fn protocol(key: &Key, value: &Value<'_>) -> Result<Protocol, Problem> {
    Ok(match value::choice(key, value)? {
        "udp" => Protocol::Udp,
        _ => Protocol::Tcp,
    })
}

fn forwarding(key: &Key, value: &Value<'_>) -> Result<Forwarding, Problem> {
    Ok(match value::choice(key, value)? {
        "dsr" => Forwarding::Dsr,
        "ipip" => Forwarding::Ipip,
        "gue" => Forwarding::Gue,
        _ => Forwarding::Nat,
    })
}

fn affinity(key: &Key, value: &Value<'_>) -> Result<Affinity, Problem> {
    Ok(match value::choice(key, value)? {
        "client" => Affinity::Client,
        "quic" => Affinity::Quic,
        _ => Affinity::Flow,
    })
}

fn passive(key: &Key, value: &Value<'_>) -> Result<bool, Problem> {
    Ok(value::choice(key, value)? == "probe")
}

fn passive_http(key: &Key, value: &Value<'_>) -> Result<PassiveHttp, Problem> {
    Ok(match value::choice(key, value)? {
        "report" => PassiveHttp::Report,
        "eject" => PassiveHttp::Eject,
        _ => PassiveHttp::Off,
    })
}

fn panic_action(key: &Key, value: &Value<'_>) -> Result<PanicAction, Problem> {
    Ok(match value::choice(key, value)? {
        "fail" => PanicAction::Fail,
        "fallback" => PanicAction::Fallback,
        _ => PanicAction::All,
    })
}

fn on_death(key: &Key, value: &Value<'_>) -> Result<OnDeath, Problem> {
    Ok(match value::choice(key, value)? {
        "reset" => OnDeath::Reset,
        _ => OnDeath::Rehash,
    })
}

/// A name that can stand in `SERVICE/BACKEND`, in a metric's label and in a shell unquoted.
pub fn name(key: &Key, value: &Value<'_>) -> Result<String, Problem> {
    let text = value::text(key, value)?;
    if text.is_empty() {
        return Err(Problem::new(
            "`name` is empty",
            "write a name such as \"web\"",
        ));
    }
    if text.len() > LONGEST_NAME {
        return Err(Problem::new(
            format!("`name` is longer than {LONGEST_NAME} characters"),
            "write a shorter one",
        ));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(bad) = text.chars().find(|c| !good(*c)) {
        let mended: String = text
            .chars()
            .map(|c| if good(c) { c } else { '-' })
            .collect();
        return Err(Problem::new(
            format!("`name` has {bad:?}, which a name cannot have"),
            format!("use letters, digits, `.`, `_` and `-`: name = \"{mended}\""),
        ));
    }
    Ok(text)
}

/// An address clients can connect to from other hosts.
fn vip(key: &Key, value: &Value<'_>) -> Result<Endpoint, Problem> {
    let address = value::endpoint(key, value)?;
    match unusable(address.ip())
        .or_else(|| address.ip().is_loopback().then_some("a loopback address"))
    {
        Some(what) => Err(Problem::new(
            format!("the VIP is {what}: {}", address.ip()),
            "write the address clients connect to, for example \"203.0.113.10:80\"",
        )),
        None => Ok(address),
    }
}

fn backend_address(key: &Key, value: &Value<'_>) -> Result<Place, Problem> {
    let Place::Address(address) = value::server(key, value)? else {
        return value::server(key, value);
    };
    match unusable(address.ip()) {
        Some(what) => Err(Problem::new(
            format!("the backend's address is {what}: {}", address.ip()),
            "write the server's own address, for example \"10.0.0.11:8080\"",
        )),
        None => Ok(Place::Address(address)),
    }
}

fn unusable(ip: IpAddr) -> Option<&'static str> {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if ip.is_unspecified() {
        Some("the unspecified address")
    } else if ip.is_multicast() {
        Some("a multicast address")
    } else if broadcast {
        Some("the broadcast address")
    } else {
        None
    }
}
