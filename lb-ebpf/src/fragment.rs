//! Fragments of datagrams for a VIP, or of replies from a backend of NAT. Only the first has the ports,
//! so they are kept for the others, which go where the first went. Nothing is put together, and
//! nothing waits: a fragment that comes before the first of its datagram is dropped.
//!
//! By NAT the first fragment goes the way of a whole packet, with all that this brings, a new flow
//! included: it is made to look like one, and like a fragment again afterwards. The checksum of TCP and
//! UDP is in it, covers the whole datagram and changes by the difference; of the others only the
//! addresses change. To a backend the datagrams of many clients come from one address. There the
//! identification, by which the receiver puts them together, is replaced by one that no other datagram
//! for that backend has had for as long as possible. To a client it stays as the backend chose it.

use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_ANY, xdp_md};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{
    Addr, FRAGMENT_LIFETIME, FlowKey, Forwarding, Fragment, FragmentKey, Service,
};
use lb_common::checksum;
use lb_common::verdict::Verdict;
use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use crate::fate::Fate;
use crate::forward::{self, nat, nat_fragment};
use crate::maps::{FRAGMENTS, PARAMS, PIECE};
use crate::packet::Packet;
use crate::parse::{self, FRAGMENT, FRAGMENTED_IPV6, Headers, Located, Ours, TCP, UDP};
use crate::{clock, flows, select};

/// "More fragments", in the word of flags and fragment offset of IPv4.
const MORE: u16 = 0x2000u16.to_be();
/// The same in IPv6's fragment header.
const MORE_IPV6: u16 = 1u16.to_be();
/// In what [`unmask`] is told: it is IPv6's.
const V6_BIT: u32 = 1 << 16;

/// What a fragment says of itself.
struct Part {
    /// As it stands in the packet.
    id: u32,
    /// Place of the header that says so: of IP, or IPv6's fragment header.
    header: usize,
    /// It begins the datagram.
    is_first: bool,
    /// Bytes of the datagram that it has, by the IP header.
    length: u32,
}

/// Serves a packet that was refused as a fragment. A function of its own, and one for each family: rare,
/// large, and the kernel adds up the stacks of what is nested.
#[inline(never)]
pub fn serve<const V6: bool>(ctx: *mut xdp_md, ours: Ours) -> Fate {
    let packet = &Packet::new(&XdpContext::new(ctx));
    read::<V6>(packet, ours).unwrap_or_else(|verdict| Fate::refused(0, verdict))
}

/// Makes the first fragment of a datagram, which was made to look like a whole packet, what it was; with
/// what [`Fate::begun`] says. Nothing that has become of it has moved its headers. A function of its
/// own, as the other.
#[inline(never)]
pub fn unmask(ctx: *mut xdp_md, what: u32) {
    let packet = &Packet::new(&XdpContext::new(ctx));
    // From front to back, or the check that the verifier wants to see would be left out.
    if packet.window::<{ EthHdr::LEN }>(packet.start()).is_none() {
        return;
    }
    let header = packet.start() + (what & 0x3fff) as usize;
    if what & V6_BIT != 0 {
        set_more::<true>(packet, header, true);
    } else {
        set_more::<false>(packet, header, true);
    }
}

#[inline(always)]
fn read<const V6: bool>(packet: &Packet, ours: Ours) -> Result<Fate, Verdict> {
    let l3 = ours.l3(packet)?;
    let (at, part) = if V6 {
        ipv6(packet, l3)
    } else {
        ipv4(packet, l3)
    }?;
    let dst = at.dst;
    balance::<V6>(packet, l3, at, &part).map_err(|verdict| refuse(&dst, verdict))
}

/// What comes to the host's own addresses is left to it.
#[inline(always)]
fn refuse(dst: &Addr, verdict: Verdict) -> Verdict {
    let unknown = matches!(verdict, Verdict::DropMalformed | Verdict::DropFragment);
    if unknown && !parse::is_vip(dst) {
        Verdict::PassNotVip
    } else {
        verdict
    }
}

#[inline(always)]
fn ipv4(packet: &Packet, l3: usize) -> Result<(Located, Part), Verdict> {
    let at = parse::locate_ipv4(packet, l3)?;
    let ip = packet
        .window::<{ Ipv4Hdr::LEN }>(l3)
        .ok_or(Verdict::DropMalformed)?;
    let total = u16::from_be(ip.u16::<{ offset_of!(Ipv4Hdr, tot_len) }>()) as u32;
    let header = (ip.u8::<{ offset_of!(Ipv4Hdr, vihl) }>() & 0x0f) as u32 * 4;
    let part = Part {
        id: ip.u16::<{ offset_of!(Ipv4Hdr, id) }>() as u32,
        header: l3,
        is_first: ip.u16::<{ offset_of!(Ipv4Hdr, frags) }>() & 0x1fffu16.to_be() == 0,
        length: total.saturating_sub(header),
    };
    Ok((at, part))
}

