//! The flow table in this process's memory. The packet path reads and changes it at the same time;
//! [`lb_common::flow_table`] has the rules by which both do.

use std::collections::BTreeSet;
use std::mem::offset_of;

use lb_common::abi::{Addr, Backend, Flow, FlowKey};
use lb_common::flow_table::{Bucket, HELD, Place, REFERENCES, Replies, WAYS, capacity, record_of};
pub use lb_common::flow_table::{buckets_for, reply_lines};

use super::sys::Mapped;

mod check;

pub use check::Inconsistency;

/// The buckets and the references to them.
pub struct FlowTable {
    buckets: Mapped<Bucket>,
    replies: Mapped<Replies>,
    seed: u32,
    /// The coarse clock's reading when the table was opened. While no agent ran it may have stood
    /// still, and flows that were alive all the time look as if they had been silent since.
    opened: u32,
    suspects: Suspects,
}

/// What a process or a CPU that was stopped in the middle of a change may have left, for a second
/// look: what is still the same then is nobody's work any more.
#[derive(Default)]
struct Suspects {
    ways: BTreeSet<Way>,
    /// Line, place and value of references to records that are not in use. Looked for twice after
    /// the table was opened: only an agent that was killed leaves them.
    references: BTreeSet<(usize, usize, u32)>,
    looks: u32,
}

/// A place for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    bucket: usize,
    way: usize,
}

impl Way {
    const fn of(record: u32) -> Self {
        Self {
            bucket: record as usize / WAYS,
            way: record as usize % WAYS,
        }
    }

    const fn number(self) -> u32 {
        (self.bucket * WAYS + self.way) as u32
    }

    const fn tag(self) -> usize {
        offset_of!(Bucket, tags) + self.way * size_of::<u32>()
    }

    const fn record(self) -> usize {
        offset_of!(Bucket, records) + self.way * size_of::<Flow>()
    }
}

impl FlowTable {
    /// Over the two maps; `now` in seconds of the coarse clock.
    pub fn new(buckets: Mapped<Bucket>, replies: Mapped<Replies>, seed: u32, now: u32) -> Self {
        Self {
            buckets,
            replies,
            seed,
            opened: now,
            suspects: Suspects::default(),
        }
    }

    /// Number of buckets.
    pub fn buckets(&self) -> usize {
        self.buckets.entries()
    }

    /// Flows that there is room for.
    pub fn capacity(&self) -> u32 {
        capacity(self.buckets() as u32)
    }

    fn tag(&self, way: Way) -> u32 {
        self.buckets.get_field(way.bucket, way.tag())
    }

    /// The record at a place.
    pub fn record(&self, way: Way) -> Flow {
        self.buckets.get_field(way.bucket, way.record())
    }

    /// The record of a flow, by its client's packets.
    pub fn find(&self, key: &FlowKey) -> Option<Flow> {
        let place = Place::of(key, self.seed);
        let bucket = place.index(self.buckets() as u32) as usize;
        (0..WAYS)
            .map(|way| Way { bucket, way })
            .filter(|way| self.tag(*way) == place.tag())
            .map(|way| self.record(way))
            .find(|flow| flow.is_of(key))
    }

    /// The records that may be of a flow with such replies.
    pub fn answered_by(&self, key: &FlowKey) -> impl Iterator<Item = Flow> {
        let place = Place::of(key, self.seed);
        let line = self.replies.get(self.line(place)).0;
        line.into_iter()
            .filter(move |reference| reference >> 24 == place.reply_tag())
            .filter_map(record_of)
            .map(|number| self.record(Way::of(number)))
    }

    fn line(&self, place: Place) -> usize {
        place.index(self.replies.entries() as u32) as usize
    }

    /// All flows, and the ways that somebody is filling or clearing, without one. Those that come or
    /// go meanwhile may be among them or not.
    pub fn iter(&self) -> impl Iterator<Item = (Way, Option<Flow>)> {
        let tags = (0..self.buckets()).map(|bucket| (bucket, self.tags(bucket)));
        // Of the empty ones, most of them with few flows, the tags are not looked at one by one.
        let used = tags.filter(|(_, tags)| tags.iter().fold(0, |all, tag| all | tag) != 0);
        let ways = used.flat_map(|(bucket, tags)| {
            let ways = tags.into_iter().enumerate();
            ways.map(move |(way, tag)| (Way { bucket, way }, tag))
        });
        ways.filter_map(|(way, tag)| match tag {
            0 => None,
            HELD => Some((way, None)),
            _ => {
                let flow = self.record(way);
                (flow.protocol != 0).then_some((way, Some(flow)))
            }
        })
    }

