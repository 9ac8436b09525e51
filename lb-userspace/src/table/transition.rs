//! Changing owners without breaking flows.
//!
//! What the XDP program does with a packet of a TCP flow, where "serves" means that the backend's
//! state word lets it have established flows (active or draining):
//!
//! - slot settled: the current owner;
//! - slot in transition, SYN: the current owner, and the flow is recorded;
//! - slot in transition, other packet: the recorded backend if there is a record and it serves;
//!   without a record the previous owner if it serves; else the current owner.
//!
//! Claim: as long as tables come from [`advance`] and [`settle`], no flow whose backend serves
//! without interruption ever changes its backend. By the slot's history:
//!
//! 1. *While a slot is settled with owner A* all its flows that are still alive are on A, and none
//!    needs a record. (True of an empty table; kept by the steps below.)
//! 2. *A → B opens a transition `(B, A)`.* At that moment all live flows are on A and have no
//!    record; they go to `previous` = A. Flows opened from now on are recorded where they go.
//!    If A serves no established flows, all flows of the slot are given up, nothing is left to
//!    break, and the slot is settled with B at once.
//! 3. *The owner changes again, to C, while the transition is open.* Flows from before it have no
//!    record and belong to A; all later ones have a record. So `(C, A)` is right, whatever
//!    happened in between: one level of history is enough. That also holds if C is A again, but the
//!    transition must stay open, since flows recorded on B are alive; and if A is out by now: its
//!    flows are given up, and no others rely on `previous`.
//! 4. *A transition closes* only when no flow without a record is on another backend than the
//!    current owner, and no record names another: then 1 holds again. Records that stay behind name
//!    the owner, as does whatever is opened while the slot is settled, so they are still right when
//!    the slot is in transition again.

use std::collections::BTreeSet;

use lb_common::slot::{BackendIndex, Slot};

/// The next table: `wanted` as current owners, with slots that change hands in transition.
///
/// `may_hold_flows` says whether a backend may serve established flows (active, standing by or
/// draining, not out). An empty `old` is the table of a service that had none. `old` and `wanted`
/// otherwise have the same length; see [`resize`] if the size is to change (it is called here for
/// a table of another length, so that no table is ever written with a wrong one).
pub fn advance(
    old: &[Slot],
    wanted: &[BackendIndex],
    may_hold_flows: impl Fn(BackendIndex) -> bool,
) -> Vec<Slot> {
    if old.is_empty() {
        return wanted.iter().copied().map(Slot::settled).collect();
    }
    if old.len() != wanted.len() {
        return advance(&resize(old, wanted.len()), wanted, may_hold_flows);
    }
    old.iter()
        .zip(wanted)
        .map(|(&slot, &owner)| {
            let before = slot.current();
            if slot.in_transition() {
                Slot::transition(owner, slot.previous())
            } else if owner == before {
                slot
            } else if before != 0 && may_hold_flows(before) {
                Slot::transition(owner, before)
            } else {
                Slot::settled(owner)
            }
        })
        .collect()
}

/// A table in which transitions were closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    pub slots: Vec<Slot>,
    /// The slots closed, ascending. After the table is written, and before one is written that
    /// opens any of them again, their flow records must be deleted.
    pub closed: Vec<u32>,
}

/// Closes the transitions for which `is_over` says so; `None` if it says so of none.
///
/// It may say so of a slot when every live flow of it is on its current owner:
/// - its previous owner is the current one, or out, or gets no packets any more for lack of a
///   record (`by_previous` in its traffic counters has not moved for as long as flows may idle);
/// - and no record of a live flow of the slot names another backend that still serves.
pub fn settle(slots: &[Slot], mut is_over: impl FnMut(u32, Slot) -> bool) -> Option<Settled> {
    let over = |(number, slot): &(u32, &Slot)| slot.in_transition() && is_over(*number, **slot);
    let closed: Vec<u32> = (0..)
        .zip(slots)
        .filter(over)
        .map(|(number, _)| number)
        .collect();
    if closed.is_empty() {
        return None;
    }
    let mut slots = slots.to_vec();
    for number in &closed {
        let slot = &mut slots[*number as usize];
        *slot = Slot::settled(slot.current());
    }
    Some(Settled { slots, closed })
}

/// The same table with another number of slots: each new slot is the old one at the middle of its
/// share of the hash space (`lb_common::hash::slot`).
///
/// A new slot that straddles the border of old ones can only be one of them, so flows of the other
/// that hash into it are not protected: going from 4,093 to 65,537 slots at most 3.2 % of the hash
/// space, from 65,537 to 655,373 at most 5 %, and less where neighbours have the same owner. That
/// is why a running service should grow its table at most once in a while and never shrink it.
pub fn resize(old: &[Slot], size: usize) -> Vec<Slot> {
    if old.is_empty() {
        return vec![Slot::settled(0); size];
    }
    let (old_size, new_size) = (old.len() as u128, size as u128);
    (0..new_size)
        .map(|slot| old[((2 * slot + 1) * old_size / (2 * new_size)) as usize])
        .collect()
}

/// Number of slots that each backend currently owns, indexed by backend, as long as the highest
/// number in the table asks for.
pub fn count_current(slots: &[Slot]) -> Vec<u32> {
    let mut counts = Vec::new();
    for slot in slots {
        let index = usize::from(slot.current());
        if index >= counts.len() {
            counts.resize(index + 1, 0);
        }
        counts[index] += 1;
    }
    counts
}

/// Backends that a table names, as current or previous owner: their numbers must not be given to
/// others.
pub fn referenced(slots: &[Slot]) -> BTreeSet<BackendIndex> {
    let named = slots
        .iter()
        .flat_map(|slot| [slot.current(), slot.previous()]);
    named.filter(|&index| index != 0).collect()
}
