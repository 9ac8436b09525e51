//! What must hold between values: inside one service and among all of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_common::abi::{MAX_BACKENDS, MAX_RANGES, MAX_SERVICES};

use super::egress;
use super::health::Checks;
use super::reader::Errors;
use super::service::{BackendDraft, Draft};
use crate::model::{
    Affinity, Endpoint, Forwarding, Node, OnDeath, PanicAction, PassiveHttp, Ports, Protocol,
    backend_text, host_text,
};

/// Most services: the first number of the table means "none".
const MOST_SERVICES: usize = MAX_SERVICES as usize - 1;
/// Most backends of all services together.
const MOST_BACKENDS: usize = MAX_BACKENDS as usize - 1;

/// Most services of one VIP and protocol with several ports: while a change is carried out, both the
/// old and the new ones stand.
const MOST_RANGES: usize = MAX_RANGES / 2;

/// Checks one service.
pub fn within_service(service: &Draft, errors: &mut Errors<'_>) {
    tcp_flows(service, errors);
    panic(service, errors);
    if service.backends.is_empty() {
        errors.add(
            service.places.header.clone(),
            "the service has no backends",
            "add [[service.backend]] with address = \"10.0.0.11:8080\" below it",
        );
        return;
    }
    let weights: Option<u32> = service
        .backends
        .iter()
        .map(|backend| backend.weight.as_ref().map(|weight| weight.value))
        .sum();
    if let (Some(0), Some(first)) = (weights, &service.backends[0].weight) {
        errors.add(
            first.span.clone(),
            "all weights of the service are 0, so nothing would get traffic",
            "give at least one backend a weight above 0; 100 is usual",
        );
    }
    let mut names = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    let mut hosts = BTreeMap::new();
    for backend in &service.backends {
        if let Some(name) = &backend.name
            && let Some(()) = names.insert(name.value.as_str(), ())
        {
            errors.add(
                name.span.clone(),
                format!("the service has two backends named \"{}\"", name.value),
                "rename one of the two",
            );
        }
        if let Some(host) = &backend.host {
            if hosts.insert(&host.value, ()).is_some() {
                errors.add(
                    host.span.clone(),
                    format!("the service has two backends named by {}", host.value.0),
                    "remove one of the two; for a larger share raise `weight`",
                );
            }
            if let Some(vip) = &service.address
                && let Some(at) = backend.at(vip.value)
            {
                against_vip(service, backend, vip.value, at, errors);
            }
            continue;
        }
        let Some(address) = &backend.address else {
            continue;
        };
        let at = match &service.address {
            Some(vip) => backend.at(vip.value).unwrap_or(address.value),
            None => address.value,
        };
        if addresses.insert(at, ()).is_some() {
            errors.add(
                address.span.clone(),
                format!("the service has two backends at {}", backend_text(at)),
                "remove one of the two; for a larger share raise `weight`",
            );
        }
        if let Some(vip) = &service.address {
            against_vip(service, backend, vip.value, at, errors);
        }
    }
    probe_ports(service, errors);
    egress::check(service, errors);
    server_ids(service, errors);
}

/// Reports the first backend that is probed and has no port to be asked at.
fn probe_ports(service: &Draft, errors: &mut Errors<'_>) {
    let (Some(checks), Some(vip)) = (&service.checks, &service.address) else {
        return;
    };
    if checks.iter().all(Checks::has_port) {
        return;
    }
    let without = |backend: &&BackendDraft| {
        let at = backend.at(vip.value);
        backend.probe_port.is_none() && at.is_some_and(|at| at.port() == 0)
    };
    if let Some(backend) = service.backends.iter().find(without)
        && let Some(span) = backend.span()
    {
        errors.add(
            span,
            "the backend has no port of its own that could be probed",
            "add `port` to [service.health] or `probe_port` to the backend, or write probe = \"none\"",
        );
    }
}

