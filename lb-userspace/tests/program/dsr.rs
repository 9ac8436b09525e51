//! Direct server return.

use lb_common::abi::BackendState::{Active, Draining, Out};
use lb_common::abi::Forwarding::{Dsr, Gue, Ipip};
use lb_common::slot::Slot;
use lb_common::verdict::Verdict;
use lb_userspace::model::Protocol;
use lb_userspace::plan::Path;

use crate::kernel::{DROP, Kernel, PASS, REDIRECT, VIP4, VIP6, kernel, path};
use crate::packets::{Frame, parse};

const CLIENT: &str = "198.51.100.1:4000";
const TWO: [(u16, &str); 2] = [(1, "10.0.0.11:80"), (2, "10.0.0.12:80")];

#[test]
fn only_mac_addresses_and_ttl_change() {
    let Some(mut kernel) = kernel("only_mac_addresses_and_ttl_change") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Tcp, Dsr, (1, "10.0.0.11:80"));
    kernel.serve_one(VIP6, Protocol::Tcp, Dsr, (2, "[fd00::11]:80"));
    kernel.serve_one(VIP4, Protocol::Udp, Dsr, (3, "10.0.0.11:80"));
    let frames = [
        (Frame::tcp(CLIENT, VIP4, "S"), 1),
        (Frame::tcp(CLIENT, VIP4, "PA"), 1),
        (Frame::tcp(CLIENT, VIP4, "A").vlans(1), 1),
        (Frame::tcp(CLIENT, VIP4, "A").vlans(2), 1),
        (Frame::tcp("[2001:db8::1]:4000", VIP6, "A"), 2),
        (Frame::tcp("[2001:db8::1]:4000", VIP6, "A").vlans(2), 2),
        (Frame::udp(CLIENT, VIP4), 3),
    ];
    for (frame, backend) in frames {
        let before = frame.bytes();
        let after = kernel.forwards(&before, backend);
        let mut expected = parse(&before);
        expected.ttl -= 1;
        assert_eq!(parse(&after), expected, "{frame:?}");
        assert_eq!(after[12..], {
            let mut rest = before.clone();
            let l3 = 14 + 4 * frame.vlans;
            if frame.src.is_ipv4() {
                rest[l3 + 8] -= 1;
                rest[l3 + 10..l3 + 12].copy_from_slice(&after[l3 + 10..l3 + 12]);
            } else {
                rest[l3 + 7] -= 1;
            }
            rest[12..].to_vec()
        });
    }
}

#[test]
fn a_backend_behind_another_interface_is_redirected_to() {
    let Some(mut kernel) = kernel("a_backend_behind_another_interface_is_redirected_to") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Tcp, Dsr, (1, "10.0.0.11:80"));
    let mut wanted = kernel.contents.clone();
    wanted.backends.get_mut(&1).unwrap().path = Some(path(1, true, 4242));
    kernel.want(wanted.clone());
    let syn = Frame::tcp(CLIENT, VIP4, "S").bytes();
    assert_eq!(kernel.run(&syn).action, REDIRECT);
    wanted.backends.get_mut(&1).unwrap().path = None;
    kernel.want(wanted);
    assert_eq!(kernel.expect(&syn, Verdict::DropNoNeighbor).action, DROP);
}

#[test]
fn the_state_word_decides_what_a_backend_gets() {
    let Some(mut kernel) = kernel("the_state_word_decides_what_a_backend_gets") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Tcp, Dsr, (1, "10.0.0.11:80"));
    let syn = Frame::tcp(CLIENT, VIP4, "S").bytes();
    let ack = Frame::tcp(CLIENT, VIP4, "A").bytes();
    kernel.forwards(&syn, 1);
    kernel.set_state(1, Draining);
    kernel.forwards(&ack, 1);
    assert_eq!(kernel.expect(&syn, Verdict::DropBackendOut).action, DROP);
    kernel.set_state(1, Out);
    assert_eq!(kernel.expect(&ack, Verdict::DropBackendOut).action, DROP);
    kernel.set_state(1, Active);
    kernel.forwards(&syn, 1);
}

fn from(port: u16) -> String {
    format!("198.51.100.1:{port}")
}

fn send(kernel: &mut Kernel, port: u16, flags: &'static str, backend: u16) {
    kernel.forwards(&Frame::tcp(&from(port), VIP4, flags).bytes(), backend);
}

