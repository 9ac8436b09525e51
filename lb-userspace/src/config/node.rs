//! `[node]`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::reader::{At, Errors, Problem, Reader, Value};
use super::schema::Key;
use super::{announce, value};
use crate::model::{Node, OnExit, XdpMode};

/// Longest interface name: IFNAMSIZ of linux/if.h without the final zero.
const LONGEST_NAME: usize = 15;
const DNS_PORT: u16 = 53;
/// A name is asked for once a second at the most.
const SHORTEST_TTL: Duration = Duration::from_secs(1);

/// Reads the table. `None` only if there are errors.
pub fn read(reader: &Reader<'_>, errors: &mut Errors<'_>) -> Option<Node> {
    reader.refuse_unknown(errors);
    let names = reader.get(errors, "interfaces", value::texts);
    let interfaces = names.and_then(|names| interfaces(names, errors));
    let xdp_mode = reader.get(errors, "xdp_mode", xdp_mode);
    let control_socket = reader.get(errors, "control_socket", socket);
    let http = reader.get(errors, "http", value::address);
    let http_token_file = reader.get(errors, "http_token_file", value::path);
    let grpc = reader.get(errors, "grpc", value::address);
    let haproxy_socket = reader.get(errors, "haproxy_socket", socket);
    let shutdown_grace = reader.get(errors, "shutdown_grace", value::duration);
    if let (Some(control), Some(haproxy)) = (&control_socket, &haproxy_socket)
        && control.value == haproxy.value
    {
        errors.add(
            haproxy.span.clone(),
            "`haproxy_socket` is the control socket, which speaks another language",
            "write another path, for example haproxy_socket = \"/run/lb/haproxy.sock\"",
        );
    }
    if let (Some(http), Some(grpc)) = (&http, &grpc)
        && http.value == grpc.value
    {
        errors.add(
            grpc.span.clone(),
            "`grpc` is the address of `http`; each needs a port of its own",
            "write another port, for example grpc = \"127.0.0.1:9401\"",
        );
    }
    let state_dir = reader.get(errors, "state_dir", value::path);
    let on_exit = reader.get(errors, "on_exit", on_exit);
    let snat_ports = reader.get(errors, "snat_ports", value::port_range);
    let flow_entries = reader.get(errors, "flow_entries", value::integer);
    let reset_rate = reader.get(errors, "reset_rate", value::integer);
    let chain = reader.get(errors, "chain", value::path);
    let gue_port = reader.get(errors, "gue_port", value::integer);
    let tunnel_source4 = reader.get(errors, "tunnel_source4", value::prefix);
    let tunnel_source6 = reader.get(errors, "tunnel_source6", value::prefix);
    let answer_ping = reader.get(errors, "answer_ping", value::boolean);
    let allow_exec = reader.get(errors, "allow_exec", value::boolean);
    let dns_servers = reader.get(errors, "dns_servers", |key, value| {
        value::addresses(key, value, DNS_PORT)
    });
    let dns_max_ttl = reader.get(errors, "dns_max_ttl", ttl);
    let announce_table = reader.get(errors, "announce_table", announce::table);
    let certificate_warning = reader.get(errors, "certificate_warning", value::duration);
    let probes_in_flight = reader.get(errors, "probes_in_flight", value::integer);
    let probes_per_second = reader.get(errors, "probes_per_second", value::integer);
    Some(Node {
        interfaces: interfaces?,
        xdp_mode: xdp_mode?.value,
        control_socket: control_socket?.value,
        http: http.map(|http| http.value),
        http_token_file: http_token_file.map(|file| file.value),
        grpc: grpc.map(|grpc| grpc.value),
        haproxy_socket: haproxy_socket.map(|socket| socket.value),
        shutdown_grace: shutdown_grace?.value,
        state_dir: state_dir?.value,
        on_exit: on_exit?.value,
        snat_ports: snat_ports?.value,
        flow_entries: flow_entries?.value,
        reset_rate: reset_rate?.value,
        chain: chain.map(|chain| chain.value),
        gue_port: gue_port?.value,
        tunnel_source4: tunnel_source4.map(|prefix| prefix.value),
        tunnel_source6: tunnel_source6.map(|prefix| prefix.value),
        answer_ping: answer_ping?.value,
        allow_exec: allow_exec?.value,
        dns_servers: dns_servers.map(|servers| servers.value),
        dns_max_ttl: dns_max_ttl?.value,
        announce_table: announce_table?.value,
        certificate_warning: certificate_warning?.value,
        probes_in_flight: probes_in_flight.map(|at| at.value),
        probes_per_second: probes_per_second.map(|at| at.value),
    })
}

