//! The frames that the driver starts from.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::drive::FRAME_LEN;

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

/// First address that clients come from; further flows count on from it.
pub const CLIENT4: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

const ETHERNET: usize = 14;
const TTL: u8 = 64;
const TCP: u8 = 6;

fn ethernet(frame: &mut [u8; FRAME_LEN], ethertype: u16) {
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
}

/// TCP header with a data offset of five words; source port and checksum stay 0, since the driver
/// writes the one and no balancer reads the other.
fn tcp(header: &mut [u8], port: u16, flags: u8) {
    header[2..4].copy_from_slice(&port.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = flags;
}

/// IPv4 and TCP, from [`CLIENT4`].
pub fn v4(vip: Ipv4Addr, port: u16, flags: u8) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    ethernet(&mut frame, 0x0800);
    let ip = &mut frame[ETHERNET..];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((FRAME_LEN - ETHERNET) as u16).to_be_bytes());
    ip[8] = TTL;
    ip[9] = TCP;
    ip[12..16].copy_from_slice(&CLIENT4.octets());
    ip[16..20].copy_from_slice(&vip.octets());
    tcp(&mut ip[20..], port, flags);
    frame
}

/// IPv6 and TCP, from [`CLIENT6`].
pub fn v6(vip: Ipv6Addr, port: u16, flags: u8) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    ethernet(&mut frame, 0x86dd);
    let ip = &mut frame[ETHERNET..];
    ip[0] = 6 << 4;
    ip[4..6].copy_from_slice(&((FRAME_LEN - ETHERNET - 40) as u16).to_be_bytes());
    ip[6] = TCP;
    ip[7] = TTL;
    ip[8..24].copy_from_slice(&CLIENT6.octets());
    ip[24..40].copy_from_slice(&vip.octets());
    tcp(&mut ip[40..], port, flags);
    frame
}
