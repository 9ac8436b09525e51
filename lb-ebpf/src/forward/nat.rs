//! Full NAT: a request leaves from an address and port of this host to the backend, and the reply
//! comes back through here. Each flow has two entries in the flow table, one for each direction,
//! keyed by the packet as it arrives. Inserting the reply's entry reserves the port.

use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_loop};
use lb_common::abi::{Addr, Flow, FlowKey, FlowKind, Hop, Params, Service, tcp_seen};
use lb_common::slot::BackendIndex;
use lb_common::verdict::Verdict;
use lb_common::{checksum, flow as policy, hash};
use network_types::eth::EthHdr;
use network_types::ip::Ipv4Hdr;

use crate::count::{self, Kind};
use crate::forward::{decrement_ttl, hop, send};
use crate::maps::{FLOWS, OPENING, Opening, PARAMS};
use crate::packet::Packet;
use crate::parse::{Headers, flag};
use crate::{Fate, Refusal, Sent, select};

/// Ports tried before a flow is refused: with 80 % of a backend's ports taken, 16 tries fail for
/// one flow in 36.
const PORT_TRIES: u32 = 16;

/// Whether the destination port is one that NAT uses.
#[inline(always)]
pub fn may_be_reply(flow: &FlowKey, params: &Params) -> bool {
    u16::from_be(flow.dport).wrapping_sub(params.snat_first) < params.snat_count
}

/// Sends a backend's packet on to its client; `None` if it belongs to no flow.
#[inline(always)]
pub fn reply<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    flow: &FlowKey,
) -> Option<Fate> {
    let entry = FLOWS.get_ptr_mut(flow)?;
    // SAFETY: entries are preallocated; a racing eviction leaves readable memory of the same type.
    let entry = unsafe { &mut *entry };
    if entry.kind != FlowKind::Reply as u8 {
        return None;
    }
    see(entry, headers, tcp_seen::BACKEND_FIN, tcp_seen::REPLY);
    let (service, backend) = (entry.service, entry.backend);
    let sent = decrement_ttl(packet, headers)
        .and_then(|()| rewrite(packet, headers, entry))
        .and_then(|()| send(packet, &entry.client));
    Some(match sent {
        Ok(action) => {
            count::verdict(service, Verdict::NatReply);
            Ok(Sent::reply(backend, action))
        }
        Err(verdict) => Err(Refusal { service, verdict }),
    })
}

/// Sends a client's packet on to its backend, and opens the flow if it is new.
#[inline(always)]
pub fn request<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    flow: &FlowKey,
    service: &Service,
) -> Result<Sent, Verdict> {
    // SAFETY: as above.
    let known = FLOWS.get_ptr_mut(flow).map(|entry| unsafe { &mut *entry });
    // What a service left behind that was `dsr` before says nothing here.
    if let Some(entry) = known.filter(|entry| entry.kind == FlowKind::Forward as u8) {
        if let Some(backend) = select::for_established(entry.backend) {
            if !headers.is_syn() || is_repeated(entry, flow) {
                let seen = if headers.is_syn() {
                    0
                } else {
                    tcp_seen::CLIENT_ACK
                };
                see(entry, headers, tcp_seen::CLIENT_FIN, seen);
                follow_client(packet, entry, flow);
                return forward(packet, headers, entry, hop(backend), Kind::Ordinary);
            }
        } else if headers.is_tcp() && !headers.is_syn() {
            if headers.flags & flag::RST != 0
                && let Some(backend) = select::backend(entry.backend)
            {
                // The client gives up: let the backend know, dead or not.
                return forward(packet, headers, entry, hop(backend), Kind::Ordinary);
            }
            return Err(Verdict::ResetBackendOut);
        }
    } else if headers.is_tcp() && !headers.is_syn() {
        return Err(if headers.flags & flag::RST != 0 {
            Verdict::DropNoFlow
        } else {
            Verdict::ResetNoFlow
        });
    }
    let slot = select::slot(service, flow).ok_or(Verdict::DropNoBackend)?;
    let index = slot.current();
    let entry = open(packet, flow, service, index)?;
    let backend = select::backend(index).ok_or(Verdict::DropNoBackend)?;
    forward(packet, headers, entry, hop(backend), Kind::Opens)
}