#[inline(always)]
fn ipv6(packet: &Packet, l3: usize) -> Result<(Located, Part), Verdict> {
    let mut at = parse::locate_ipv6(packet, l3)?;
    if at.protocol != FRAGMENT {
        return Err(Verdict::DropFragment);
    }
    let ip = packet
        .window::<{ Ipv6Hdr::LEN }>(l3)
        .ok_or(Verdict::DropMalformed)?;
    let header = packet.window::<8>(at.l4).ok_or(Verdict::DropMalformed)?;
    let offset_mask = FRAGMENTED_IPV6 & !1u16.to_be();
    let place = at.l4;
    at.protocol = header.u8::<0>();
    at.l4 += 8;
    let payload = u16::from_be(ip.u16::<{ offset_of!(Ipv6Hdr, payload_len) }>()) as u32;
    let before = (at.l4 - l3 - Ipv6Hdr::LEN) as u32;
    let part = Part {
        id: header.u32::<4>(),
        header: place,
        is_first: header.u16::<2>() & offset_mask == 0,
        length: payload.saturating_sub(before),
    };
    Ok((at, part))
}

/// What was noted of a datagram: ports and identification; all zeros if nothing was.
#[derive(Clone, Copy)]
struct Noted(u64);

impl Noted {
    #[inline(always)]
    fn sport(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    fn dport(self) -> u16 {
        (self.0 >> 16) as u16
    }

    #[inline(always)]
    fn id(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// What is noted of the datagram of the [`PIECE`], as [`Noted`] has it. A global function, because the
/// verifier goes through what follows it once; and without a pointer to the key, which as an argument
/// would be none for a map before Linux 6.4.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_fragment_noted() -> u64 {
    let Some(piece) = PIECE.get_ptr(0) else {
        return 0;
    };
    // SAFETY: per-CPU; entries are preallocated, and a racing eviction leaves readable memory of this
    // type.
    match unsafe { FRAGMENTS.get(&(*piece).key) } {
        Some(noted) if clock::seconds().wrapping_sub(noted.seen) <= FRAGMENT_LIFETIME => {
            noted.sport as u64 | (noted.dport as u64) << 16 | (noted.id as u64) << 32
        }
        _ => 0,
    }
}

#[inline(always)]
fn balance<const V6: bool>(
    packet: &Packet,
    l3: usize,
    at: Located,
    part: &Part,
) -> Result<Fate, Verdict> {
    let piece = PIECE.get_ptr_mut(0).ok_or(Verdict::DropFragment)?;
    // SAFETY: per-CPU, and programs do not preempt each other on a CPU.
    let piece = unsafe { &mut *piece };
    piece.key = FragmentKey {
        src: at.src,
        dst: at.dst,
        id: part.id,
        protocol: at.protocol as u32,
    };
    let noted = Noted(lb_fragment_noted());
    piece.flow = flow::<V6>(packet, l3, at, part, noted)?;
    let flow = &piece.flow;
    let is_reply = PARAMS
        .get(0)
        .is_some_and(|params| nat::may_be_reply(flow, params))
        && flows::find_reply(flow).is_some();
    // All zeros for none: of an `Option` parts would be left undefined, which the verifier refuses.
    let service = if is_reply {
        Service::default()
    } else {
        select::service(flow).unwrap_or_default()
    };
    let by_nat = is_reply || service.forwarding == Forwarding::Nat as u8;
    if !part.is_first {
        if !by_nat {
            return otherwise::<V6>(packet, l3, flow, service);
        }
        identify::<V6>(packet, part, noted.id())?;
        let l3 = (l3 - packet.start()) as u32;
        let ctx = packet.context();
        return Ok(nat_fragment::later::<V6>(ctx, l3, flow, service.id));
    }
    // The host's own needs no note.
    if !by_nat && !parse::is_vip(&flow.dst) {
        return Err(Verdict::PassNotVip);
    }
    let mut id = part.id;
    if by_nat && !is_reply {
        // Once more: what came behind it has that identification already.
        id = if (noted.sport(), noted.dport()) == (flow.sport, flow.dport) {
            noted.id()
        } else {
            match nat_fragment::identification(flow) {
                Some(id) if V6 => id.to_be(),
                Some(id) => (id as u16).to_be() as u32,
                None => return Ok(Fate::refused(service.id, Verdict::DropNoBackend)),
            }
        };
    }
    piece.note = Fragment {
        sport: flow.sport,
        dport: flow.dport,
        seen: clock::seconds(),
        id,
    };
    FRAGMENTS
        .insert(&piece.key, &piece.note, BPF_ANY as u64)
        .map_err(|_| Verdict::DropFragment)?;
    if !by_nat {
        return otherwise::<V6>(packet, l3, flow, service);
    }
    identify::<V6>(packet, part, id)?;
    set_more::<V6>(packet, part.header, false).ok_or(Verdict::DropMalformed)?;
    let place = (part.header - packet.start()) as u32 & 0xffff;
    Ok(Fate::begin(place | if V6 { V6_BIT } else { 0 }))
}

/// Sends a fragment to a backend that owns the VIP.
#[inline(always)]
fn otherwise<const V6: bool>(
    packet: &Packet,
    l3: usize,
    flow: &FlowKey,
    service: Service,
) -> Result<Fate, Verdict> {
    if service.id == 0 {
        return Err(Verdict::PassNoService);
    }
    forward::keep(flow)?;
    let l3 = (l3 - packet.start()) as u32;
    Ok(Fate::direct(l3, V6, false))
}

/// Sets or clears the bit that says that more fragments follow.
#[inline(always)]
fn set_more<const V6: bool>(packet: &Packet, header: usize, more: bool) -> Option<()> {
    if V6 {
        let fragment = packet.window::<8>(header)?;
        let before = fragment.u16::<2>();
        fragment.set_u16::<2>(if more {
            before | MORE_IPV6
        } else {
            before & !MORE_IPV6
        });
        return Some(());
    }
    let ip = packet.window::<{ Ipv4Hdr::LEN }>(header)?;
    let before = ip.u16::<{ offset_of!(Ipv4Hdr, frags) }>();
    let after = if more { before | MORE } else { before & !MORE };
    let sum = checksum::replace16(0, before, after);
    let check = ip.u16::<{ offset_of!(Ipv4Hdr, check) }>();
    ip.set_u16::<{ offset_of!(Ipv4Hdr, frags) }>(after);
    ip.set_u16::<{ offset_of!(Ipv4Hdr, check) }>(checksum::apply(check, sum));
    Some(())
}

/// Writes the identification.
#[inline(always)]
fn identify<const V6: bool>(packet: &Packet, part: &Part, id: u32) -> Result<(), Verdict> {
    if V6 {
        let header = packet
            .window::<8>(part.header)
            .ok_or(Verdict::DropMalformed)?;
        header.set_u32::<4>(id);
        return Ok(());
    }
    let ip = packet
        .window::<{ Ipv4Hdr::LEN }>(part.header)
        .ok_or(Verdict::DropMalformed)?;
    let sum = checksum::replace16(0, part.id as u16, id as u16);
    let check = ip.u16::<{ offset_of!(Ipv4Hdr, check) }>();
    ip.set_u16::<{ offset_of!(Ipv4Hdr, id) }>(id as u16);
    ip.set_u16::<{ offset_of!(Ipv4Hdr, check) }>(checksum::apply(check, sum));
    Ok(())
}

/// The flow of a first fragment; of a later one by what was noted of the first.
#[inline(always)]
fn flow<const V6: bool>(
    packet: &Packet,
    l3: usize,
    at: Located,
    part: &Part,
    noted: Noted,
) -> Result<FlowKey, Verdict> {
    let least = match at.protocol {
        TCP => TcpHdr::LEN,
        UDP => UdpHdr::LEN,
        // The ports are behind more headers, perhaps in another fragment.
        protocol if V6 && parse::is_extension_header(protocol) => {
            return Err(Verdict::DropFragment);
        }
        _ => return Err(Verdict::PassOtherProtocol),
    };
    if part.is_first {
        // What is behind the end that IP tells would be the frame's padding.
        if (part.length as usize) < least {
            return Err(Verdict::DropMalformed);
        }
        let headers: Headers<V6> = parse::transport(packet, l3, at)?;
        return Ok(headers.flow);
    }
    if part.length == 0 || packet.window::<1>(at.l4).is_none() {
        return Err(Verdict::DropMalformed);
    }
    if noted.0 == 0 {
        return Err(Verdict::DropFragment);
    }
    Ok(FlowKey {
        src: at.src,
        dst: at.dst,
        sport: noted.sport(),
        dport: noted.dport(),
        protocol: at.protocol as u32,
    })
}
