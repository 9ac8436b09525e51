//! Time per packet: the real program under `BPF_PROG_TEST_RUN`, each run with another flow, above
//! the time of the same driver with a program that passes everything.

#[path = "../../../../lb-ebpf/src/bench/drive.rs"]
#[allow(dead_code, reason = "the BPF side uses the rest")]
mod drive;
mod frames;
mod kernel;
mod tables;

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use lb_common::abi::DEFAULT_FLOW_ENTRIES;

use crate::stats::Spread;
use drive::{Drive, FRAME_LEN, Order, Target};
use frames::{ACK, SYN};
use kernel::{DSR, DSR6, GUE, IPIP, Kernel, MOVING, NAT, PORT, expect};

const PASS: u32 = 2;
const TX: u32 = 3;

/// How much is measured.
struct Effort {
    rounds: usize,
    /// Packets of one measurement.
    packets: u32,
    /// Sizes of the flow table, and with how many flows each is measured.
    tables: &'static [(u32, &'static [u32])],
}

const FULL: Effort = Effort {
    rounds: 9,
    packets: 1_000_000,
    tables: &[
        (DEFAULT_FLOW_ENTRIES, &[1, 65_536]),
        (4_194_304, &[1_000_000]),
    ],
};
const QUICK: Effort = Effort {
    rounds: 3,
    packets: 200_000,
    tables: &[(DEFAULT_FLOW_ENTRIES, &[1, 65_536])],
};

/// One row of the table.
struct Scenario {
    name: &'static str,
    target: Target,
    frame: [u8; FRAME_LEN],
    order: Order,
    v6: bool,
    /// Whether the packet leaves longer than it came.
    grows: bool,
    flows: u32,
    /// Number of the first flow, where each is new.
    first_fresh: u64,
    action: u32,
    /// The row that its ratio is to.
    floor: Option<&'static str>,
}

const FLOOR: &str = "floor, MAC rewrite";
const FLOOR_IPIP: &str = "floor, IPIP";
const FLOOR_GUE: &str = "floor, GUE";

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
            grows: self.grows.into(),
            pad: 0,
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
        grows: false,
        flows,
        first_fresh: 0,
        action: TX,
        floor,
    };
    let wrapped = |name, target, vip, floor| Scenario {
        grows: true,
        ..forward(name, target, vip, floor)
    };
    vec![
        forward(FLOOR, Target::FloorDsr, DSR, None),
        forward("lb, DSR", Target::Lb, DSR, Some(FLOOR)),
        Scenario {
            frame: frames::v6(DSR6, PORT, ACK),
            v6: true,
            ..forward("lb, DSR, IPv6", Target::Lb, DSR, Some(FLOOR))
        },
        forward("lb, DSR, in transition", Target::Lb, MOVING, Some(FLOOR)),
        wrapped(FLOOR_IPIP, Target::FloorIpip, IPIP, None),
        wrapped("lb, IPIP", Target::Lb, IPIP, Some(FLOOR_IPIP)),
        wrapped(FLOOR_GUE, Target::FloorGue, GUE, None),
        wrapped("lb, GUE", Target::Lb, GUE, Some(FLOOR_GUE)),
        forward("lb, NAT, request", Target::Lb, NAT, Some(FLOOR)),
        Scenario {
            order: Order::Table,
            ..forward("lb, NAT, reply", Target::Lb, NAT, Some(FLOOR))
        },
        Scenario {
            frame: frames::v4([198, 51, 100, 1].into(), PORT, ACK),
            action: PASS,
            ..forward("lb, not for a VIP", Target::Lb, NAT, None)
        },
    ]
}

/// Packets of one measurement of openings: few enough that all fit into the flow table.
const OPENINGS: u32 = 20_000;
/// Flow numbers that fill the flow table.
const FILL: u64 = 1 << 31;

/// A row whose flows are new with each packet, from number `first_fresh` on.
fn opening(
    name: &'static str,
    vip: Ipv4Addr,
    first_fresh: u64,
    floor: Option<&'static str>,
) -> Scenario {
    Scenario {
        name,
        target: Target::Lb,
        frame: frames::v4(vip, PORT, SYN),
        order: Order::Fresh,
        v6: false,
        grows: false,
        flows: 0,
        first_fresh,
        action: TX,
        floor,
    }
}

/// A SYN that is not recorded.
fn settled_opening() -> Scenario {
    opening("lb, DSR, SYN", DSR, 1 << 28, Some(FLOOR))
}

fn openings() -> Vec<Scenario> {
    let first = 1 << 28;
    vec![
        opening("lb, DSR, SYN, in transition", MOVING, first, Some(FLOOR)),
        opening("lb, NAT, SYN", NAT, first, Some(FLOOR)),
    ]
}

/// The same where each new flow pushes out an old one.
fn full_openings() -> Vec<Scenario> {
    let first = 2 << 28;
    vec![
        opening(
            "lb, DSR, SYN, in transition, full table",
            MOVING,
            first,
            Some(FLOOR),
        ),
        opening("lb, NAT, SYN, full table", NAT, first, Some(FLOOR)),
    ]
}

