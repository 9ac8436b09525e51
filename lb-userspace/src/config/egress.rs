//! How probes leave this host: `via`, `source`, `mark`, `interface` and `proxy_protocol` of
//! `[service.health]`.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use super::health::{Checks, Probe};
use super::node::bad_interface;
use super::reader::{At, Errors, Problem, Reader, Value};
use super::schema::Key;
use super::service::{BackendDraft, Draft};
use super::value::{self, shown};
use crate::model::{Egress, Endpoint, Forwarding, ProxyProtocol, Via};

/// What the tables say, value by value.
#[derive(Debug)]
pub struct Settings {
    /// Whether it is the VIP.
    via_vip: Option<At<bool>>,
    source: Option<At<IpAddr>>,
    mark: Option<At<u32>>,
    interface: Option<At<String>>,
    proxy_protocol: Option<At<Option<ProxyProtocol>>>,
}

/// What holds for the probes of one service.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    via_vip: bool,
    source: Option<IpAddr>,
    mark: Option<u32>,
    interface: Option<String>,
    /// `None`: no header.
    proxy_protocol: Option<ProxyProtocol>,
    /// Where the service itself, not its defaults, asks for `via = "vip"`.
    own_via: Option<Range<usize>>,
    /// Where the service itself, not its defaults, has `source`.
    own_source: Option<Range<usize>>,
}

/// Reads every key and reports what is wrong with any by itself.
pub fn read(reader: &Reader<'_>, errors: &mut Errors<'_>) -> Settings {
    Settings {
        via_vip: reader.get(errors, "via", |key, value| {
            Ok(value::choice(key, value)? == "vip")
        }),
        source: reader.get(errors, "source", host),
        mark: reader.get(errors, "mark", value::integer),
        interface: reader.get(errors, "interface", interface),
        proxy_protocol: reader.get(errors, "proxy_protocol", |key, value| {
            Ok(match value::choice(key, value)? {
                "v1" => Some(ProxyProtocol::V1),
                "v2" => Some(ProxyProtocol::V2),
                _ => None,
            })
        }),
    }
}

/// Puts the settings of a service together. What is inherited and does not fit may be meant for
/// other services. `None` only if there are errors.
pub fn rules(
    settings: &Settings,
    reader: &Reader<'_>,
    probe: Probe,
    errors: &mut Errors<'_>,
) -> Option<Rules> {
    if probe == Probe::Exec {
        return Some(Rules::default());
    }
    let own = |key| reader.own(key).map(Value::span);
    let via_vip = settings.via_vip.as_ref()?;
    let mut rules = Rules {
        via_vip: via_vip.value,
        source: settings.source.as_ref().map(|at| at.value),
        mark: settings.mark.as_ref().map(|at| at.value),
        interface: settings.interface.as_ref().map(|at| at.value.clone()),
        proxy_protocol: match probe {
            // What goes by UDP has no connection that it could begin.
            Probe::Dns => None,
            _ => settings.proxy_protocol.as_ref()?.value,
        },
        own_via: own("via").filter(|_| via_vip.value),
        own_source: own("source"),
    };
    if !via_vip.value {
        return Some(rules);
    }
    for key in ["mark", "interface"] {
        if let Some(span) = own(key) {
            if rules.own_via.is_none() {
                // The service's own word goes before an inherited one.
                rules.via_vip = false;
                return Some(rules);
            }
            errors.add(
                span,
                format!("`{key}` cannot stand with via = \"vip\", which sends by itself"),
                format!("remove `{key}`, or write via = \"direct\""),
            );
            return None;
        }
    }
    Some(rules)
}

impl Rules {
    /// Takes the PROXY protocol's header away; whether there was one.
    pub fn drop_header(&mut self) -> bool {
        self.proxy_protocol.take().is_some()
    }