#[inline(always)]
fn forward<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    entry: &Flow,
    hop: &Hop,
    kind: Kind,
) -> Result<Sent, Verdict> {
    let bytes = packet.len() as u64;
    decrement_ttl(packet, headers)?;
    rewrite(packet, headers, entry)?;
    let action = send(packet, hop)?;
    let backend = entry.backend;
    count::forwarded(backend, bytes, kind);
    Ok(Sent::to(backend, action))
}

/// Notes what a packet says of its flow. Writes only what changed, so that the entry's cache line
/// stays shared among CPUs. A packet after a RST shows that the RST was not accepted.
#[inline(always)]
fn see<const V6: bool>(entry: &mut Flow, headers: &Headers<V6>, fin: u8, always: u8) {
    let tick = PARAMS.get(0).map_or(0, |params| params.tick);
    if entry.last_seen != tick {
        entry.last_seen = tick;
    }
    let seen = if headers.flags & flag::RST != 0 {
        entry.tcp | always | tcp_seen::RST
    } else if headers.flags & flag::FIN != 0 {
        (entry.tcp | always | fin) & !tcp_seen::RST
    } else {
        (entry.tcp | always) & !tcp_seen::RST
    };
    if entry.tcp != seen {
        entry.tcp = seen;
    }
}

/// Copies word by word. Left to itself LLVM calls memmove, a loop over bytes.
#[inline(always)]
fn copy(addr: &Addr) -> Addr {
    // SAFETY: a reference is valid to read from.
    Addr([0, 1, 2, 3].map(|word| unsafe { (&raw const addr.0[word]).read_volatile() }))
}

/// Key of the other direction's entry.
#[inline(always)]
fn opposite(entry: &Flow, protocol: u32) -> FlowKey {
    FlowKey {
        src: copy(&entry.dst),
        dst: copy(&entry.src),
        sport: entry.dport,
        dport: entry.sport,
        protocol,
    }
}

/// Whether a SYN repeats the one that opened the flow, rather than opening its successor.
#[inline(always)]
fn is_repeated(entry: &Flow, flow: &FlowKey) -> bool {
    if entry.tcp & (tcp_seen::CLIENT_FIN | tcp_seen::RST) != 0 {
        return false;
    }
    let key = opposite(entry, flow.protocol);
    // SAFETY: as above.
    match unsafe { FLOWS.get(&key) } {
        Some(reply) => reply.tcp & (tcp_seen::BACKEND_FIN | tcp_seen::RST) == 0,
        None => false,
    }
}

/// Keeps the way back current when the client's packets come another way.
#[inline(always)]
fn follow_client(packet: &Packet, entry: &mut Flow, flow: &FlowKey) {
    let Some(client) = way_back(packet) else {
        return;
    };
    if entry.client == client {
        return;
    }
    entry.client = client;
    let key = opposite(entry, flow.protocol);
    if let Some(reply) = FLOWS.get_ptr_mut(&key) {
        // SAFETY: as above. A reply racing with this may see half of each; the next one is right.
        unsafe { (*reply).client = client };
    }
}

#[inline(always)]
fn way_back(packet: &Packet) -> Option<Hop> {
    let eth = packet.window::<{ EthHdr::LEN }>(packet.start())?;
    Some(Hop {
        dst_mac: [eth.u16::<6>(), eth.u16::<8>(), eth.u16::<10>()],
        src_mac: [eth.u16::<0>(), eth.u16::<2>(), eth.u16::<4>()],
        ifindex: packet.interface(),
    })
}

