//! What `lb explain` prints.

use super::output::{Palette, tame};
use crate::api::explain::{Answer, Explained};
use crate::model::{Protocol, backend_text};

/// A line a fact, from the packet to the answer.
pub fn render(found: &Explained, palette: Palette) -> String {
    let protocol = found.protocol.name();
    let covers = match found.affinity.as_str() {
        "client" => "of the client's address (affinity = \"client\")",
        "quic" => {
            "of addresses, ports and protocol (affinity = \"quic\"): a packet whose connection ID names \
             another backend goes to that one, unless the flow table has its flow (nat)"
        }
        _ => "of addresses, ports and protocol (affinity = \"flow\")",
    };
    let phase = if found.in_transition {
        "in transition"
    } else {
        "settled"
    };
    let mut rows = vec![
        ("flow", format!("{protocol} {} -> {}", found.src, found.dst)),
        (
            "service",
            format!("{}, {}", found.service, found.forwarding),
        ),
        ("hash", format!("{:#010x} {covers}", found.hash)),
        (
            "slot",
            format!("{} of {}, {phase}", found.slot, found.slots),
        ),
        ("owner", owner(found, found.current.as_deref())),
    ];
    if found.in_transition {
        rows.push(("owner before", owner(found, found.previous.as_deref())));
    }
    if let Some(id) = found.connection_id {
        rows.push(("connection ID", format!("{id}, {}", names(found))));
    }
    rows.push(("flow entry", entry(found)));
    match found.protocol {
        Protocol::Tcp => {
            rows.push(("new", answer(found, &found.new, palette)));
            rows.push(("established", answer(found, &found.established, palette)));
        }
        // The two are one.
        Protocol::Udp => rows.push(("next datagram", answer(found, &found.new, palette))),
    }
    let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    rows.iter()
        .map(|(key, value)| {
            let key = palette.faint(&format!("{key:<width$}"));
            format!("{key}  {value}\n")
        })
        .collect()
}

/// `web-1 (10.0.0.11:8080, active)`.
fn backend(found: &Explained, name: &str) -> String {
    let shown = tame(name);
    match found.backends.get(name) {
        Some(facts) if backend_text(facts.address) == name => format!("{shown} ({})", facts.state),
        Some(facts) => format!("{shown} ({}, {})", backend_text(facts.address), facts.state),
        None => format!("{shown} (no longer there)"),
    }
}

fn owner(found: &Explained, name: Option<&str>) -> String {
    name.map_or_else(|| "none".to_owned(), |name| backend(found, name))
}

/// What a connection ID says.
fn names(found: &Explained) -> String {
    match &found.named {
        Some(name) => format!("names {}", backend(found, name)),
        None if found.affinity == "quic" => {
            "names no backend that is active or draining".to_owned()
        }
        None => format!("not looked at: affinity = \"{}\"", tame(&found.affinity)),
    }
}

fn entry(found: &Explained) -> String {
    let Some(flow) = &found.flow else {
        return if found.forwarding != "nat" && found.named.is_some() {
            "not looked at: the connection ID names a backend".to_owned()
        } else if found.forwarding != "nat" && !found.in_transition {
            "not looked at: the slot is settled".to_owned()
        } else {
            "none".to_owned()
        };
    };
    let mut text = backend(found, &flow.backend);
    if let (Some(from), Some(to)) = (flow.leaves_from, flow.leaves_to) {
        text.push_str(&format!(", leaves as {from} -> {to}"));
    }
    if flow.closing {
        text.push_str(", closing");
    }
    text
}