    /// Seconds since a flow was seen, as far as this agent knows.
    pub fn idle(&self, flow: &Flow, tick: u32) -> u32 {
        // A packet may have advanced the clock since it was read.
        tick.saturating_sub(flow.last_seen.max(self.opened))
    }

    /// Removes flows; how many were still there as they were found.
    pub fn remove(
        &mut self,
        flows: &[(Way, Flow)],
        backend: impl Fn(u16) -> Backend,
        source: impl Fn(u8) -> Addr,
    ) -> u64 {
        let mut removed = 0;
        let mut lost = BTreeSet::new();
        for (way, flow) in flows {
            let tag = Place::of(&flow.key(), self.seed).tag();
            if !self.buckets.swap_field(way.bucket, way.tag(), tag, HELD) {
                // The packet path was quicker.
                continue;
            }
            removed += 1;
            let word = way.record() + offset_of!(Flow, client_port);
            self.buckets.set_field(way.bucket, word, 0u64);
            if flow.source != 0 {
                let (backend, source) = (backend(flow.backend), source(flow.source));
                let key = flow.reply_key(backend.addr, backend.port, source);
                let place = Place::of(&key, self.seed);
                if !self.drop_reference(self.line(place), place.reference(way.number())) {
                    lost.insert(way.number());
                    continue;
                }
            }
            self.buckets.set_field(way.bucket, way.tag(), 0u32);
        }
        self.drop_references(&lost);
        for number in lost {
            let way = Way::of(number);
            self.buckets.set_field(way.bucket, way.tag(), 0u32);
        }
        removed
    }

    fn drop_reference(&mut self, line: usize, wanted: u32) -> bool {
        let found = (0..REFERENCES).map(|n| n * size_of::<u32>());
        let mut found = found.filter(|at| self.replies.get_field::<u32>(line, *at) == wanted);
        match found.next() {
            Some(at) => self.replies.swap_field(line, at, wanted, 0),
            None => false,
        }
    }

    /// Drops whatever refers to these records: what their replies looked like is not known any more.
    fn drop_references(&mut self, records: &BTreeSet<u32>) {
        if records.is_empty() {
            return;
        }
        for (line, n, reference) in self.references() {
            if record_of(reference).is_some_and(|record| records.contains(&record)) {
                self.replies
                    .swap_field(line, n * size_of::<u32>(), reference, 0);
            }
        }
    }

    /// Line, place and value of all references.
    fn references(&self) -> Vec<(usize, usize, u32)> {
        (0..self.replies.entries())
            .flat_map(|line| {
                let references = self.replies.get(line).0.into_iter().enumerate();
                references.map(move |(n, reference)| (line, n, reference))
            })
            .filter(|(_, _, reference)| *reference != 0)
            .collect()
    }

    /// Frees what whoever was stopped in the middle of a change has left. To be called again and
    /// again, a second or more apart, with the `ways` that were found without a flow: what was half
    /// done both times is freed.
    pub fn repair(&mut self, ways: BTreeSet<Way>) {
        let mut references = BTreeSet::new();
        if self.suspects.looks < 2 {
            let dangling = |(_, _, reference): &(usize, usize, u32)| {
                record_of(*reference)
                    .is_none_or(|record| self.record(Way::of(record)).protocol == 0)
            };
            references.extend(self.references().into_iter().filter(dangling));
        }
        let stopped: Vec<Way> = ways.intersection(&self.suspects.ways).copied().collect();
        for way in &stopped {
            let word = way.record() + offset_of!(Flow, client_port);
            self.buckets.set_field(way.bucket, word, 0u64);
        }
        // Before others can take the ways: what refers to them would be taken for theirs.
        self.drop_references(&stopped.iter().map(|way| way.number()).collect());
        for way in &stopped {
            self.buckets.set_field(way.bucket, way.tag(), 0u32);
        }
        for (line, n, reference) in references.intersection(&self.suspects.references) {
            self.replies
                .swap_field(*line, n * size_of::<u32>(), *reference, 0);
        }
        self.suspects = Suspects {
            ways,
            references,
            looks: self.suspects.looks.saturating_add(1),
        };
    }
}

#[cfg(test)]
mod tests;
