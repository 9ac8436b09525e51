//! What is left to the host goes to the chained program, and nothing else does.

use std::path::PathBuf;

use lb_common::abi::Forwarding::{Dsr, Nat};
use lb_common::verdict::Verdict;
use lb_userspace::datapath::{ChainError, Datapath, DatapathError, Place};
use lb_userspace::model::{Protocol, XdpMode};

use crate::foreign::{self, Program};
use crate::kernel::{DROP, Kernel, PASS, VIP4, VIP6, kernel};
use crate::packets::{Frame, raw};

/// What the chained program returns: no verdict of lb's comes to this.
const ABORTED: u32 = 0;

fn chain(datapath: &mut Datapath, pin: Option<PathBuf>) -> Result<(), ChainError> {
    let place = Place {
        interfaces: Vec::new(),
        mode: XdpMode::Auto,
        replace: false,
        chain: pin,
    };
    match datapath.attach(&place) {
        Ok(_) => Ok(()),
        Err(DatapathError::Chain(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

fn serve(kernel: &mut Kernel) {
    kernel.serve_one(VIP4, Protocol::Tcp, Nat, (1, "10.0.0.11:8080"));
    kernel.serve_one(VIP6, Protocol::Tcp, Dsr, (2, "[fd00::11]:80"));
}

/// One packet for each way to be left to the host.
fn left_to_the_host() -> [(Vec<u8>, Verdict); 4] {
    [
        (
            Frame::tcp("198.51.100.1:1", "198.51.100.2:80", "S").bytes(),
            Verdict::PassNotVip,
        ),
        (raw(0x0806, &[0; 28]), Verdict::PassNotIp),
        (
            crate::packets::echo([198, 51, 100, 1], [203, 0, 113, 10]),
            Verdict::PassOtherProtocol,
        ),
        (
            Frame::udp("[2001:db8::1]:1", "[2001:db8::10]:81").bytes(),
            Verdict::PassNoService,
        ),
    ]
}

#[test]
fn the_chained_program_gets_every_pass_and_nothing_else() {
    let Some(mut kernel) = kernel("the_chained_program_gets_every_pass_and_nothing_else") else {
        return;
    };
    serve(&mut kernel);
    let other = Program::pinned(foreign::XDP, 0, ABORTED);
    let another = Program::pinned(foreign::XDP, 0, DROP);
    for (pin, action) in [
        (None, PASS),
        (Some(other.path()), ABORTED),
        (Some(another.path()), DROP),
        (None, PASS),
    ] {
        chain(&mut kernel.datapath, pin).unwrap();
        for (frame, verdict) in left_to_the_host() {
            let result = kernel.expect(&frame, verdict);
            assert_eq!((result.action, &result.frame), (action, &frame));
        }
        let client = "198.51.100.7:7";
        kernel.forwards(&Frame::tcp(client, VIP4, "S").bytes(), 1);
        kernel.forwards(&Frame::tcp("[2001:db8::1]:1", VIP6, "S").bytes(), 2);
        let used_up = Frame::tcp(client, VIP4, "S").ttl(1).bytes();
        assert_eq!(kernel.expect(&used_up, Verdict::DropTtl).action, DROP);
    }
}

#[test]
fn what_cannot_be_chained_is_refused_by_name_and_changes_nothing() {
    let Some(mut kernel) = kernel("what_cannot_be_chained_is_refused_by_name_and_changes_nothing")
    else {
        return;
    };
    serve(&mut kernel);
    let good = Program::pinned(foreign::XDP, 0, ABORTED);
    chain(&mut kernel.datapath, Some(good.path())).unwrap();

    let (params, program) = (kernel.pin("PARAMS"), kernel.pin("program"));
    let missing = chain(&mut kernel.datapath, Some("/sys/fs/bpf/no-such-pin".into()));
    let file = chain(&mut kernel.datapath, Some("/etc/passwd".into()));
    let map = chain(&mut kernel.datapath, Some(params));
    let own = chain(&mut kernel.datapath, Some(program));
    let filter = Program::pinned(foreign::SOCKET_FILTER, 0, 0);
    let filter = chain(&mut kernel.datapath, Some(filter.path()));
    let frags = Program::pinned(foreign::XDP, foreign::HAS_FRAGS, PASS);
    let frags = chain(&mut kernel.datapath, Some(frags.path()));
    assert!(
        matches!(missing, Err(ChainError::Missing(_))),
        "{missing:?}"
    );
    for other in [&file, &map, &filter] {
        assert!(
            matches!(other, Err(ChainError::NotProgram { .. })),
            "{other:?}"
        );
    }
    assert!(matches!(own, Err(ChainError::Own(_))), "{own:?}");
    assert!(
        matches!(frags, Err(ChainError::Refused { .. })),
        "{frags:?}"
    );
    let text = map.unwrap_err().to_string();
    assert!(text.contains("is a BPF map"), "{text}");
    let text = frags.unwrap_err().to_string();
    assert!(text.contains("frags"), "{text}");

    for (frame, verdict) in left_to_the_host() {
        assert_eq!(kernel.expect(&frame, verdict).action, ABORTED);
    }
}

#[test]
fn a_program_stays_chained_without_its_pin_and_over_a_restart() {
    let Some(mut kernel) = kernel("a_program_stays_chained_without_its_pin_and_over_a_restart")
    else {
        return;
    };
    let other = Program::pinned(foreign::XDP, 0, ABORTED);
    chain(&mut kernel.datapath, Some(other.path())).unwrap();
    drop(other);
    kernel.reopen();
    for (frame, _) in left_to_the_host() {
        let action = kernel.run(&frame).action;
        assert_eq!(action, ABORTED);
    }
    // An attachment that fails puts back what was chained.
    let another = Program::pinned(foreign::XDP, 0, DROP);
    let place = Place {
        interfaces: vec!["no-such-if0".to_owned()],
        mode: XdpMode::Auto,
        replace: false,
        chain: Some(another.path()),
    };
    kernel.datapath.attach(&place).unwrap_err();
    for (frame, _) in left_to_the_host() {
        assert_eq!(kernel.run(&frame).action, ABORTED);
    }
}
