//! Time per packet: the real program under `BPF_PROG_TEST_RUN`, each run with another flow, above
//! the time of the same driver with a program that passes everything.

#[path = "../../../lb-ebpf/src/bench/drive.rs"]
#[allow(dead_code, reason = "the BPF side uses the rest")]
mod drive;
mod frames;
mod kernel;

use anyhow::{Result, ensure};

use crate::stats::Spread;
use drive::{Drive, FRAME_LEN, Order, Target};
use frames::{ACK, SYN};
use kernel::{DSR, DSR6, Kernel, MOVING, NAT, PORT, expect};

const PASS: u32 = 2;
const TX: u32 = 3;

/// How much is measured.
struct Effort {
    rounds: usize,
    /// Packets of one measurement.
    packets: u32,
    /// Numbers of flows.
    flows: &'static [u32],
    flow_entries: u32,
}

const FULL: Effort = Effort {
    rounds: 9,
    packets: 1_000_000,
    flows: &[1, 65_536, 1_000_000],
    flow_entries: 4_194_304,
};
const QUICK: Effort = Effort {
    rounds: 3,
    packets: 200_000,
    flows: &[1, 65_536],
    flow_entries: 1_048_576,
};

/// One row of the table.
struct Scenario {
    name: &'static str,
    target: Target,
    frame: [u8; FRAME_LEN],
    order: Order,
    v6: bool,
    flows: u32,
    action: u32,
    /// The row that its ratio is to.
    floor: Option<&'static str>,
}

const FLOOR_DSR: &str = "floor, MAC rewrite";
const FLOOR_NAT: &str = "floor, NAT rewrite";

