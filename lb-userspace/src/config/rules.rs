//! What must hold between values: inside one service and among all of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_common::abi::{MAX_BACKENDS, MAX_SERVICES};

use super::reader::Errors;
use super::service::{BackendDraft, Draft};
use crate::model::{Forwarding, Node, OnDeath, Protocol, host_text};

/// Most services: the first number of the table means "none".
const MOST_SERVICES: usize = MAX_SERVICES as usize - 1;
/// Most backends of all services together.
const MOST_BACKENDS: usize = MAX_BACKENDS as usize - 1;

/// Checks one service.
pub fn within_service(service: &Draft, errors: &mut Errors<'_>) {
    tcp_flows(service, errors);
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
        let Some(address) = &backend.address else {
            continue;
        };
        if addresses.insert(address.value, ()).is_some() {
            errors.add(
                address.span.clone(),
                format!("the service has two backends at {}", address.value),
                "remove one of the two; for a larger share raise `weight`",
            );
        }
        if let Some(vip) = &service.address {
            against_vip(service, backend, vip.value, address.value, errors);
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

/// Checks the address of a backend against its service's.
fn against_vip(
    service: &Draft,
    backend: &BackendDraft,
    vip: SocketAddr,
    address: SocketAddr,
    errors: &mut Errors<'_>,
) {
    let span = backend.address.as_ref().map_or(0..0, |at| at.span.clone());
    let forwarding = service.forwarding.unwrap_or(Forwarding::Nat);
    let wraps = match forwarding {
        Forwarding::Nat | Forwarding::Dsr => false,
        Forwarding::Ipip | Forwarding::Gue => true,
    };
    if address.is_ipv4() != vip.is_ipv4() && !wraps {
        let (wanted, found) = if vip.is_ipv4() {
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
    if address.port() != vip.port() {
        let mended = SocketAddr::new(address.ip(), vip.port());
        errors.add(
            span,
            format!(
                "with forwarding = \"{}\" the backend's port must be the service's: {} is not {}, and {rewritten}",
                forwarding.name(),
                address.port(),
                vip.port()
            ),
            format!("write \"{mended}\" and let the server listen there, or use forwarding = \"nat\""),
        );
    }
}

/// Checks that commands are run only where the host's own table allows it: a service's table may
/// come from people who must not run programs on this host.
pub fn commands_allowed(node: &Node, services: &[Draft], errors: &mut Errors<'_>) {
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
    for service in services {
        let Some(protocol) = service.protocol else {
            continue;
        };
        for backend in &service.backends {
            let Some(address) = &backend.address else {
                continue;
            };
            let own = service.address.as_ref().map(|vip| vip.value.ip());
            let other = vips.get(&(address.value, protocol));
            if let (Some(other), true) = (other, own != Some(address.value.ip())) {
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
