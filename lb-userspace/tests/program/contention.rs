//! The flow table while two CPUs open, close and push out the same flows, and agents sweep it and are
//! killed in the middle.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lb_common::abi::Forwarding::{Dsr, Nat};
use lb_common::hash::mix;
use lb_common::slot::Slot;
use lb_userspace::datapath::sys::test_run;
use lb_userspace::datapath::{Datapath, PinDirectory, enter_bpffs};
use lb_userspace::model::Protocol;

use crate::kernel::{Kernel, TX, kernel_for};
use crate::packets::Frame;

const NAT: &str = "203.0.113.10:80";
const MOVING: &str = "203.0.113.11:80";
/// Room for fewer flows than there are: places are short.
const ROOM: u32 = 300;
const CLIENTS: u64 = 600;
/// In every other round there are so few that CPUs often open the same flow at the same time.
const FEW: u64 = 3;
const ROUNDS: usize = 6;
/// Agents killed in a round.
const KILLS: u64 = 2;
/// Packets of each CPU in a round, at the least.
const PACKETS: u64 = 20_000;
/// Set for the process that sweeps: what the pins are named after.
const SOCKET: &str = "LB_TEST_SOCKET";

/// Sends packets of random flows, and their backends' answers, until told to stop and enough are
/// sent.
fn traffic(program: &OwnedFd, clients: u64, seed: u64, stop: &AtomicBool) -> u64 {
    let mut random = mix(seed);
    let flags = ["S", "S", "A", "PA", "FA", "R"];
    let frame = |vip, flags| Frame::tcp("198.51.100.1:1", vip, flags).bytes();
    let frames = [NAT, MOVING].map(|vip| flags.map(|flags| frame(vip, flags)));
    let replies = ["SA", "A", "FA", "R"].map(|flags| {
        Frame::tcp("10.0.0.11:80", "10.0.0.1:20000", flags)
            .sent_by([2, 0, 0, 0, 0, 0x99])
            .bytes()
    });
    let run = |frame: &[u8]| test_run(program.as_fd(), frame, 1).unwrap();
    let mut sent = 0;
    while sent < PACKETS || !stop.load(Ordering::Relaxed) {
        random = mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
        let service = (random & 1) as usize;
        let mut frame = frames[service][(random >> 1) as usize % flags.len()].clone();
        let port = 1024 + (random >> 32) % clients;
        frame[34..36].copy_from_slice(&(port as u16).to_be_bytes());
        let result = run(&frame);
        sent += 1;
        let forwarded = result.action == TX && result.frame[..2] == [2, 0];
        if service == 0 && forwarded && result.frame[26..30] == [10, 0, 0, 1] {
            let mut reply = replies[(random >> 8) as usize % replies.len()].clone();
            reply[26..30].copy_from_slice(&result.frame[30..34]);
            reply[36..38].copy_from_slice(&result.frame[34..36]);
            run(&reply);
            sent += 1;
        }
    }
    sent
}

fn services(kernel: &mut Kernel) {
    let backends = [(1, "10.0.0.11:80"), (2, "10.0.0.12:80")];
    kernel.serve(NAT, Protocol::Tcp, Nat, Slot::settled(1), &backends);
    let backends = [(3, "10.0.0.11:80"), (4, "10.0.0.12:80")];
    kernel.serve(
        MOVING,
        Protocol::Tcp,
        Dsr,
        Slot::transition(3, 4),
        &backends,
    );
    // Few ports, so that they are short too.
    let mut wanted = kernel.contents.clone();
    wanted.ports = Some(lb_userspace::plan::SnatPorts {
        first: 20_000,
        count: 200,
    });
    kernel.want(wanted);
}

/// Starts another agent on the same pins, lets it sweep, and kills it.
fn sweep_and_kill(kernel: &Kernel, after: Duration) {
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "contention::sweeps_until_killed", "--ignored"])
        .arg("--nocapture")
        .env(SOCKET, &kernel.socket)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(agent.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("sweeping")));
    std::thread::sleep(after);
    agent.kill().unwrap();
    agent.wait().unwrap();
}

#[test]
#[ignore = "the other process of the test below"]
fn sweeps_until_killed() {
    let Some(socket) = std::env::var_os(SOCKET).map(PathBuf::from) else {
        return;
    };
    enter_bpffs().unwrap();
    let mut datapath = Datapath::open(PinDirectory::of(&socket), ROOM).unwrap();
    let contents = datapath.contents().unwrap();
    // All flows, so that it is nearly always in the middle of a removal.
    let gone: BTreeSet<u16> = contents.backends.keys().copied().collect();
    println!("sweeping");
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(60) {
        datapath.sweep(&contents, &gone);
    }
}

#[test]
fn the_table_stays_consistent_under_contention() {
    let Some(mut kernel) = kernel_for("the_table_stays_consistent_under_contention", ROOM) else {
        return;
    };
    services(&mut kernel);
    let program = kernel.datapath.program().unwrap();
    let programs = [1, 2].map(|_| program.try_clone_to_owned().unwrap());
    let contents = kernel.contents.clone();
    let mut removed = 0;
    for round in 0..ROUNDS {
        let stop = AtomicBool::new(false);
        let clients = if round % 2 == 0 { CLIENTS } else { FEW };
        let sent: u64 = std::thread::scope(|scope| {
            let cpus: Vec<_> = (0..)
                .zip(&programs)
                .map(|(cpu, program)| {
                    let seed = round as u64 * 2 + cpu;
                    let stop = &stop;
                    scope.spawn(move || traffic(program, clients, seed, stop))
                })
                .collect();
            for n in 0..20 {
                let gone = if n % 4 == 0 {
                    [1, 3].into()
                } else {
                    BTreeSet::new()
                };
                kernel.datapath.advance(n * 40);
                removed += kernel.datapath.sweep(&contents, &gone).removed;
            }
            for n in 0..KILLS {
                sweep_and_kill(&kernel, Duration::from_millis(20 + 7 * round as u64 + n));
            }
            // The killed one may have removed all there was, and the traffic wait for a processor.
            let begin = Instant::now();
            while kernel.datapath.sweep(&contents, &BTreeSet::new()).entries == 0 {
                assert!(begin.elapsed() < Duration::from_secs(60), "no traffic");
            }
            stop.store(true, Ordering::Relaxed);
            cpus.into_iter().map(|cpu| cpu.join().unwrap()).sum()
        });
        // What the killed agent held is seen once, and freed the second time.
        let held = kernel.datapath.check_flows();
        for _ in 0..2 {
            kernel.datapath.sweep(&contents, &BTreeSet::new());
        }
        println!("round {round}: {sent} packets, then {held:?}");
        assert_eq!(kernel.datapath.check_flows(), [], "round {round}");
    }
    assert!(removed > 0);
    let left = kernel
        .datapath
        .sweep(&contents, &contents.backends.keys().copied().collect());
    assert!(left.entries > 0);
    // Nothing is left that takes a place or a port.
    assert_eq!(
        kernel.datapath.sweep(&contents, &BTreeSet::new()).entries,
        0
    );
    assert_eq!(kernel.datapath.check_flows(), []);
}
