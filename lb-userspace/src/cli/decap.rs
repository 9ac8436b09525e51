//! `lb decap`: the other end of a tunnel, in the foreground.

use std::collections::BTreeSet;
use std::io::{Write, stdout};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use lb_common::abi::Stripped;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, output};
use crate::datapath::decap::{Attached, Counter};
use crate::model::XdpMode;

/// How often the interface's addresses are read anew.
const REFRESH: Duration = Duration::from_secs(2);

/// What it is doing.
#[derive(Debug, Serialize)]
struct Started<'a> {
    state: &'static str,
    interface: &'a str,
    mode: &'static str,
    gue_port: u16,
    addresses: &'a BTreeSet<IpAddr>,
}

/// What it has done.
#[derive(Debug, Serialize)]
struct Ended<'a> {
    state: &'static str,
    interface: &'a str,
    ipip: Counter,
    gue: Counter,
    dropped_congested: Counter,
    dropped_refused: Counter,
}

/// Runs until SIGINT or SIGTERM.
pub fn run(interface: &str, mode: XdpMode, gue_port: u16, json: bool) -> Result<u8, Failure> {
    let _log = super::log::to_stderr("warn")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let (mut interrupt, mut terminate) = runtime
        .block_on(async {
            Ok::<_, std::io::Error>((
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
            ))
        })
        .context("listening for signals")?;
    let mut attached = Attached::new(interface, mode, gue_port).context("cannot decapsulate")?;
    start(&attached, interface, gue_port, json)?;
    loop {
        let ended = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => true,
                _ = terminate.recv() => true,
                () = tokio::time::sleep(REFRESH) => false,
            }
        });
        if ended {
            break;
        }
        match attached.refresh() {
            // Packets go on though nobody reads what is told of them.
            Ok(true) => {
                if let Err(error) = start(&attached, interface, gue_port, json) {
                    output::complain(&error.to_string());
                }
            }
            Ok(false) => {}
            Err(error) => output::complain(&format!("reading the interface's addresses: {error}")),
        }
    }
    let count = |what| attached.count(what).context("reading the counters");
    let ended = Ended {
        state: "ended",
        interface,
        ipip: count(Stripped::Ipip)?,
        gue: count(Stripped::Gue)?,
        dropped_congested: count(Stripped::Congested)?,
        dropped_refused: count(Stripped::Refused)?,
    };
    drop(attached);
    finish(&ended, json)?;
    Ok(0)
}

fn start(attached: &Attached, interface: &str, gue_port: u16, json: bool) -> Result<(), Failure> {
    let mode = if attached.native() {
        "native"
    } else {
        "generic"
    };
    let addresses = attached.addresses();
    let mut out = stdout().lock();
    if json {
        let started = Started {
            state: "attached",
            interface,
            mode,
            gue_port,
            addresses,
        };
        line(&mut out, &started)?;
    } else {
        let list: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        writeln!(
            out,
            "{interface} ({mode} XDP): taking IP-in-IP and GUE (UDP port {gue_port}) headers off \
             packets to {}",
            if list.is_empty() {
                "nobody: it has no address".to_owned()
            } else {
                list.join(", ")
            }
        )?;
    }
    Ok(out.flush()?)
}

fn finish(ended: &Ended<'_>, json: bool) -> Result<(), Failure> {
    let mut out = stdout().lock();
    if json {
        line(&mut out, ended)?;
        return Ok(());
    }
    for (name, count) in [
        ("ipip", ended.ipip),
        ("gue", ended.gue),
        ("dropped, congested", ended.dropped_congested),
        ("dropped, refused", ended.dropped_refused),
    ] {
        let Counter { packets, bytes } = count;
        writeln!(out, "{name:<20}{packets:>14} packets {bytes:>16} bytes")?;
    }
    Ok(())
}

fn line(out: &mut impl Write, value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).context("writing JSON")?;
    Ok(writeln!(out, "{text}")?)
}
