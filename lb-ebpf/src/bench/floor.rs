//! The least that a balancer's packet path must do, on the product's own maps: no filter, no VLAN
//! tags, no fragments, no TTL, no states, no verdicts, and only IPv4 over TCP without options.

use aya_ebpf::bindings::xdp_action;
use lb_common::abi::{Addr, FlowKey, Hop};
use lb_common::hash;
use lb_common::slot::{Slot, TABLE_SIZES};

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
    headers.set_u16::<0>(hop.dst_mac[0]);
    headers.set_u16::<2>(hop.dst_mac[1]);
    headers.set_u16::<4>(hop.dst_mac[2]);
    headers.set_u16::<6>(hop.src_mac[0]);
    headers.set_u16::<8>(hop.src_mac[1]);
    headers.set_u16::<10>(hop.src_mac[2]);
    let traffic = TRAFFIC.get_ptr_mut(backend as u32)?;
    // SAFETY: per-CPU, and programs do not preempt each other on a CPU.
    unsafe {
        (*traffic).packets = (*traffic).packets.wrapping_add(1);
        (*traffic).bytes = (*traffic).bytes.wrapping_add(packet.len() as u64);
    }
    Some(xdp_action::XDP_TX)
}

/// Parse, one service look-up, hash, one slot, one backend, MAC addresses, one counter.
#[inline(always)]
pub fn dsr(packet: &Packet) -> Option<u32> {
    let (headers, flow) = parse(packet)?;
    let key = FloorKey {
        addr: flow.dst,
        port: flow.dport,
        protocol: TCP as u16,
    };
    // SAFETY: nothing is changed while the bench runs.
    let service = unsafe { FLOOR_SERVICES.get(&key) }?;
    let hash = hash::flow(&flow.src, &flow.dst, flow.sport, flow.dport, TCP);
    let table = TABLES_M.get(*service)?;
    let index = Slot(*table.get(hash::slot(hash, TABLE_SIZES[1]))?).current();
    let backend = BACKENDS.get(index as u32)?;
    finish(packet, headers, &backend.hops[0], index)
}
