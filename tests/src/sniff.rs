//! Counts the packets that reach a host, as the host's kernel gets them.

use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use crate::lab::Host;
use crate::sys;

/// The RST bit among the TCP flags.
const RST: u8 = 4;

/// Counts TCP and UDP packets to one port of a host, whatever address they are for; ended when
/// dropped.
#[derive(Debug)]
pub struct Sniffer {
    stop: Arc<AtomicBool>,
    packets: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Sniffer {
    /// Begins to count. TCP packets that only reset do not count.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let (stop, packets) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let mut socket = host
            .namespace
            .within(sys::packet_socket)?
            .context("cannot make a packet socket")?;
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&packets));
        let thread = std::thread::spawn(move || {
            let mut packet = [0; 128];
            while !stopped.load(Ordering::SeqCst) {
                match socket.read(&mut packet) {
                    Ok(length) if is_for(&packet[..length], port) => {
                        counted.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(_) => {}
                    Err(error)
                        if matches!(
                            error.kind(),
                            ErrorKind::WouldBlock | ErrorKind::Interrupted
                        ) => {}
                    Err(error) => {
                        eprintln!("laboratory: a packet socket: {error}");
                        return;
                    }
                }
            }
        });
        Ok(Self {
            stop,
            packets,
            thread: Some(thread),
        })
    }

    /// How many came so far.
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::SeqCst)
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("laboratory: a sniffer's thread panicked");
        }
    }
}

/// Whether this IP packet is for the port, and not a TCP reset.
fn is_for(packet: &[u8], port: u16) -> bool {
    let (protocol, header) = match packet.first().map(|byte| byte >> 4) {
        Some(4) => (packet.get(9), usize::from(packet[0] & 0xf) * 4),
        Some(6) => (packet.get(6), 40),
        _ => return false,
    };
    let Some(rest) = packet.get(header..) else {
        return false;
    };
    let is_port = rest.get(2..4) == Some(&port.to_be_bytes()[..]);
    match protocol.map(|protocol| i32::from(*protocol)) {
        Some(libc::IPPROTO_UDP) => is_port,
        Some(libc::IPPROTO_TCP) => is_port && rest.get(13).is_some_and(|flags| flags & RST == 0),
        _ => false,
    }
}
