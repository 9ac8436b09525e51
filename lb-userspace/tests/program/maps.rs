//! What the maps keep over a restart, and what a sweep of the flows finds.

use std::collections::BTreeSet;

use lb_common::abi::Forwarding::{Dsr, Nat};
use lb_common::slot::Slot;
use lb_userspace::model::Protocol;
use lb_userspace::plan::Contents;

use crate::kernel::{VIP4, VIP6, kernel};
use crate::packets::Frame;

#[test]
fn contents_read_back_are_those_written() {
    let Some(mut kernel) = kernel("contents_read_back_are_those_written") else {
        return;
    };
    let web = [(1, "10.0.0.11:8080"), (2, "10.0.0.12:8080")];
    kernel.serve(VIP4, Protocol::Tcp, Nat, Slot::transition(1, 2), &web);
    kernel.serve_one(VIP6, Protocol::Udp, Dsr, (3, "[fd00::11]:80"));
    assert_eq!(kernel.datapath.contents().unwrap(), kernel.contents);
    let mut wanted = kernel.contents.clone();
    wanted.services.remove(&1);
    wanted.backends.remove(&1);
    wanted.backends.remove(&2);
    wanted.sources.remove(&crate::kernel::ip("10.0.0.1"));
    kernel.want(wanted);
    assert_eq!(kernel.datapath.contents().unwrap(), kernel.contents);
    let ports = kernel.contents.ports;
    kernel.want(Contents {
        ports,
        ..Contents::default()
    });
    let left = kernel.datapath.contents().unwrap();
    assert_eq!((left.services.len(), left.backends.len()), (0, 0));
}

#[test]
fn a_sweep_counts_flows_and_removes_those_of_backends_that_left() {
    let Some(mut kernel) = kernel("a_sweep_counts_flows_and_removes_those_of_backends_that_left")
    else {
        return;
    };
    kernel.datapath.tick();
    let web = [(1, "10.0.0.11:8080"), (2, "10.0.0.12:8080")];
    kernel.serve(VIP4, Protocol::Tcp, Nat, Slot::settled(1), &web);
    let one = [(3, "[fd00::11]:80"), (4, "[fd00::12]:80")];
    let dsr = kernel.serve(VIP6, Protocol::Tcp, Dsr, Slot::transition(3, 4), &one);
    for port in 1..=700 {
        kernel.forwards(
            &Frame::tcp(&format!("198.51.100.1:{port}"), VIP4, "S").bytes(),
            1,
        );
    }
    kernel.forwards(&Frame::tcp("[2001:db8::1]:1", VIP6, "S").bytes(), 3);
    let contents = kernel.contents.clone();
    let none = BTreeSet::new();
    let sweep = kernel.datapath.sweep(&contents, &none);
    assert_eq!(sweep.active, [(1, 700), (3, 1)].into());
    assert_eq!((sweep.entries, sweep.removed), (701, 0));
    assert!(sweep.held.is_empty());
    // The recorded flow holds its slot once the owner is another.
    kernel.set_slots(dsr, Slot::transition(4, 4));
    let contents = kernel.contents.clone();
    let sweep = kernel.datapath.sweep(&contents, &none);
    assert_eq!(sweep.held.get(&dsr).map(BTreeSet::len), Some(1));
    let sweep = kernel.datapath.sweep(&contents, &BTreeSet::from([1]));
    assert_eq!((sweep.active.get(&1), sweep.removed), (None, 700));
    let sweep = kernel.datapath.sweep(&contents, &none);
    assert_eq!(sweep.entries, 1);
}

/// The kernel gives up after a million, and loads slowly long before.
#[test]
fn the_verifier_has_little_to_go_through() {
    const BUDGET: u32 = 100_000;
    let Some(mut kernel) = kernel("the_verifier_has_little_to_go_through") else {
        return;
    };
    let verified = kernel.datapath.verified_instructions().unwrap().unwrap();
    println!("{verified} verified instructions");
    assert!(
        (1..BUDGET).contains(&verified),
        "{verified} verified instructions"
    );
}
