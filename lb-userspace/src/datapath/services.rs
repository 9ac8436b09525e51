//! The service table, and beside it the ranges of ports.
//!
//! A service with a range has an entry in the table like any other. The ranges of its VIP, in a map
//! of their own, lead to it; they follow from the entries and are made anew from them.

use std::collections::BTreeSet;
use std::mem::offset_of;
use std::net::IpAddr;

use aya::maps::{HashMap, MapData};
use lb_common::abi::{
    self, MAX_RANGES, Range, RangeKey, Ranges, SERVICE_PLACES, SERVICE_PROBES, ServiceEntry,
    ServiceKey,
};
use lb_common::hash;

use super::maps::{AccessError, map_error};
use super::sys::{Mapped, Raw};
use crate::model::{Endpoint, Ports, Protocol};

/// What packets find their service by.
pub struct Services {
    table: Mapped<ServiceEntry>,
    ranges: HashMap<MapData, Raw<RangeKey>, Raw<Ranges>>,
}

impl Services {
    /// Over the two maps. Ranges that do not lead to an entry, which an agent leaves that dies in the
    /// middle of a change, go.
    pub fn new(
        table: Mapped<ServiceEntry>,
        ranges: HashMap<MapData, Raw<RangeKey>, Raw<Ranges>>,
    ) -> Result<Self, AccessError> {
        let mut services = Self { table, ranges };
        let known: Result<Vec<_>, _> = services.ranges.keys().collect();
        for Raw(key) in known.map_err(map_error("RANGES"))? {
            services.set_ranges(key, None)?;
        }
        Ok(services)
    }

    /// The entries in use.
    pub fn iter(&self) -> impl Iterator<Item = ServiceEntry> {
        (0..self.table.entries())
            .map(|place| self.table.get(place))
            .filter(|entry| entry.word != 0)
    }

    /// Writes the entry of a new service, or changes a known one's.
    pub fn set(
        &mut self,
        at: Endpoint,
        protocol: Protocol,
        value: abi::Service,
    ) -> Result<(), AccessError> {
        let (addr, word, last) = key(at, protocol);
        let is_at =
            |entry: &ServiceEntry| entry.word == word && entry.addr == addr && entry.last == last;
        if let Some(place) = self.place(at, protocol, is_at) {
            self.table
                .set_field(place, offset_of!(ServiceEntry, service), value);
            return Ok(());
        }
        let free = self.place(at, protocol, |entry| entry.word == 0);
        let place = free.ok_or_else(|| AccessError::Content {
            name: "SERVICES",
            what: format!("other services in every place for {at}"),
        })?;
        let mut entry = ServiceEntry {
            addr,
            last,
            service: value,
            ..ServiceEntry::default()
        };
        self.table.set(place, entry);
        if is_range(word) {
            // Packets that the range leads here see no service until the word is written.
            entry.word = word;
            self.set_ranges(range_key(&entry), Some((place, entry)))?;
        }
        self.table
            .set_field(place, offset_of!(ServiceEntry, word), word);
        Ok(())
    }

    /// Removes a service.
    pub fn remove(&mut self, at: Endpoint, protocol: Protocol) -> Result<(), AccessError> {
        let (addr, word, last) = key(at, protocol);
        let is_at =
            |entry: &ServiceEntry| entry.word == word && entry.addr == addr && entry.last == last;
        let Some(place) = self.place(at, protocol, is_at) else {
            return Ok(());
        };
        let entry = self.table.get(place);
        self.table
            .set_field(place, offset_of!(ServiceEntry, word), 0u32);
        if is_range(word) {
            self.set_ranges(range_key(&entry), None)?;
        }
        Ok(())
    }

    /// The first place where a service may be whose entry is as asked for.
    fn place(
        &self,
        at: Endpoint,
        protocol: Protocol,
        is: impl Fn(&ServiceEntry) -> bool,
    ) -> Option<usize> {
        let word = ServiceKey::word_of(at.ports.bounds().0.to_be(), protocol.number());
        let first = hash::service_place(&at.ip.into(), word);
        (0..SERVICE_PROBES)
            .map(|probe| ((first + probe) & (SERVICE_PLACES - 1)) as usize)
            .find(|place| is(&self.table.get(*place)))
    }

    /// Writes the ranges of a VIP from the entries that there are, and the one that is about to be.
    fn set_ranges(
        &mut self,
        key: RangeKey,
        coming: Option<(usize, ServiceEntry)>,
    ) -> Result<(), AccessError> {
        let there = (0..self.table.entries()).map(|place| (place, self.table.get(place)));
        // In the order in which they count: from the first port of any-port services, which is 0,
        // down here.
        let mut found: BTreeSet<(bool, u16, u16, u32)> = BTreeSet::new();
        for (place, entry) in there.chain(coming) {
            if is_range(entry.word) && range_key(&entry) == key {
                let first = u16::from_be((entry.word >> 16) as u16);
                found.insert((first == 0, first, entry.last, place as u32));
            }
        }
        if found.is_empty() {
            return match self.ranges.remove(&Raw(key)) {
                Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
                Err(error) => Err(map_error("RANGES")(error)),
            };
        }
        if found.len() > MAX_RANGES {
            return Err(AccessError::Content {
                name: "RANGES",
                what: format!(
                    "{} ranges of ports of {}, which has room for {MAX_RANGES}",
                    found.len(),
                    IpAddr::from(key.addr)
                ),
            });
        }
        let mut ranges = Ranges::default();
        for (place, (_, first, last, entry)) in ranges.0.iter_mut().zip(found) {
            *place = Range {
                first,
                last,
                place: entry,
            };
        }
        self.ranges
            .insert(Raw(key), Raw(ranges), 0)
            .map_err(map_error("RANGES"))
    }
}

const fn is_range(word: u32) -> bool {
    word & ServiceKey::RANGE != 0
}

fn range_key(entry: &ServiceEntry) -> RangeKey {
    RangeKey {
        addr: entry.addr,
        protocol: entry.word & 0xff,
        pad: 0,
    }
}

/// Address, word and last port of a service's entry.
fn key(at: Endpoint, protocol: Protocol) -> (abi::Addr, u32, u16) {
    let (first, last) = at.ports.bounds();
    let key = ServiceKey {
        addr: at.ip.into(),
        port: first.to_be(),
        protocol: protocol.number(),
    };
    match at.ports {
        Ports::One(_) => (key.addr, key.word(), 0),
        Ports::Range(..) | Ports::Any => (key.addr, key.word() | ServiceKey::RANGE, last),
    }
}

/// Where the service of an entry is reached.
pub fn endpoint(entry: &ServiceEntry) -> Endpoint {
    let first = u16::from_be((entry.word >> 16) as u16);
    Endpoint {
        ip: entry.addr.into(),
        ports: match (is_range(entry.word), first) {
            (false, port) => Ports::One(port),
            (true, 0) => Ports::Any,
            (true, first) => Ports::Range(first, entry.last),
        },
    }
}

/// The protocol of an entry; `None` if this version knows none of that number.
pub fn protocol(entry: &ServiceEntry) -> Option<Protocol> {
    let number = entry.word & 0xffff & !ServiceKey::RANGE;
    [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|protocol| u32::from(protocol.number()) == number)
}