fn xdp_mode(key: &Key, value: &Value<'_>) -> Result<XdpMode, Problem> {
    Ok(match value::choice(key, value)? {
        "native" => XdpMode::Native,
        "generic" => XdpMode::Generic,
        _ => XdpMode::Auto,
    })
}

fn ttl(key: &Key, value: &Value<'_>) -> Result<Duration, Problem> {
    let read = value::duration(key, value)?;
    if read < SHORTEST_TTL {
        return Err(Problem::new(
            format!("`{}` is under 1 s", key.name),
            format!("write {} = \"1s\" or more", key.name),
        ));
    }
    Ok(read)
}

/// What the kernel takes as the address of a socket (sun_path of linux/un.h has 108 bytes, one of
/// them the final zero), with room for `.new`, the name under which it is bound.
fn socket(key: &Key, value: &Value<'_>) -> Result<PathBuf, Problem> {
    const LONGEST: usize = 107 - ".new".len();
    let path = value::path(key, value)?;
    if path.as_os_str().len() > LONGEST {
        return Err(Problem::new(
            format!("`{}` is longer than {LONGEST} bytes", key.name),
            "write a shorter path: the kernel takes no longer one for a socket",
        ));
    }
    Ok(path)
}

fn on_exit(key: &Key, value: &Value<'_>) -> Result<OnExit, Problem> {
    Ok(match value::choice(key, value)? {
        "detach" => OnExit::Detach,
        _ => OnExit::Keep,
    })
}

fn interfaces(names: At<Vec<At<String>>>, errors: &mut Errors<'_>) -> Option<Vec<String>> {
    if names.value.is_empty() {
        errors.add(
            names.span,
            "`interfaces` is empty, so no packet would be balanced",
            "name the interfaces traffic comes in on, for example [\"eth0\"]; `ip -br link` lists them",
        );
        return None;
    }
    let mut seen = BTreeSet::new();
    let mut good = true;
    for name in &names.value {
        if let Some((message, help)) = bad_interface(&name.value) {
            errors.add(name.span.clone(), message, help);
            good = false;
        } else if !seen.insert(&name.value) {
            errors.add(
                name.span.clone(),
                format!("interface \"{}\" is named twice", name.value),
                "remove one of the two",
            );
            good = false;
        }
    }
    good.then(|| names.value.into_iter().map(|name| name.value).collect())
}

/// What the kernel would refuse as a name (dev_valid_name in net/core/dev.c).
pub(super) fn bad_interface(name: &str) -> Option<(String, &'static str)> {
    let shown = value::shown(name);
    if name.is_empty() {
        return Some((
            "an interface name is empty".into(),
            "write the interface's name; `ip -br link` lists them",
        ));
    }
    if matches!(name, "." | "..")
        || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
    {
        return Some((
            format!("\"{shown}\" cannot be an interface name"),
            "write the name only, without path, address or spaces; `ip -br link` lists them",
        ));
    }
    if name.len() > LONGEST_NAME {
        return Some((
            format!("interface name \"{shown}\" is longer than {LONGEST_NAME} characters"),
            "write the interface's real name; `ip -br link` lists them",
        ));
    }
    None
}