/// Checks what is said of server IDs in QUIC connection IDs.
fn server_ids(service: &Draft, errors: &mut Errors<'_>) {
    let Some(affinity) = service.affinity else {
        return;
    };
    let place = |key: &str| service.places.keys.get(key).cloned();
    if affinity != Affinity::Quic {
        let length = place("quic_server_id_length").map(|span| (span, "quic_server_id_length"));
        let ids = service.backends.iter().filter_map(|backend| {
            let written = backend.server_id.as_ref()?;
            Some((written.span.clone(), "quic_server_id"))
        });
        for (span, key) in length.into_iter().chain(ids) {
            errors.add(
                span,
                format!(
                    "`{key}` has no meaning with affinity = \"{}\"",
                    affinity.name()
                ),
                "remove it, or write affinity = \"quic\"",
            );
        }
        return;
    }
    if service.protocol == Some(Protocol::Tcp) {
        errors.add(
            place("affinity").unwrap_or_else(|| service.places.header.clone()),
            "`affinity` is \"quic\" and the service is of TCP: QUIC runs over UDP",
            "write protocol = \"udp\", or affinity = \"client\"",
        );
    }
    let Some(length) = service.server_id_length else {
        return;
    };
    let mut ids = BTreeMap::new();
    for (number, backend) in service.backends.iter().enumerate() {
        if let (Some(_), Some(written)) = (&backend.host, &backend.server_id) {
            errors.add(
                written.span.clone(),
                "`quic_server_id` of a backend that is written by name, which may have several addresses",
                "remove it: each address gives a server ID of its own",
            );
            continue;
        }
        let (Some(address), false) = (&backend.address, backend.bad_server_id) else {
            continue;
        };
        let span = match &backend.server_id {
            Some(written) if written.value.0 != length => {
                errors.add(
                    written.span.clone(),
                    format!(
                        "`quic_server_id` has {} octets where `quic_server_id_length` is {length}",
                        written.value.0
                    ),
                    "write as many octets, two digits each, or change the length",
                );
                continue;
            }
            Some(written) => written.span.clone(),
            None => address.span.clone(),
        };
        let Some(id) = backend.server_id(length) else {
            continue;
        };
        let name = match &backend.name {
            Some(name) => name.value.clone(),
            None => format!("number {}", number + 1),
        };
        if let Some(other) = ids.insert(id, name) {
            let width = 2 * usize::from(length);
            errors.add(
                span,
                format!("the server ID {id:0width$x} is also that of backend {other}"),
                "give one of the two another quic_server_id",
            );
        }
    }
}

/// Checks what is said of TCP flows.
fn tcp_flows(service: &Draft, errors: &mut Errors<'_>) {
    let (Some(protocol), Some(forwarding)) = (service.protocol, service.forwarding) else {
        return;
    };
    match (&service.on_death, protocol, forwarding) {
        (Some(at), Protocol::Udp, _) if at.value == OnDeath::Reset => errors.add(
            at.span.clone(),
            "`on_death = \"reset\"` on a UDP service: UDP has no reset",
            "remove it: datagrams of a backend that is out go to another",
        ),
        (Some(at), Protocol::Tcp, Forwarding::Nat) if at.value == OnDeath::Rehash => errors.add(
            at.span.clone(),
            "`on_death = \"rehash\"` with forwarding = \"nat\": another backend knows nothing of \
             the connection, and the balancer already tells the client so",
            "remove it, or write on_death = \"reset\"",
        ),
        _ => {}
    }
    if let (Some(at), Protocol::Udp) = (&service.passive, protocol)
        && at.value
    {
        errors.add(
            at.span.clone(),
            "`passive = \"probe\"` on a UDP service: datagrams need no answer",
            "remove it",
        );
    }
    if let (Some(at), Some(checks), Protocol::Tcp) = (&service.passive, &service.checks, protocol)
        && at.value
        && checks.is_empty()
    {
        errors.add(
            at.span.clone(),
            "`passive = \"probe\"` with `probe = \"none\"`: nothing would let a backend back in",
            "give the service a probe, or remove it",
        );
    }
    if let Some(at) = &service.passive_http
        && at.value != PassiveHttp::Off
        && (protocol, forwarding) != (Protocol::Tcp, Forwarding::Nat)
    {
        errors.add(
            at.span.clone(),
            "`passive_http` without TCP by `forwarding = \"nat\"`: the backends' answers do not come \
             by this host",
            "remove it",
        );
    }
    if let (Some(at), Protocol::Udp) = (&service.syn_rescue, protocol)
        && at.value
    {
        errors.add(
            at.span.clone(),
            "`syn_rescue` on a UDP service: UDP has no SYN",
            "remove it",
        );
    }
}