#[test]
fn a_transition_keeps_old_flows_and_records_new_ones() {
    let Some(mut kernel) = kernel("a_transition_keeps_old_flows_and_records_new_ones") else {
        return;
    };
    let service = kernel.serve(VIP4, Protocol::Tcp, Dsr, Slot::settled(1), &TWO);
    send(&mut kernel, 1, "S", 1);
    kernel.set_slots(service, Slot::transition(2, 1));
    send(&mut kernel, 1, "A", 1);
    send(&mut kernel, 2, "S", 2);
    send(&mut kernel, 2, "A", 2);
    send(&mut kernel, 2, "PA", 2);
    // Back again: the flow opened meanwhile keeps its backend, the old one too.
    kernel.set_slots(service, Slot::transition(1, 1));
    send(&mut kernel, 1, "A", 1);
    send(&mut kernel, 2, "A", 2);
    send(&mut kernel, 3, "S", 1);
    send(&mut kernel, 3, "A", 1);
    // The same flow opened anew goes to the present owner.
    send(&mut kernel, 2, "S", 1);
    send(&mut kernel, 2, "A", 1);
}

#[test]
fn flows_of_an_owner_that_is_out_go_to_the_next() {
    let Some(mut kernel) = kernel("flows_of_an_owner_that_is_out_go_to_the_next") else {
        return;
    };
    let service = kernel.serve(VIP4, Protocol::Tcp, Dsr, Slot::transition(2, 1), &TWO);
    send(&mut kernel, 1, "A", 1);
    kernel.set_state(1, Draining);
    send(&mut kernel, 1, "A", 1);
    kernel.set_state(1, Out);
    send(&mut kernel, 1, "A", 2);
    kernel.set_slots(service, Slot::settled(2));
    send(&mut kernel, 1, "A", 2);
}

#[test]
fn packets_by_the_previous_owner_are_counted() {
    let Some(mut kernel) = kernel("packets_by_the_previous_owner_are_counted") else {
        return;
    };
    kernel.serve(VIP4, Protocol::Tcp, Dsr, Slot::transition(2, 1), &TWO);
    send(&mut kernel, 1, "A", 1);
    send(&mut kernel, 2, "S", 2);
    send(&mut kernel, 2, "A", 2);
    let first = kernel.datapath.traffic(1).unwrap();
    let second = kernel.datapath.traffic(2).unwrap();
    assert_eq!((first.by_previous, first.flows), (1, 0));
    assert_eq!((second.by_previous, second.flows), (0, 1));
}

#[test]
fn udp_flows_of_a_slot_stay_while_the_previous_owner_serves() {
    let Some(mut kernel) = kernel("udp_flows_of_a_slot_stay_while_the_previous_owner_serves")
    else {
        return;
    };
    kernel.serve(VIP4, Protocol::Udp, Dsr, Slot::transition(2, 1), &TWO);
    let datagram = Frame::udp(CLIENT, VIP4).bytes();
    kernel.forwards(&datagram, 1);
    kernel.set_state(1, Out);
    kernel.forwards(&datagram, 2);
}

#[test]
fn packets_for_this_host_itself_go_up_untouched() {
    let Some(mut kernel) = kernel("packets_for_this_host_itself_go_up_untouched") else {
        return;
    };
    let ports = [(Dsr, 80), (Ipip, 81), (Gue, 82)];
    for (number, (forwarding, port)) in ports.into_iter().enumerate() {
        let (id4, id6) = (2 * number as u16 + 1, 2 * number as u16 + 2);
        let (vip4, vip6) = (
            VIP4.replace(":80", &format!(":{port}")),
            VIP6.replace("]:80", &format!("]:{port}")),
        );
        let (own4, own6) = (format!("10.0.0.1:{port}"), format!("[fd00::1]:{port}"));
        kernel.serve_one(&vip4, Protocol::Tcp, forwarding, (id4, &own4));
        kernel.serve_one(&vip6, Protocol::Tcp, forwarding, (id6, &own6));
        let mut wanted = kernel.contents.clone();
        for id in [id4, id6] {
            let backend = wanted.backends.get_mut(&id).unwrap();
            backend.path = Some(Path::local(backend.address.ip()));
        }
        kernel.want(wanted);
        let frames = [
            (Frame::tcp(CLIENT, &vip4, "S"), id4),
            (Frame::tcp(CLIENT, &vip4, "A").vlans(1).ttl(1), id4),
            (Frame::tcp("[2001:db8::1]:4000", &vip6, "PA"), id6),
        ];
        for (frame, id) in frames {
            let before = kernel.datapath.traffic(id).unwrap();
            let verdicts = kernel.verdicts();
            let result = kernel.run(&frame.bytes());
            assert_eq!(result.action, PASS, "{frame:?}");
            assert_eq!(result.frame, frame.bytes());
            assert_eq!(kernel.verdicts(), verdicts);
            let after = kernel.datapath.traffic(id).unwrap();
            assert_eq!(after.packets, before.packets + 1);
            assert_eq!(after.bytes, before.bytes + frame.bytes().len() as u64);
        }
    }
    // The next agent reads it back.
    kernel.reopen();
    let contents = kernel.datapath.contents().unwrap();
    assert_eq!(contents.backends, kernel.contents.backends);
}
