//! Packets as they come out of the device, and the outer headers that the data plane would put before
//! them (`lb-ebpf/src/forward/tunnel.rs`).

use std::net::IpAddr;

use lb_common::abi::{Forwarding, IPV4_LEN, IPV6_LEN, UDP_LEN};
use lb_common::{checksum, hash};

use crate::model::Via;
use crate::plan::Path;

const IPV4_IN: u8 = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV6_IN: u8 = 41;
/// First UDP source port of GUE: the dynamic range (RFC 6335, section 6).
const FIRST_PORT: u16 = 0xc000;
/// Hops that an outer packet may take, as in the data plane.
const TTL: u8 = 64;

/// Whose packet it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    pub protocol: u8,
    pub source: (IpAddr, u16),
    pub target: (IpAddr, u16),
}

impl Flow {
    /// The flow of a packet that this host has made: TCP or UDP, whole, without extension headers.
    /// `None` for any other.
    pub fn of(packet: &[u8]) -> Option<Self> {
        let (protocol, source, target, payload) = match packet.first()? >> 4 {
            4 => {
                let length = usize::from(packet[0] & 15) * 4;
                let header = packet.get(..length.max(20))?;
                (
                    header[9],
                    v4(&header[12..16])?,
                    v4(&header[16..20])?,
                    &packet[length..],
                )
            }
            6 => {
                let header = packet.get(..40)?;
                (
                    header[6],
                    v6(&header[8..24])?,
                    v6(&header[24..40])?,
                    &packet[40..],
                )
            }
            _ => return None,
        };
        let &[a, b, c, d, ..] = payload else {
            return None;
        };
        matches!(protocol, TCP | UDP).then_some(Self {
            protocol,
            source: (source, u16::from_be_bytes([a, b])),
            target: (target, u16::from_be_bytes([c, d])),
        })
    }

    /// Tells flows apart on the way, as the data plane's hash does.
    pub fn entropy(&self) -> u32 {
        hash::mix(u64::from(self.source.1) << 16 | u64::from(self.target.1)) as u32
    }
}

fn v4(bytes: &[u8]) -> Option<IpAddr> {
    Some(<[u8; 4]>::try_from(bytes).ok()?.into())
}

fn v6(bytes: &[u8]) -> Option<IpAddr> {
    Some(<[u8; 16]>::try_from(bytes).ok()?.into())
}

/// The packet inside its tunnel; `None` where there is none.
pub fn wrap(packet: &[u8], entropy: u32, via: Via, path: &Path) -> Option<Vec<u8>> {
    match via.forwarding {
        Forwarding::Nat | Forwarding::Dsr => return None,
        Forwarding::Ipip | Forwarding::Gue => {}
    }
    let inner_v6 = packet.first()? >> 4 == 6;
    let class = match packet {
        [first, second, ..] if inner_v6 => first << 4 | second >> 4,
        [_, second, ..] => *second,
        _ => return None,
    };
    let (protocol, udp) = match (path.tunnel.gue_port, inner_v6) {
        (0, false) => (IPV4_IN, None),
        (0, true) => (IPV6_IN, None),
        (port, _) => (UDP, Some(port)),
    };
    let payload = packet.len() as u16 + if udp.is_some() { UDP_LEN } else { 0 };
    let mut out = match (path.source, via.backend) {
        (IpAddr::V4(source), IpAddr::V4(backend)) => {
            let source = source.to_bits() | entropy & u32::from_be(path.tunnel.source_bits);
            let [high, low] = (payload + IPV4_LEN).to_be_bytes();
            let mut header = vec![0x45, class, high, low, 0, 0, 0x40, 0, TTL, protocol, 0, 0];
            header.extend(source.to_be_bytes());
            header.extend(backend.octets());
            let words = header.as_chunks::<2>().0;
            let sum = words
                .iter()
                .map(|word| u64::from(u16::from_ne_bytes(*word)));
            let sum = !checksum::fold(sum.sum());
            header[10..12].copy_from_slice(&sum.to_ne_bytes());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(backend)) => {
            let bits = u32::from_be(path.tunnel.source_bits);
            let source = source.to_bits() | u128::from(entropy & bits);
            let first = 6 << 28 | u32::from(class) << 20 | entropy & 0xf_ffff;
            let mut header = Vec::from(first.to_be_bytes());
            header.extend(payload.to_be_bytes());
            header.extend([protocol, TTL]);
            header.extend(source.to_be_bytes());
            header.extend(backend.octets());
            header
        }
        // A path's source is of the backend's family.
        _ => return None,
    };
    if let Some(port) = udp {
        out.extend((FIRST_PORT | entropy as u16).to_be_bytes());
        out.extend(port.to_be_bytes());
        out.extend(payload.to_be_bytes());
        // Tunnels may leave it out, over IPv6 too (RFC 6935).
        out.extend([0, 0]);
    }
    debug_assert_eq!(
        out.len() + packet.len(),
        usize::from(payload)
            + usize::from(if path.source.is_ipv4() {
                IPV4_LEN
            } else {
                IPV6_LEN
            })
    );
    out.extend(packet);
    Some(out)
}