/// Checks what is said of panic. A service with one active backend has none: traffic to one that is
/// not the active one is what that mode rules out.
fn panic(service: &Draft, errors: &mut Errors<'_>) {
    let fallbacks = || service.backends.iter().filter_map(|b| b.fallback.as_ref());
    let fallback = fallbacks().find(|fallback| fallback.value);
    if service.mode.is_active_passive() {
        let threshold = service.panic_threshold.as_ref();
        let threshold = threshold
            .filter(|at| at.value > 0 && service.places.keys.contains_key("panic_threshold"));
        let count = service.panic_min_healthy.as_ref().filter(|at| at.value > 0);
        let action = service.panic_action();
        let written = [
            threshold.map(|at| ("panic_threshold", &at.span)),
            count.map(|at| ("panic_min_healthy", &at.span)),
            action.map(|at| ("panic_action", &at.span)),
            fallback.map(|at| ("fallback", &at.span)),
        ];
        for (key, span) in written.into_iter().flatten() {
            errors.add(
                span.clone(),
                format!(
                    "`{key}` with mode = \"active_passive\": panic would send traffic to several \
                     backends"
                ),
                "remove it",
            );
        }
        return;
    }
    match (service.panic_action(), fallback) {
        (Some(at), None) if at.value == PanicAction::Fallback => errors.add(
            at.span.clone(),
            "`panic_action` is \"fallback\" and no backend has `fallback = true`",
            "add fallback = true to the backends that are to serve in panic",
        ),
        (Some(at), Some(_)) if at.value != PanicAction::Fallback => errors.add(
            at.span.clone(),
            format!(
                "with panic_action = \"{}\" the backend with `fallback = true` would never get \
                 traffic",
                at.value.name()
            ),
            "write panic_action = \"fallback\", or leave it out",
        ),
        _ => {}
    }
    if let Some(first) = fallback
        && service.backends.iter().all(|backend| {
            let fallback = backend.fallback.as_ref();
            fallback.is_none_or(|fallback| fallback.value)
        })
    {
        errors.add(
            first.span.clone(),
            "all backends of the service have `fallback = true`, so none takes traffic ordinarily",
            "remove it from those that do",
        );
    }
}

/// Checks the address of a backend against its service's.
fn against_vip(
    service: &Draft,
    backend: &BackendDraft,
    vip: Endpoint,
    address: SocketAddr,
    errors: &mut Errors<'_>,
) {
    let span = backend.span().unwrap_or(0..0);
    let forwarding = service.forwarding.unwrap_or(Forwarding::Nat);
    let wraps = match forwarding {
        Forwarding::Nat | Forwarding::Dsr => false,
        Forwarding::Ipip | Forwarding::Gue => true,
    };
    if address.is_ipv4() != vip.ip().is_ipv4() && !wraps {
        let (wanted, found) = if vip.ip().is_ipv4() {
            ("IPv4", "IPv6")
        } else {
            ("IPv6", "IPv4")
        };
        errors.add(
            span,
            format!(
                "the backend is {found}, the VIP {vip} is {wanted}; families are not translated"
            ),
            format!(
                "write the backend's {wanted} address, make a service with an {found} VIP, or use \
                 forwarding = \"ipip\" or \"gue\", which carry either family over either"
            ),
        );
        return;
    }
    if address.ip() == vip.ip() {
        errors.add(
            span,
            "the backend has the address of the VIP: traffic would come back to this host",
            "write the server's own address",
        );
        return;
    }
    let rewritten = match forwarding {
        Forwarding::Nat => return,
        Forwarding::Dsr => "only MAC addresses are rewritten",
        Forwarding::Ipip | Forwarding::Gue => "the packet inside the tunnel is not rewritten",
    };
    let Some(port) = vip.port() else {
        if address.port() != 0 {
            errors.add(
                span,
                format!(
                    "with forwarding = \"{}\" packets keep the port that the client sends to, one of {vip}, and {rewritten}",
                    forwarding.name()
                ),
                match &backend.host {
                    Some(host) => format!("write \"{}:*\", or use forwarding = \"nat\"", host.value.0),
                    None => format!(
                        "write \"{}\", or use forwarding = \"nat\"",
                        backend_text(SocketAddr::new(address.ip(), 0))
                    ),
                },
            );
        }
        return;
    };
    if address.port() != port {
        let mended = match &backend.host {
            Some(host) => format!("{}:{port}", host.value.0),
            None => SocketAddr::new(address.ip(), port).to_string(),
        };
        errors.add(
            span,
            format!(
                "with forwarding = \"{}\" the backend's port must be the service's: {} is not {}, and {rewritten}",
                forwarding.name(),
                address.port(),
                port
            ),
            format!("write \"{mended}\" and let the server listen there, or use forwarding = \"nat\""),
        );
    }
}

