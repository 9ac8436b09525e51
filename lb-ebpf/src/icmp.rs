//! ICMP for the addresses of ours. An error (path MTU discovery depends on them) quotes the packet
//! that it is about, and goes to the end of the flow that sent it; an echo request to a VIP is
//! answered here. Everything else is left to the host, and so is what stands behind extension
//! headers of IPv6, where neither is ever found.

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::Addr;
use lb_common::verdict::Verdict;
use network_types::eth::EthHdr;
use network_types::ip::{IpProto, Ipv4Hdr, Ipv6Hdr};

use crate::fate::Fate;
use crate::packet::{Packet, unknown};
use crate::parse;

mod echo;
mod error;
mod outer;

pub use error::Quote;

/// Length of the header, in both versions (RFC 792; RFC 4443, section 2.1).
const HEADER: usize = 8;

/// To the host.
const LEFT: Fate = Fate::refused(0, Verdict::PassOtherProtocol);

/// What is done with a message.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    Left = 0,
    Error = 0x100,
    ErrorV6 = 0x200,
    Echo = 0x300,
    EchoV6 = 0x400,
}

/// Serves a packet that was refused as neither TCP nor UDP. The functions that do it stand side by
/// side: they are rare and large, and the kernel adds up the stacks of what is nested.
#[inline(always)]
pub fn serve(ctx: *mut xdp_md) -> Fate {
    let found = find(ctx);
    let l3 = found & 0xff;
    match found & !0xff {
        kind if kind == Kind::Error as u32 => {
            let fate = error::serve::<false>(ctx, l3);
            if fate.bits() == LEFT.bits() {
                outer::note::<false>(ctx, l3);
            }
            fate
        }
        kind if kind == Kind::ErrorV6 as u32 => {
            let fate = error::serve::<true>(ctx, l3);
            if fate.bits() == LEFT.bits() {
                outer::note::<true>(ctx, l3);
            }
            fate
        }
        kind if kind == Kind::Echo as u32 => echo::serve::<false>(ctx, l3),
        kind if kind == Kind::EchoV6 as u32 => echo::serve::<true>(ctx, l3),
        _ => LEFT,
    }
}

/// The kind of a message, and the offset of its IP header in the low byte.
#[inline(never)]
fn find(ctx: *mut xdp_md) -> u32 {
    let packet = &Packet::new(&XdpContext::new(ctx));
    let Ok((ethertype, l3)) = parse::ethernet(packet) else {
        return Kind::Left as u32;
    };
    let l3 = (l3 - packet.start()) as u32 & 0xff;
    let kind = match ethertype {
        parse::IPV4 => message::<false>(packet, l3).map_or(Kind::Left, |icmp| match icmp.kind {
            // Destination unreachable, time exceeded, parameter problem (RFC 792).
            3 | 11 | 12 => Kind::Error,
            8 => Kind::Echo,
            _ => Kind::Left,
        }),
        parse::IPV6 => message::<true>(packet, l3).map_or(Kind::Left, |icmp| match icmp.kind {
            // Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
            1..=4 => Kind::ErrorV6,
            128 => Kind::EchoV6,
            _ => Kind::Left,
        }),
        _ => Kind::Left,
    };
    kind as u32 | l3
}

/// An ICMP packet.
struct Message<const V6: bool> {
    /// Place of the IP header.
    l3: usize,
    /// Place of the ICMP header.
    l4: usize,
    src: Addr,
    dst: Addr,
    kind: u8,
    code: u8,
    /// In bytes from the ICMP header on, that many at the least.
    length: usize,
}

impl<const V6: bool> Message<V6> {
    /// Whether it says that a host or its port cannot be reached, for whatever reason but the length
    /// of the packet.
    #[inline(always)]
    fn is_unreachable(&self) -> bool {
        if V6 {
            self.kind == 1
        } else {
            self.kind == 3 && self.code != 4
        }
    }
}

/// `None` for another protocol, and for what claims to be longer than the frame or is too short.
#[inline(always)]
fn message<const V6: bool>(packet: &Packet, l3: u32) -> Option<Message<V6>> {
    // Windows from front to back: a later one implies the earlier, and LLVM would leave out the
    // check that the verifier wants to see.
    packet.window::<{ EthHdr::LEN }>(packet.start())?;
    let l3 = packet.start() + (l3 & 0x1f) as usize;
    let (src, dst, protocol, header, end);
    if V6 {
        let ip = packet.window::<{ Ipv6Hdr::LEN }>(l3)?;
        src = ip.addr::<{ offset_of!(Ipv6Hdr, src_addr) }>();
        dst = ip.addr::<{ offset_of!(Ipv6Hdr, dst_addr) }>();
        protocol = ip.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>();
        header = Ipv6Hdr::LEN;
        let payload = u16::from_be(ip.u16::<{ offset_of!(Ipv6Hdr, payload_len) }>());
        end = header + payload as usize;
    } else {
        let ip = packet.window::<{ Ipv4Hdr::LEN }>(l3)?;
        src = Addr::v4(ip.u32::<{ offset_of!(Ipv4Hdr, src_addr) }>());
        dst = Addr::v4(ip.u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>());
        protocol = ip.u8::<{ offset_of!(Ipv4Hdr, proto) }>();
        header = (ip.u8::<{ offset_of!(Ipv4Hdr, vihl) }>() & 0x0f) as usize * 4;
        end = u16::from_be(ip.u16::<{ offset_of!(Ipv4Hdr, tot_len) }>()) as usize;
    }
    let wanted = if V6 { IpProto::Ipv6Icmp } else { IpProto::Icmp };
    let length = end.checked_sub(header)?;
    if protocol != wanted as u8 || length < HEADER {
        return None;
    }
    // Out of LLVM's sight, or it would find that this implies what windows ask, and leave out the
    // checks that the verifier wants to see.
    let frame = packet.start() + packet.len() - l3;
    if unknown::<0xffff>(end)? > frame {
        return None;
    }
    let l4 = l3 + header;
    let icmp = packet.window::<HEADER>(l4)?;
    Some(Message {
        l3,
        l4,
        src,
        dst,
        kind: icmp.u8::<0>(),
        code: icmp.u8::<1>(),
        length,
    })
}
