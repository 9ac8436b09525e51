//! The least that a balancer's packet path must do, on the product's own maps: no filter, no VLAN
//! tags, no fragments, no TTL, no states, no verdicts, and only IPv4 over TCP without options.

use aya_ebpf::bindings::xdp_action;
use lb_common::abi::{Addr, Backend, FlowKey, Hop};
use lb_common::slot::{Slot, TABLE_SIZES};
use lb_common::{checksum, hash};

use crate::FLOOR_SERVICES;
use crate::drive::FloorKey;
use crate::maps::{BACKENDS, TABLES_M, TRAFFIC};
use crate::packet::{Packet, Window};

const L3: usize = 14;
const L4: usize = L3 + 20;
const TCP: u8 = 6;

/// Bytes of Ethernet, IPv4 and TCP headers.
type Headers = Window<{ L4 + 20 }>;

#[inline(always)]
fn parse(packet: &Packet) -> Option<(Headers, FlowKey)> {
    let headers: Headers = packet.window(packet.start())?;
    if headers.u16::<12>() != 0x0800u16.to_be()
        || headers.u8::<L3>() != 0x45
        || headers.u8::<{ L3 + 9 }>() != TCP
    {
        return None;
    }
    let flow = FlowKey {
        src: Addr::v4(headers.u32::<{ L3 + 12 }>()),
        dst: Addr::v4(headers.u32::<{ L3 + 16 }>()),
        sport: headers.u16::<L4>(),
        dport: headers.u16::<{ L4 + 2 }>(),
        protocol: TCP as u32,
    };
    Some((headers, flow))
}

#[inline(always)]
fn finish(packet: &Packet, headers: Headers, hop: &Hop, backend: u16) -> Option<u32> {
    headers.set_u32::<0>(hop.macs[0]);
    headers.set_u32::<4>(hop.macs[1]);
    headers.set_u32::<8>(hop.macs[2]);
    let traffic = TRAFFIC.get_ptr_mut(backend as u32)?;
    // SAFETY: per-CPU, and programs do not preempt each other on a CPU.
    unsafe {
        (*traffic).packets = (*traffic).packets.wrapping_add(1);
        (*traffic).bytes = (*traffic).bytes.wrapping_add(packet.len() as u64);
    }
    Some(xdp_action::XDP_TX)
}

/// One service look-up, hash, one slot, one backend.
#[inline(always)]
fn select(flow: &FlowKey) -> Option<(u16, &'static Backend, u32)> {
    let key = FloorKey {
        addr: flow.dst,
        port: flow.dport,
        protocol: TCP as u16,
        pad: 0,
    };
    // SAFETY: nothing is changed while the bench runs.
    let service = unsafe { FLOOR_SERVICES.get(&key) }?;
    let hash = hash::flow(&flow.src, &flow.dst, flow.sport, flow.dport, TCP);
    let table = TABLES_M.get(*service)?;
    let index = Slot(*table.get(hash::slot(hash, TABLE_SIZES[1]))?).current();
    Some((index, BACKENDS.get(index as u32)?, hash))
}

/// Parse, selection, MAC addresses, one counter.
#[inline(always)]
pub fn dsr(packet: &Packet) -> Option<u32> {
    let (headers, flow) = parse(packet)?;
    let (index, backend, _) = select(&flow)?;
    finish(packet, headers, &backend.hops[0], index)
}

/// The same with an IPv4 header in front.
#[inline(always)]
pub fn ipip(packet: &Packet) -> Option<u32> {
    let (headers, flow) = parse(packet)?;
    let (index, backend, _) = select(&flow)?;
    let length = u16::from_be(headers.u16::<{ L3 + 2 }>());
    let packet = packet.grow(20)?;
    let headers: Headers = packet.window(packet.start())?;
    outer(headers, backend, 4, length);
    finish(&packet, headers, &backend.hops[0], index)
}

/// The same with an IPv4 header and a UDP header in front.
#[inline(always)]
pub fn gue(packet: &Packet) -> Option<u32> {
    let (headers, flow) = parse(packet)?;
    let (index, backend, hash) = select(&flow)?;
    let length = u16::from_be(headers.u16::<{ L3 + 2 }>()) + 8;
    let packet = packet.grow(28)?;
    let headers: Headers = packet.window(packet.start())?;
    outer(headers, backend, 17, length);
    headers.set_u16::<L4>((0xc000 | hash as u16).to_be());
    headers.set_u16::<{ L4 + 2 }>(backend.gue_port);
    headers.set_u16::<{ L4 + 4 }>(length.to_be());
    headers.set_u16::<{ L4 + 6 }>(0);
    finish(&packet, headers, &backend.hops[0], index)
}

/// Writes an EtherType and an IPv4 header around this many bytes.
#[inline(always)]
fn outer(headers: Headers, backend: &Backend, protocol: u8, length: u16) {
    let [high, low] = (length + 20).to_be_bytes();
    let words = [
        u32::from_ne_bytes([0x45, 0, high, low]),
        u32::from_ne_bytes([0, 0, 0x40, 0]),
        u32::from_ne_bytes([64, protocol, 0, 0]),
        backend.source.last_word(),
        backend.addr.last_word(),
    ];
    let sum = words.iter().map(|word| *word as u64).sum();
    headers.set_u16::<12>(0x0800u16.to_be());
    headers.set_u32::<L3>(words[0]);
    headers.set_u32::<{ L3 + 4 }>(words[1]);
    headers.set_u32::<{ L3 + 8 }>(words[2]);
    headers.set_u16::<{ L3 + 10 }>(!checksum::fold(sum));
    headers.set_u32::<{ L3 + 12 }>(words[3]);
    headers.set_u32::<{ L3 + 16 }>(words[4]);
}