/// Checks that commands are run only where the host's own table allows it: a service's table may
/// come from people who must not run programs on this host.
pub fn commands_allowed(node: &Node, services: &[Draft], errors: &mut Errors<'_>) {
    for service in services {
        service.mode.check_allowed(node, errors);
        service.announce.check_allowed(node, errors);
    }
    for service in services.iter().filter(|service| service.runs_commands()) {
        if !node.allow_exec {
            let place = service.places.keys.get("health.probe");
            errors.add(
                place.unwrap_or(&service.places.header).clone(),
                "probe = \"exec\" is not allowed on this host",
                "write allow_exec = true in [node] if its commands are trusted: they run with the agent's rights",
            );
        }
    }
}

/// Checks the services against each other.
pub fn across_services(services: &[Draft], errors: &mut Errors<'_>) {
    if let Some(first) = services.get(MOST_SERVICES) {
        errors.add(
            first.places.header.clone(),
            format!("{} services are more than {MOST_SERVICES}", services.len()),
            "spread them over several hosts",
        );
    }
    let backends: usize = services.iter().map(|service| service.backends.len()).sum();
    if backends > MOST_BACKENDS {
        let span = services
            .last()
            .map_or(0..0, |last| last.places.header.clone());
        errors.add(
            span,
            format!("{backends} backends in all are more than {MOST_BACKENDS}"),
            "spread the services over several hosts",
        );
    }
    let mut names = BTreeMap::new();
    let mut vips = BTreeMap::new();
    for service in services {
        if let Some(name) = &service.name
            && names.insert(name.value.as_str(), ()).is_some()
        {
            errors.add(
                name.span.clone(),
                format!("there are two services named \"{}\"", name.value),
                "rename one of the two",
            );
        }
        let (Some(vip), Some(protocol)) = (&service.address, service.protocol) else {
            continue;
        };
        let name = service.name.as_ref().map_or("?", |name| &name.value);
        if let Some(other) = vips.insert((vip.value, protocol), name) {
            errors.add(
                vip.span.clone(),
                format!(
                    "{} {} is already the address of service \"{other}\"",
                    protocol.name(),
                    vip.value
                ),
                "choose another address, port or protocol, or put the backends into one service",
            );
        }
    }
    among_ranges(services, errors);
    for service in services {
        let Some(protocol) = service.protocol else {
            continue;
        };
        for backend in &service.backends {
            let Some(address) = &backend.address else {
                continue;
            };
            let own = service.address.as_ref().map(|vip| vip.value.ip());
            if own == Some(address.value.ip()) {
                continue;
            }
            let first = Endpoint {
                ip: address.value.ip(),
                ports: Ports::One(0),
            };
            let others = vips.range((first, protocol)..);
            let mut others = others.take_while(|((vip, _), _)| vip.ip == first.ip);
            let is_there = |vip: &Endpoint| address.value.port() == 0 || vip.has(address.value);
            let other = others.find(|((vip, of), _)| *of == protocol && is_there(vip));
            if let Some((_, other)) = other {
                errors.add(
                    address.span.clone(),
                    format!("the backend is the VIP of service \"{other}\": packets are not balanced twice"),
                    format!(
                        "write the addresses of that service's servers instead of {}",
                        host_text(address.value.ip())
                    ),
                );
            }
        }
    }
}

/// Checks the services with several ports of each VIP and protocol against each other.
fn among_ranges(services: &[Draft], errors: &mut Errors<'_>) {
    let mut ranges: BTreeMap<_, Vec<(Ports, &str)>> = BTreeMap::new();
    for service in services {
        let (Some(vip), Some(protocol)) = (&service.address, service.protocol) else {
            continue;
        };
        let ports = vip.value.ports;
        if let Ports::One(_) = ports {
            continue;
        }
        let name = service.name.as_ref().map_or("?", |name| &name.value);
        let others = ranges.entry((vip.value.ip, protocol)).or_default();
        if let Some((other, known)) = others
            .iter()
            .find(|(other, _)| other.clash(ports) && *other != ports)
        {
            let other = Endpoint {
                ip: vip.value.ip,
                ports: *other,
            };
            errors.add(
                vip.span.clone(),
                format!(
                    "services \"{name}\" and \"{known}\" have ports in common: {} {} and {other}",
                    protocol.name(),
                    vip.value
                ),
                "let the ranges end before each other begins; a single port or `*` may overlap with a range",
            );
        }
        if others.len() == MOST_RANGES {
            errors.add(
                vip.span.clone(),
                format!(
                    "{} has more than {MOST_RANGES} {} services with several ports",
                    host_text(vip.value.ip),
                    protocol.name()
                ),
                "put neighbouring ranges into one service, or use another VIP",
            );
        }
        others.push((ports, name));
    }
}