/// Opens a flow to a backend: reserves a source port by the reply's entry, then records the flow.
#[inline(always)]
fn open(
    packet: &Packet,
    flow: &FlowKey,
    service: &Service,
    index: BackendIndex,
) -> Result<&'static Flow, Verdict> {
    let backend = select::for_new(index).ok_or(Verdict::DropNoBackend)?;
    if backend.source == Addr::default() {
        return Err(Verdict::DropNoNeighbor);
    }
    let client = way_back(packet).ok_or(Verdict::DropMalformed)?;
    let params = PARAMS.get_ptr_mut(0).ok_or(Verdict::DropNoPort)?;
    // SAFETY: the parameter array has one entry; the agent and this write whole words.
    let params = unsafe { &mut *params };
    // The one clock of the packet path: only the opening of flows needs time to pass.
    // SAFETY: no arguments.
    let tick = (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32;
    if params.tick != tick {
        params.tick = tick;
    }
    let opening = OPENING.get_ptr_mut(0).ok_or(Verdict::DropNoPort)?;
    // SAFETY: per-CPU, and programs do not preempt each other on a CPU.
    let fresh = unsafe { &mut *opening };
    fresh.entry = Flow {
        kind: FlowKind::Reply as u8,
        tcp: 0,
        backend: index,
        service: service.id,
        sport: flow.dport,
        dport: flow.sport,
        pad: 0,
        last_seen: tick,
        src: flow.dst,
        dst: flow.src,
        client,
    };
    fresh.reply = FlowKey {
        src: backend.addr,
        dst: backend.source,
        sport: backend.port,
        dport: 0,
        protocol: flow.protocol,
    };
    // What differs among flows; the generator mixes it.
    let client = (flow.src.0[1] ^ flow.src.0[3]) as u64;
    fresh.random = client << 32 | (params.snat_seed ^ flow.sport as u32) as u64;
    fresh.reserved = 0;
    // A helper's loop, because the verifier goes through its body once, and through what follows
    // an ordinary loop once for each turn.
    // SAFETY: the function has the form that the helper wants (Linux 5.17), and needs no context.
    unsafe { bpf_loop(PORT_TRIES, reserve as *mut c_void, core::ptr::null_mut(), 0) };
    // SAFETY: as above; looked at anew, since the loop has changed it.
    let Opening {
        reply: key,
        entry,
        reserved,
        ..
    } = unsafe { &mut *opening };
    if *reserved == 0 {
        return Err(Verdict::DropNoPort);
    }
    entry.sport = key.dport;
    entry.kind = FlowKind::Forward as u8;
    entry.src = key.dst;
    entry.dst = key.src;
    entry.dport = key.sport;
    if FLOWS.insert(flow, &*entry, BPF_ANY as u64).is_err() {
        // The port goes back; that it was there a moment ago is all the removal can find.
        let _ = FLOWS.remove(&*key);
        return Err(Verdict::DropFlowTable);
    }
    Ok(entry)
}

/// One try to find a port: draws one for the reply's key and inserts the reply's entry there.
/// Nonzero ends the loop.
extern "C" fn reserve(_turn: u64, _context: *mut c_void) -> u64 {
    let (Some(opening), Some(params)) = (OPENING.get_ptr_mut(0), PARAMS.get(0)) else {
        return 1;
    };
    // SAFETY: per-CPU, and programs do not preempt each other on a CPU.
    let opening = unsafe { &mut *opening };
    let key = &mut opening.reply;
    opening.random = hash::mix(opening.random.wrapping_add(0x9e37_79b9_7f4a_7c15));
    let offset = hash::slot((opening.random >> 32) as u32, params.snat_count as u32);
    key.dport = params.snat_first.wrapping_add(offset as u16).to_be();
    let insert = |key: &FlowKey| {
        FLOWS
            .insert(key, &opening.entry, BPF_NOEXIST as u64)
            .is_ok()
    };
    if insert(key) || (evict(key, params.tick) && insert(key)) {
        opening.reserved = 1;
        return 1;
    }
    0
}

