//! Whether a flow table that nobody is changing is what its rules say.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;

use lb_common::abi::{Addr, Backend, Flow, FlowKey};
use lb_common::flow_table::{Bucket, HELD, Place, WAYS, record_of};

use super::{FlowTable, Way};

/// A rule of the table that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inconsistency {
    /// A way that nobody fills or clears is held.
    Held(Way),
    /// A free way whose record is in use, or a taken one whose record is not.
    Half(Way),
    /// A record that its flow is not looked for at: of another bucket, or under another tag.
    Misplaced(Way),
    /// Two records of one flow.
    Twice(Way, Way),
    /// A NAT flow whose replies are found by none or by several references.
    Referred { way: Way, references: usize },
    /// A reference to nothing, or that no reply of its flow is looked for at.
    Stray {
        line: usize,
        place: usize,
        record: Option<Way>,
    },
    /// Two NAT flows whose replies look the same.
    SameReplies(Way, Way),
}

impl FlowTable {
    /// All that is wrong with the table. What is just being changed looks wrong, so this is for
    /// tests, when no packets come and no other agent runs.
    pub fn check(
        &self,
        backend: impl Fn(u16) -> Backend,
        source: impl Fn(u8) -> Addr,
    ) -> Vec<Inconsistency> {
        let reply = |flow: &Flow| {
            let entry = backend(flow.backend);
            flow.reply_key(entry.addr, entry.port, source(flow.source))
        };
        let mut wrong = Vec::new();
        // By line, and by what stands in it.
        let mut references: BTreeMap<(usize, u32), usize> = BTreeMap::new();
        for (line, _, reference) in self.references() {
            *references.entry((line, reference)).or_default() += 1;
        }
        let mut expected = BTreeSet::new();
        let mut flows = BTreeMap::new();
        let mut replies = BTreeMap::new();
        for way in self.ways() {
            let (tag, flow) = (self.tag(way), self.record(way));
            if tag == HELD {
                wrong.push(Inconsistency::Held(way));
                continue;
            }
            if (tag == 0) != (flow.protocol == 0) {
                wrong.push(Inconsistency::Half(way));
            }
            if tag == 0 || flow.protocol == 0 {
                continue;
            }
            let key = flow.key();
            let place = Place::of(&key, self.seed);
            if (place.index(self.buckets() as u32) as usize, place.tag()) != (way.bucket, tag) {
                wrong.push(Inconsistency::Misplaced(way));
            }
            if let Some(other) = flows.insert(order(&key), way) {
                wrong.push(Inconsistency::Twice(other, way));
            }
            if flow.source == 0 {
                continue;
            }
            let key = reply(&flow);
            let place = Place::of(&key, self.seed);
            let wanted = (self.line(place), place.reference(way.number()));
            let count = references.get(&wanted).copied().unwrap_or(0);
            if count != 1 {
                wrong.push(Inconsistency::Referred {
                    way,
                    references: count,
                });
            }
            expected.insert(wanted);
            if let Some(other) = replies.insert(order(&key), way) {
                wrong.push(Inconsistency::SameReplies(other, way));
            }
        }
        for (line, place, reference) in self.references() {
            if !expected.contains(&(line, reference)) {
                wrong.push(Inconsistency::Stray {
                    line,
                    place,
                    record: record_of(reference).map(Way::of),
                });
            }
        }
        wrong
    }

    fn ways(&self) -> impl Iterator<Item = Way> {
        (0..self.buckets()).flat_map(|bucket| (0..WAYS).map(move |way| Way { bucket, way }))
    }

    /// The tags of a bucket.
    pub(super) fn tags(&self, bucket: usize) -> [u32; WAYS] {
        self.buckets.get_field(bucket, offset_of!(Bucket, tags))
    }
}

/// What two keys are compared by.
fn order(key: &FlowKey) -> (Addr, Addr, u16, u16, u32) {
    (key.src, key.dst, key.sport, key.dport, key.protocol)
}
