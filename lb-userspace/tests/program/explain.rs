//! What `lb explain` says of a packet, held against what the program does with it: single cases, and
//! how the two are compared.

use std::collections::BTreeMap;

use lb_common::abi::BackendState::Out;
use lb_common::abi::Forwarding::{Dsr, Nat};
use lb_common::slot::Slot;
use lb_common::verdict::Verdict;
use lb_userspace::model::Protocol::{Tcp, Udp};
use lb_userspace::plan::explain::{Explanation, Fate, Tuple};

use crate::kernel::{BACKEND_MAC, Kernel, TX, at, kernel};
use crate::packets::{Frame, parse};

/// Runs packets and tells what became of each.
pub struct Observer {
    /// The counters before the next packet; to read them takes longer than all else.
    verdicts: BTreeMap<&'static str, u64>,
}

impl Observer {
    pub fn new(kernel: &Kernel) -> Self {
        Self {
            verdicts: kernel.verdicts(),
        }
    }

    /// What the program does with a packet, and the packet as it leaves.
    pub fn fate(&mut self, kernel: &mut Kernel, bytes: &[u8]) -> (Fate, Vec<u8>) {
        let result = kernel.run(bytes);
        let sent = result.action == TX && result.frame[..4] == BACKEND_MAC[..4];
        // Its number is the end of its MAC address; a client's is none.
        let number = u16::from_be_bytes([result.frame[4], result.frame[5]]);
        if sent && kernel.contents.backends.contains_key(&number) {
            return (Fate::To(number), result.frame);
        }
        let before = std::mem::replace(&mut self.verdicts, kernel.verdicts());
        // These are counted beside what becomes of the packet.
        let beside = [Verdict::Rescued, Verdict::IcmpError];
        let mut all = (Verdict::ALL.iter()).filter(|verdict| !beside.contains(verdict));
        let happened =
            all.find(|verdict| before.get(verdict.label()) != self.verdicts.get(verdict.label()));
        (Fate::Not(*happened.unwrap()), result.frame)
    }
}

/// What is said of a flow of some service.
pub fn explain(kernel: &Kernel, tuple: Tuple) -> Explanation {
    let explained = kernel.datapath.explain(&kernel.contents, tuple);
    explained.unwrap()
}

pub fn frame(tuple: Tuple, flags: &'static str) -> Vec<u8> {
    let (src, dst) = (tuple.src.to_string(), tuple.dst.to_string());
    match tuple.protocol {
        Tcp => Frame::tcp(&src, &dst, flags).bytes(),
        Udp => Frame::udp(&src, &dst).bytes(),
    }
}

#[test]
fn an_entry_of_the_other_forwarding_is_not_heeded() {
    let Some(mut kernel) = kernel("an_entry_of_the_other_forwarding_is_not_heeded") else {
        return;
    };
    let two = [(1, "10.0.0.11:80"), (2, "10.0.0.12:80")];
    let tuple = Tuple::new(at("198.51.100.1:4000"), at("203.0.113.10:80"), Tcp).unwrap();
    let id = kernel.serve("203.0.113.10:80", Tcp, Dsr, Slot::transition(1, 2), &two);
    kernel.forwards(&frame(tuple, "S"), 1);
    assert_eq!(
        explain(&kernel, tuple).entry.map(|entry| entry.backend),
        Some(1)
    );
    let mut wanted = kernel.contents.clone();
    wanted.services.get_mut(&id).unwrap().forwarding = Nat;
    kernel.want(wanted);
    let explained = explain(&kernel, tuple);
    assert_eq!(explained.entry, None);
    assert_eq!(explained.established.fate, Fate::Not(Verdict::ResetNoFlow));
    assert_eq!(
        Observer::new(&kernel)
            .fate(&mut kernel, &frame(tuple, "A"))
            .0,
        explained.established.fate
    );
}

#[test]
fn a_reply_to_the_balancer_itself_is_no_request() {
    let Some(mut kernel) = kernel("a_reply_to_the_balancer_itself_is_no_request") else {
        return;
    };
    kernel.serve(
        "203.0.113.10:80",
        Tcp,
        Nat,
        Slot::settled(1),
        &[(1, "10.0.0.11:80")],
    );
    let tuple = Tuple::new(at("198.51.100.1:4000"), at("203.0.113.10:80"), Tcp).unwrap();
    let sent = parse(&kernel.forwards(&frame(tuple, "S"), 1));
    // A service at the very address and port that the flow leaves from.
    kernel.serve(
        &sent.src.to_string(),
        Tcp,
        Nat,
        Slot::settled(2),
        &[(2, "10.0.0.12:80")],
    );
    let back = Tuple::new(sent.dst, sent.src, Tcp).unwrap();
    let explained = explain(&kernel, back);
    assert_eq!(explained.new.fate, Fate::Not(Verdict::NatReply));
    let mut observer = Observer::new(&kernel);
    let (done, _) = observer.fate(&mut kernel, &frame(back, "S"));
    assert_eq!(done, explained.new.fate);
    assert_eq!(
        observer.fate(&mut kernel, &frame(back, "A")).0,
        explained.established.fate
    );
    kernel.set_state(1, Out);
    kernel.expect(&frame(tuple, "A"), Verdict::ResetBackendOut);
    let explained = explain(&kernel, back);
    assert_eq!(explained.new.fate, Fate::Not(Verdict::ResetToBackend));
    let mut observer = Observer::new(&kernel);
    assert_eq!(
        observer.fate(&mut kernel, &frame(back, "S")).0,
        explained.new.fate
    );
    assert_eq!(
        observer.fate(&mut kernel, &frame(back, "A")).0,
        explained.established.fate
    );
}