/// Frees a port whose flow is over: its forward entry is gone or has another port, both ends have
/// closed it, or it was silent for too long. The forward entry goes too, or a late packet of
/// the old flow would leave from the new one's port.
#[inline(always)]
fn evict(key: &FlowKey, tick: u32) -> bool {
    // SAFETY: as above.
    let Some(reply) = (unsafe { FLOWS.get(key) }) else {
        return true;
    };
    let forward_key = opposite(reply, key.protocol);
    // SAFETY: as above.
    if let Some(forward) = unsafe { FLOWS.get(&forward_key) }
        && forward.sport == key.dport
        && forward.dst == key.src
    {
        let seen = if reply.last_seen > forward.last_seen {
            reply.last_seen
        } else {
            forward.last_seen
        };
        let is_tcp = key.protocol == crate::parse::TCP as u32;
        let limit = policy::idle_limit(is_tcp, forward.tcp, reply.tcp);
        // A closed flow gives way at once: its port is wanted. The clocks of opening and of the
        // agent may differ by a second.
        let over = (is_tcp && policy::is_closed(forward.tcp, reply.tcp))
            || tick.saturating_sub(seen) > limit;
        // Of two CPUs that want the same port, only one removes its entries.
        if !over || FLOWS.remove(&forward_key).is_err() {
            return false;
        }
    }
    FLOWS.remove(key).is_ok()
}

/// Writes the entry's addresses and ports into the packet, with incremental checksums.
#[inline(always)]
fn rewrite<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    to: &Flow,
) -> Result<(), Verdict> {
    let mut sum = 0;
    if V6 {
        let addresses = packet
            .window::<32>(headers.l3 + 8)
            .ok_or(Verdict::DropMalformed)?;
        for word in 0..4 {
            sum = checksum::replace32(sum, headers.src.0[word], to.src.0[word]);
            sum = checksum::replace32(sum, headers.dst.0[word], to.dst.0[word]);
        }
        addresses.set_u32::<0>(to.src.0[0]);
        addresses.set_u32::<4>(to.src.0[1]);
        addresses.set_u32::<8>(to.src.0[2]);
        addresses.set_u32::<12>(to.src.0[3]);
        addresses.set_u32::<16>(to.dst.0[0]);
        addresses.set_u32::<20>(to.dst.0[1]);
        addresses.set_u32::<24>(to.dst.0[2]);
        addresses.set_u32::<28>(to.dst.0[3]);
    } else {
        let ip = packet
            .window::<{ Ipv4Hdr::LEN }>(headers.l3)
            .ok_or(Verdict::DropMalformed)?;
        sum = checksum::replace32(sum, headers.src.0[3], to.src.0[3]);
        sum = checksum::replace32(sum, headers.dst.0[3], to.dst.0[3]);
        ip.set_u32::<{ offset_of!(Ipv4Hdr, src_addr) }>(to.src.0[3]);
        ip.set_u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>(to.dst.0[3]);
        let check = ip.u16::<{ offset_of!(Ipv4Hdr, check) }>();
        ip.set_u16::<{ offset_of!(Ipv4Hdr, check) }>(checksum::apply(check, sum));
    }
    sum = checksum::replace16(sum, headers.sport, to.sport);
    sum = checksum::replace16(sum, headers.dport, to.dport);
    if headers.is_tcp() {
        let tcp = packet
            .window::<20>(headers.l4)
            .ok_or(Verdict::DropMalformed)?;
        tcp.set_u16::<0>(to.sport);
        tcp.set_u16::<2>(to.dport);
        tcp.set_u16::<16>(checksum::apply(tcp.u16::<16>(), sum));
    } else {
        let udp = packet
            .window::<8>(headers.l4)
            .ok_or(Verdict::DropMalformed)?;
        udp.set_u16::<0>(to.sport);
        udp.set_u16::<2>(to.dport);
        let check = udp.u16::<6>();
        // Zero means "no checksum" (RFC 768), so a sum of zero is written as all ones.
        if check != 0 {
            let check = checksum::apply(check, sum);
            udp.set_u16::<6>(if check == 0 { 0xffff } else { check });
        }
    }
    Ok(())
}