    /// Target and way of the probe of the backend at `address`, whose `port` is asked, of a service
    /// at `vip` that is forwarded so.
    pub fn of(
        &self,
        address: IpAddr,
        port: u16,
        vip: Endpoint,
        forwarding: Forwarding,
    ) -> (SocketAddr, Egress) {
        let via = (self.via_vip && forwarding != Forwarding::Nat).then_some(Via {
            backend: address,
            forwarding,
        });
        let target = SocketAddr::new(if via.is_some() { vip.ip() } else { address }, port);
        let fits = |source: &IpAddr| source.is_ipv4() == target.is_ipv4();
        let source = self.source.filter(fits);
        let egress = match via {
            Some(_) => Egress {
                source,
                proxy_protocol: self.proxy_protocol,
                via,
                ..Egress::default()
            },
            None => Egress {
                source,
                mark: self.mark,
                interface: self.interface.clone(),
                proxy_protocol: self.proxy_protocol,
                via,
            },
        };
        (target, egress)
    }
}

/// Checks a service's rules against its forwarding and its addresses.
pub fn check(service: &Draft, errors: &mut Errors<'_>) {
    let (Some(checks), Some(forwarding)) = (&service.checks, service.forwarding) else {
        return;
    };
    for checks in checks {
        check_one(&checks.egress, service, forwarding, errors);
    }
    for backend in &service.backends {
        check_asked(checks, backend, forwarding, errors);
    }
}

/// Checks where a backend says that it is to be asked.
fn check_asked(
    checks: &[Checks],
    backend: &BackendDraft,
    forwarding: Forwarding,
    errors: &mut Errors<'_>,
) {
    let by_vip = |checks: &Checks| checks.egress.via_vip && forwarding != Forwarding::Nat;
    if let Some(address) = &backend.probe_address {
        let span = address.span.clone();
        if checks.iter().any(by_vip) {
            errors.add(
                span,
                "`probe_address` with via = \"vip\": such a probe is sent to the VIP",
                "remove it, or write via = \"direct\"",
            );
        } else if backend.host.is_some() {
            errors.add(
                span,
                "`probe_address` of a backend that is written as a host name, which may have many addresses",
                "remove it, or write the backends by their addresses",
            );
        }
    }
    if let (Some(port), 2..) = (&backend.probe_port, checks.len()) {
        errors.add(
            port.span.clone(),
            "`probe_port` in a service with several probes: which of them is meant?",
            "write `port` in each [[service.health]]",
        );
    }
    let written = backend.probe_address.as_ref().map(|at| &at.span);
    let written = written.or(backend.probe_port.as_ref().map(|at| &at.span));
    if let (Some(span), true) = (written, checks.is_empty()) {
        errors.add(
            span.clone(),
            "`probe_address` and `probe_port` have no meaning with probe = \"none\"",
            "remove them, or write what is to be asked in [service.health]",
        );
    }
}

fn check_one(rules: &Rules, service: &Draft, forwarding: Forwarding, errors: &mut Errors<'_>) {
    if let (Some(span), Forwarding::Nat) = (&rules.own_via, forwarding) {
        errors.add(
            span.clone(),
            "`via = \"vip\"` with forwarding = \"nat\": the backend gets its traffic at its own address",
            "remove it: the direct probe goes where the traffic does",
        );
        return;
    }
    let (Some(span), Some(source), Some(vip)) = (&rules.own_source, rules.source, &service.address)
    else {
        return;
    };
    let mut addresses = service
        .backends
        .iter()
        .filter_map(|backend| backend.address.as_ref());
    let other = addresses.find_map(|address| {
        let (target, _) = rules.of(address.value.ip(), 0, vip.value, forwarding);
        (target.is_ipv4() != source.is_ipv4()).then_some(target.ip())
    });
    if let Some(other) = other {
        errors.add(
            span.clone(),
            format!(
                "`source` is {source}, from which {other} cannot be probed: the families differ"
            ),
            "write an address of this host of the other family, or remove `source`",
        );
    }
}

/// The address of a host, without a port.
pub fn host(key: &Key, value: &Value<'_>) -> Result<IpAddr, Problem> {
    let written = value::text(key, value)?;
    let usable = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast();
    written.parse().ok().filter(usable).ok_or_else(|| {
        Problem::new(
            format!(
                "`{}` is not the address of a host: \"{}\"",
                key.name,
                shown(&written)
            ),
            format!(
                "write the address without a port: {} = {}",
                key.name,
                key.kind.example()
            ),
        )
    })
}

fn interface(key: &Key, value: &Value<'_>) -> Result<String, Problem> {
    let name = value::text(key, value)?;
    match bad_interface(&name) {
        Some((message, help)) => Err(Problem::new(message, help)),
        None => Ok(name),
    }
}
