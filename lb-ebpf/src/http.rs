//! The statuses of HTTP answers that pass by, as a hint of how a backend does.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::slot::BackendIndex;
use network_types::tcp::TcpHdr;

use crate::count::{self, Sign};
use crate::packet::Packet;
use crate::parse::Headers;

/// The first octets of an HTTP/1 answer (RFC 9112, section 4), in the order of the packet.
const HTTP_1: [u32; 2] = [
    u32::from_ne_bytes(*b"HTTP"),
    u32::from_ne_bytes([b'/', b'1', b'.', 0]),
];
/// As far as a TCP header can lie behind the packet's start.
const FARTHEST: u32 = 0x3fff;

/// Counts the status if the packet begins an answer. A packet in the midst of a body that looks
/// like one is counted too.
#[inline(always)]
pub fn watch<const V6: bool>(packet: &Packet, headers: &Headers<V6>, backend: BackendIndex) {
    lb_http_watch(
        packet.context(),
        (headers.l4 - packet.start()) as u32,
        backend as u32,
    );
}

/// Does what [`watch`] says, for the TCP header this far from the packet's start. A global
/// function, which the verifier goes through once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_http_watch(ctx: *mut xdp_md, l4: u32, backend: u32) -> u32 {
    let packet = &Packet::new(&XdpContext::new(ctx));
    let Some(class) = class(packet, packet.start() + (l4 & FARTHEST) as usize) else {
        return 0;
    };
    let sign = match class {
        b'1'..=b'4' => Sign::HttpOk,
        b'5' => Sign::HttpError,
        _ => return 0,
    };
    count::sign(backend as BackendIndex, sign);
    1
}

/// The first digit of the status.
#[inline(always)]
fn class(packet: &Packet, tcp: usize) -> Option<u8> {
    let header = packet.window::<{ TcpHdr::LEN }>(tcp)?;
    let length = (header.u8::<12>() >> 4) as usize * 4;
    let answer = packet.window::<10>(tcp + length)?;
    let version = answer.u32::<4>() & u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
    let begins = answer.u32::<0>() == HTTP_1[0] && version == HTTP_1[1];
    // `HTTP/1.1 200`: the digit is the tenth octet.
    begins.then(|| answer.u8::<9>())
}