impl Scenario {
    fn drive(&self, target: Target, next: u64) -> Drive {
        let mut words = [0; FRAME_LEN / 4];
        for (word, bytes) in words.iter_mut().zip(self.frame.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Drive {
            next,
            target: target as u32,
            order: self.order as u32,
            flows: self.flows,
            v6: self.v6.into(),
            frame: words,
        }
    }
}

fn scenarios(flows: u32) -> Vec<Scenario> {
    let forward = |name, target, vip, floor| Scenario {
        name,
        target,
        frame: frames::v4(vip, PORT, ACK),
        order: Order::Random,
        v6: false,
        flows,
        action: TX,
        floor,
    };
    vec![
        forward(FLOOR_DSR, Target::FloorDsr, DSR, None),
        forward("lb, DSR", Target::Lb, DSR, Some(FLOOR_DSR)),
        Scenario {
            frame: frames::v6(DSR6, PORT, ACK),
            v6: true,
            ..forward("lb, DSR, IPv6", Target::Lb, DSR, Some(FLOOR_DSR))
        },
        forward(
            "lb, DSR, in transition",
            Target::Lb,
            MOVING,
            Some(FLOOR_DSR),
        ),
        forward(FLOOR_NAT, Target::FloorNat, NAT, None),
        forward("lb, NAT, request", Target::Lb, NAT, Some(FLOOR_NAT)),
        Scenario {
            order: Order::Table,
            ..forward("lb, NAT, reply", Target::Lb, NAT, Some(FLOOR_NAT))
        },
        Scenario {
            frame: frames::v4([198, 51, 100, 1].into(), PORT, ACK),
            action: PASS,
            ..forward("lb, not for a VIP", Target::Lb, NAT, None)
        },
    ]
}

/// Rows whose flows are new with each packet.
fn openings() -> Vec<Scenario> {
    let opening = |name, vip, floor| Scenario {
        name,
        target: Target::Lb,
        frame: frames::v4(vip, PORT, SYN),
        order: Order::Fresh,
        v6: false,
        flows: 0,
        action: TX,
        floor: Some(floor),
    };
    vec![
        opening("lb, DSR, SYN", DSR, FLOOR_DSR),
        opening("lb, DSR, SYN, in transition", MOVING, FLOOR_DSR),
        opening("lb, NAT, SYN", NAT, FLOOR_NAT),
    ]
}

/// Measures, and prints a table.
pub fn run(quick: bool) -> Result<()> {
    let effort = if quick { QUICK } else { FULL };
    let mut kernel = Kernel::load(effort.flow_entries)?;
    if let Some(instructions) = kernel.datapath.verified_instructions()? {
        println!("Instructions that the verifier went through: {instructions}");
    }
    let most = effort.flows.iter().copied().max().unwrap_or(1);
    for vip in [NAT, MOVING] {
        open(&mut kernel, vip, most)?;
    }
    kernel.tabulate_replies(most)?;

    let mut rows: Vec<(Scenario, Vec<f64>)> = Vec::new();
    for flows in effort.flows {
        rows.extend(scenarios(*flows).into_iter().map(|row| (row, Vec::new())));
    }
    rows.extend(openings().into_iter().map(|row| (row, Vec::new())));
    for (row, _) in &rows {
        verify(&mut kernel, row)?;
    }
    // Fresh flows go on where the opened ones end, and never come twice.
    let mut fresh = u64::from(most);
    for round in 0..effort.rounds {
        for (row, times) in &mut rows {
            let start = match row.order {
                Order::Fresh => fresh,
                Order::Random | Order::Table => (round as u64) << 32,
            };
            let base = kernel.run(&mut row.drive(Target::Pass, start), effort.packets)?;
            let mut drive = row.drive(row.target, start);
            let full = kernel.run(&mut drive, effort.packets)?;
            expect(&full, row.action, row.name)?;
            if row.order == Order::Fresh {
                fresh = drive.next;
            }
            times.push(f64::from(full.duration) - f64::from(base.duration));
        }
    }
    print(&rows, &effort);
    Ok(())
}

/// Opens the first `flows` flows of a service.
fn open(kernel: &mut Kernel, vip: std::net::Ipv4Addr, flows: u32) -> Result<()> {
    let scenario = Scenario {
        name: "opening flows",
        target: Target::Lb,
        frame: frames::v4(vip, PORT, SYN),
        order: Order::Fresh,
        v6: false,
        flows,
        action: TX,
        floor: None,
    };
    let before = kernel.forwarded()?;
    kernel.run(&mut scenario.drive(Target::Lb, 0), flows)?;
    let opened = kernel.forwarded()? - before;
    ensure!(
        opened == u64::from(flows),
        "{opened} of {flows} flows to {vip} were opened"
    );
    Ok(())
}

/// Each packet of a scenario must really be forwarded, or really be passed: a drop is fast.
fn verify(kernel: &mut Kernel, row: &Scenario) -> Result<()> {
    const PACKETS: u32 = 1_000;
    // Far from the flows that are measured as new.
    let start = match row.order {
        Order::Fresh => 1 << 31,
        Order::Random | Order::Table => 1 << 60,
    };
    let before = kernel.forwarded()?;
    let result = kernel.run(&mut row.drive(row.target, start), PACKETS)?;
    expect(&result, row.action, row.name)?;
    let forwarded = kernel.forwarded()? - before;
    let wanted = if row.action == TX {
        u64::from(PACKETS)
    } else {
        0
    };
    ensure!(
        forwarded == wanted,
        "{}, {} flows: {forwarded} of {PACKETS} packets forwarded",
        row.name,
        row.flows
    );
    Ok(())
}

fn print(rows: &[(Scenario, Vec<f64>)], effort: &Effort) {
    println!(
        "\nNanoseconds per packet above a program that passes everything: median of {} rounds of \
         {} packets, least and greatest; ratio of the medians to the floor's.\n",
        effort.rounds, effort.packets
    );
    println!(
        "{:<30}{:>10}{:>8}{:>12}{:>9}",
        "", "flows", "median", "range", "ratio"
    );
    let median_of = |name: &str, flows: u32| {
        let (_, times) = rows.iter().find(|(row, _)| {
            row.name == name && (row.flows == flows || flows == 0 && row.flows == 65_536)
        })?;
        Spread::of(times).map(|spread| spread.median)
    };
    for (row, times) in rows {
        let Some(spread) = Spread::of(times) else {
            continue;
        };
        let flows = match row.order {
            Order::Fresh => "each new".to_owned(),
            Order::Random | Order::Table => row.flows.to_string(),
        };
        let ratio = row
            .floor
            .and_then(|floor| median_of(floor, row.flows))
            .map_or_else(String::new, |floor| format!("{:.2}", spread.median / floor));
        println!("{:<30}{flows:>10}{spread:>20}{ratio:>9}", row.name);
    }
}
