//! From a service and a flow to a backend.

use lb_common::abi::{
    Addr, Affinity, Backend, BackendState, FlowKey, MAX_RANGES, RangeKey, SERVICE_PLACES,
    SERVICE_PROBES, Service, ServiceEntry, ServiceKey,
};
use lb_common::hash;
use lb_common::rescue;
use lb_common::slot::{BackendIndex, Slot, TABLE_SIZES};

use crate::atomic::{below, choose, equal, opaque};
use crate::forward::hop;
use crate::maps::{BACKENDS, RANGES, SERVICES, TABLES_L, TABLES_M, TABLES_S};

/// The service that a client's packet is for. One that has the very port is found first, then one
/// with a range that the port is in.
#[inline(always)]
pub fn service(flow: &FlowKey) -> Option<Service> {
    let word = ServiceKey::word_of(flow.dport, flow.protocol as u8);
    let first = hash::service_place(&flow.dst, word);
    let entry = SERVICES.get_ptr(first)?;
    if is_at(entry, &flow.dst, word) {
        return Some(value(entry));
    }
    let entry = SERVICES.get_ptr(lb_service_away(first, &flow.dst, word))?;
    Some(value(entry))
}

#[inline(always)]
fn is_at(entry: *const ServiceEntry, addr: &Addr, wanted: u32) -> bool {
    // SAFETY: in the map, whose memory is never freed; the agent writes the word last.
    unsafe {
        let word = (&raw const (*entry).word).read_volatile();
        (*entry).addr.difference(addr) | (word ^ wanted) as u64 == 0
    }
}

#[inline(always)]
fn value(entry: *const ServiceEntry) -> Service {
    // SAFETY: as above; the agent writes it in one store.
    unsafe { (&raw const (*entry).service).read_volatile() }
}

/// The place of a service that is not where its hash says, or that has a range of ports;
/// [`SERVICE_PLACES`] if there is none. A global function, which the verifier goes through once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_service_away(first: u32, addr: *const Addr, word: u32) -> u32 {
    if addr.is_null() {
        return SERVICE_PLACES;
    }
    let mut probe = 1;
    while probe < SERVICE_PROBES {
        let place = (first + probe) & (SERVICE_PLACES - 1);
        let Some(entry) = SERVICES.get_ptr(place) else {
            return SERVICE_PLACES;
        };
        // SAFETY: as above, and the caller's address.
        if unsafe { (*entry).addr.difference(&*addr) | ((*entry).word ^ word) as u64 == 0 } {
            return place;
        }
        probe += 1;
    }
    // SAFETY: the caller's address.
    let addr = unsafe { &*addr };
    in_range(addr, word).unwrap_or(SERVICE_PLACES)
}

/// The place of the service with a range that the port in `word` is in.
#[inline(always)]
fn in_range(addr: &Addr, word: u32) -> Option<u32> {
    let protocol = word & 0xff;
    let key = RangeKey {
        addr: *addr,
        protocol,
        pad: 0,
    };
    // SAFETY: an entry that the agent replaces at this very moment may be torn; what comes of that
    // is compared with the service's own entry below.
    let ranges = unsafe { RANGES.get(&key) }?;
    let port = u16::from_be((word >> 16) as u16) as u64;
    let mut found = MAX_RANGES as u32;
    let mut n = MAX_RANGES as u32;
    while n > 0 {
        n -= 1;
        let range = ranges.0.get(n as usize)?;
        let outside = below(port, range.first as u64) | below(range.last as u64, port);
        found = choose(!outside, n, found);
    }
    let range = ranges.0.get(opaque(found) as usize)?;
    let wanted = (range.first.to_be() as u32) << 16 | ServiceKey::RANGE | protocol;
    let entry = SERVICES.get_ptr(range.place)?;
    // SAFETY: as for `is_at`.
    let same = unsafe {
        let known = (&raw const (*entry).word).read_volatile();
        (*entry).addr.difference(addr)
            | (known ^ wanted) as u64
            | ((*entry).last ^ range.last) as u64
    };
    (same == 0).then_some(range.place)
}

/// The port that packets have at a backend, where the client sends to `wanted`.
#[inline(always)]
pub fn port(backend: &Backend, wanted: u16) -> u16 {
    // Not a branch: the verifier would go through all that follows for each of the two.
    choose(
        equal(backend.port as u32, 0),
        wanted as u32,
        backend.port as u32,
    ) as u16
}

/// The hash that picks the flow's slot.
#[inline(always)]
pub fn hash(service: &Service, flow: &FlowKey) -> u32 {
    if service.affinity == Affinity::Client as u8 {
        hash::client(&flow.src)
    } else {
        hash::flow(
            &flow.src,
            &flow.dst,
            flow.sport,
            flow.dport,
            flow.protocol as u8,
        )
    }
}

/// The slot of a [`hash`]; `None` while the service has no table.
#[inline(always)]
pub fn slot(service: &Service, hash: u32) -> Option<Slot> {
    let table = service.id as u32;
    let entry = match service.table_class {
        0 => TABLES_S.get(table)?.get(hash::slot(hash, TABLE_SIZES[0])),
        1 => TABLES_M.get(table)?.get(hash::slot(hash, TABLE_SIZES[1])),
        _ => TABLES_L.get(table)?.get(hash::slot(hash, TABLE_SIZES[2])),
    };
    entry.map(|entry| Slot(*entry))
}

/// The backend that a repeated SYN goes to; see [`rescue::another`]. 0 if there is none.
#[inline(always)]
pub fn another(
    service: &Service,
    hash: u32,
    times: u32,
    present: BackendIndex,
    owner: BackendIndex,
) -> BackendIndex {
    let table = service.id as u32 | (service.table_class as u32) << 16;
    lb_another(table, hash, times, present as u32, owner as u32) as u16
}

/// Does what [`another`] says. A global function, which the verifier goes through once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_another(table: u32, hash: u32, times: u32, present: u32, owner: u32) -> u32 {
    let taker = |hash| lb_taker(table, hash) as u16;
    rescue::another(hash, times, present as u16, owner as u16, taker) as u32
}

/// The owner of the slot of this hash, if it takes new flows and the way there is known, else 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_taker(table: u32, hash: u32) -> u32 {
    let service = Service {
        id: table as u16,
        table_class: (table >> 16) as u8,
        ..Service::default()
    };
    let Some(slot) = slot(&service, hash) else {
        return 0;
    };
    match for_new(slot.current()) {
        Some(backend) if hop(backend).ifindex != 0 => slot.current() as u32,
        _ => 0,
    }
}

/// A backend's entry; number 0 has none.
#[inline(always)]
pub fn backend(index: BackendIndex) -> Option<&'static Backend> {
    if index == 0 {
        None
    } else {
        BACKENDS.get(index as u32)
    }
}

/// A backend that takes new flows.
#[inline(always)]
pub fn for_new(index: BackendIndex) -> Option<&'static Backend> {
    backend(index).filter(|backend| backend.state == BackendState::Active as u8)
}

/// A backend that keeps the flows it has.
#[inline(always)]
pub fn for_established(index: BackendIndex) -> Option<&'static Backend> {
    backend(index).filter(|backend| {
        backend.state == BackendState::Active as u8 || backend.state == BackendState::Draining as u8
    })
}