/// Measures, and prints a table; with `only`, just the rows whose names contain it.
pub fn run(quick: bool, only: Option<&str>) -> Result<()> {
    let effort = if quick { QUICK } else { FULL };
    let mut rows = Vec::new();
    for (entries, flows) in effort.tables {
        let mut kernel = Kernel::load(*entries)?;
        let most = flows.iter().copied().max().unwrap_or(1);
        for vip in [NAT, MOVING] {
            flood(&mut kernel, vip, 0, most)?;
        }
        kernel.tabulate_replies(most)?;
        let established = flows.iter().flat_map(|flows| scenarios(*flows));
        let established = wanted(established.collect(), only);
        rows.extend(measure(&mut kernel, established, &effort, effort.packets)?);
    }
    let mut kernel = Kernel::load(4 * effort.rounds as u32 * OPENINGS)?;
    if let Some(instructions) = kernel.datapath.verified_instructions()? {
        println!("Instructions that the verifier went through: {instructions}");
    }
    let settled = wanted(vec![settled_opening()], only);
    rows.extend(measure(&mut kernel, settled, &effort, effort.packets)?);
    let openings = wanted(openings(), only);
    rows.extend(measure(&mut kernel, openings, &effort, OPENINGS)?);
    // With records, which take no ports: those are to be as free as before.
    let ways = 2 * kernel.datapath.flow_capacity();
    kernel.run(
        &opening("filling", MOVING, FILL, None).drive(Target::Lb, FILL),
        ways,
    )?;
    let full = wanted(full_openings(), only);
    rows.extend(measure(&mut kernel, full, &effort, OPENINGS)?);
    print(&rows, &effort);
    drop(kernel);
    if only.is_none() {
        tables::run(effort.rounds)?;
    }
    Ok(())
}

fn wanted(rows: Vec<Scenario>, only: Option<&str>) -> Vec<Scenario> {
    let wanted = |row: &Scenario| only.is_none_or(|part| row.name.contains(part));
    rows.into_iter().filter(wanted).collect()
}

/// Measures each scenario once a round, so that what else the machine does meets all alike.
fn measure(
    kernel: &mut Kernel,
    scenarios: Vec<Scenario>,
    effort: &Effort,
    packets: u32,
) -> Result<Vec<(Scenario, Vec<f64>)>> {
    for row in &scenarios {
        verify(kernel, row)?;
    }
    let mut rows: Vec<_> = scenarios.into_iter().map(|row| (row, Vec::new())).collect();
    for round in 0..effort.rounds as u64 {
        for (row, times) in &mut rows {
            let start = match row.order {
                Order::Fresh => row.first_fresh + round * u64::from(packets),
                Order::Random | Order::Table => round << 32,
            };
            let base = kernel.run(&row.drive(Target::Pass, start), packets)?;
            let full = kernel.run(&row.drive(row.target, start), packets)?;
            expect(&full, row.action, row.name)?;
            times.push(f64::from(full.duration) - f64::from(base.duration));
        }
    }
    Ok(rows)
}

/// Opens `flows` flows of a service, from number `first` on.
fn flood(kernel: &mut Kernel, vip: Ipv4Addr, first: u64, flows: u32) -> Result<()> {
    let scenario = opening("opening flows", vip, first, None);
    let before = kernel.forwarded()?;
    kernel.run(&scenario.drive(Target::Lb, first), flows)?;
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
    // Other flows than those that are measured.
    let start = match row.order {
        Order::Fresh => row.first_fresh + (1 << 28) - u64::from(PACKETS),
        Order::Random | Order::Table => 1 << 60,
    };
    let before = kernel.forwarded()?;
    let result = kernel.run(&row.drive(row.target, start), PACKETS)?;
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
        "{:<40}{:>10}{:>8}{:>12}{:>9}",
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
        println!("{:<40}{flows:>10}{spread:>20}{ratio:>9}", row.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bench's programs share code with the product; this keeps them loading.
    #[test]
    fn every_scenario_s_packets_are_forwarded() {
        let test = "every_scenario_s_packets_are_forwarded";
        if let Some(reason) = lb_tests::skip::reason() {
            println!("SKIPPED {test}: {reason}");
            return;
        }
        if let Err(reason) = kernel::toolchain::find() {
            println!("SKIPPED {test}: {reason}");
            return;
        }
        let mut kernel = Kernel::load(65_536).unwrap();
        const FLOWS: u32 = 1_000;
        for vip in [NAT, MOVING] {
            flood(&mut kernel, vip, 0, FLOWS).unwrap();
        }
        kernel.tabulate_replies(FLOWS).unwrap();
        let settled = settled_opening();
        let openings = openings();
        let others = openings.iter().chain(std::iter::once(&settled));
        for row in scenarios(FLOWS).iter().chain(others) {
            verify(&mut kernel, row).unwrap();
        }
    }
}