fn answer(found: &Explained, answer: &Answer, palette: Palette) -> String {
    let reason = &answer.reason;
    if let Some(name) = &answer.backend {
        let to = palette.good(&format!("goes to {}", backend(found, name)));
        return format!("{to}: {reason}");
    }
    let verdict = answer.verdict.as_deref().unwrap_or("unknown");
    let what = match verdict {
        "nat_reply" => palette.good("goes back to its client"),
        _ if verdict.starts_with("reset_") => palette.bad("is reset"),
        _ => palette.bad("is dropped"),
    };
    format!("{what} ({verdict}): {reason}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::api::explain::{BackendFacts, FlowEntry};

    fn to(name: &str, reason: &str) -> Answer {
        Answer {
            backend: Some(name.to_owned()),
            verdict: None,
            reason: reason.to_owned(),
        }
    }

    fn sample() -> Explained {
        let facts = |address: &str, state: &str| BackendFacts {
            address: address.parse().unwrap(),
            state: state.to_owned(),
        };
        Explained {
            src: "198.51.100.7:40000".parse().unwrap(),
            dst: "203.0.113.10:80".parse().unwrap(),
            protocol: Protocol::Tcp,
            service: "web".to_owned(),
            forwarding: "nat".to_owned(),
            affinity: "flow".to_owned(),
            hash: 0x1f3a_90c4,
            slot: 7994,
            slots: 65_537,
            in_transition: false,
            current: Some("web-1".to_owned()),
            previous: None,
            connection_id: None,
            named: None,
            flow: Some(FlowEntry {
                backend: "web-2".to_owned(),
                leaves_from: Some("10.0.0.1:20017".parse().unwrap()),
                leaves_to: Some("10.0.0.12:8080".parse().unwrap()),
                closing: true,
            }),
            new: to("web-1", "owns the slot"),
            established: to("web-2", "the flow table has it"),
            backends: BTreeMap::from([
                ("web-1".to_owned(), facts("10.0.0.11:8080", "active")),
                ("web-2".to_owned(), facts("10.0.0.12:8080", "draining")),
            ]),
        }
    }

    #[test]
    fn a_nat_flow_in_lines() {
        let wanted = "\
flow         tcp 198.51.100.7:40000 -> 203.0.113.10:80
service      web, nat
hash         0x1f3a90c4 of addresses, ports and protocol (affinity = \"flow\")
slot         7994 of 65537, settled
owner        web-1 (10.0.0.11:8080, active)
flow entry   web-2 (10.0.0.12:8080, draining), leaves as 10.0.0.1:20017 -> 10.0.0.12:8080, closing
new          goes to web-1 (10.0.0.11:8080, active): owns the slot
established  goes to web-2 (10.0.0.12:8080, draining): the flow table has it
";
        assert_eq!(render(&sample(), Palette::PLAIN), wanted);
    }

    #[test]
    fn a_connection_id_that_names_a_backend() {
        let by_id = to("web-2", "the connection ID names it");
        let found = Explained {
            protocol: Protocol::Udp,
            forwarding: "dsr".to_owned(),
            affinity: "quic".to_owned(),
            connection_id: "400a00000c0011".parse().ok(),
            named: Some("web-2".to_owned()),
            flow: None,
            new: by_id.clone(),
            established: by_id,
            ..sample()
        };
        let shown = render(&found, Palette::PLAIN);
        for line in [
            "connection ID  400a00000c0011, names web-2 (10.0.0.12:8080, draining)\n",
            "flow entry     not looked at: the connection ID names a backend\n",
            "next datagram  goes to web-2 (10.0.0.12:8080, draining): the connection ID names it\n",
        ] {
            assert!(shown.contains(line), "{shown}");
        }
        let nobody = Explained {
            named: None,
            ..found
        };
        let shown = render(&nobody, Palette::PLAIN);
        assert!(
            shown.contains("400a00000c0011, names no backend that is active"),
            "{shown}"
        );
        let other = Explained {
            affinity: "flow".to_owned(),
            ..nobody
        };
        let shown = render(&other, Palette::PLAIN);
        assert!(
            shown.contains("not looked at: affinity = \"flow\""),
            "{shown}"
        );
    }

    #[test]
    fn a_dsr_datagram_in_transition_without_a_backend() {
        let dropped = Answer {
            backend: None,
            verdict: Some("drop_no_backend".to_owned()),
            reason: "nobody owns the slot".to_owned(),
        };
        let found = Explained {
            protocol: Protocol::Udp,
            forwarding: "dsr".to_owned(),
            affinity: "client".to_owned(),
            in_transition: true,
            current: None,
            previous: Some("#9".to_owned()),
            flow: None,
            new: dropped.clone(),
            established: dropped,
            ..sample()
        };
        let wanted = "\
flow           udp 198.51.100.7:40000 -> 203.0.113.10:80
service        web, dsr
hash           0x1f3a90c4 of the client's address (affinity = \"client\")
slot           7994 of 65537, in transition
owner          none
owner before   #9 (no longer there)
flow entry     none
next datagram  is dropped (drop_no_backend): nobody owns the slot
";
        assert_eq!(render(&found, Palette::PLAIN), wanted);
    }
}
