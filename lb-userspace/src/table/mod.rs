//! Who owns each slot of a service's table.
//!
//! Three steps, each pure and each testable alone:
//!
//! 1. [`Base`]: a weighted Maglev table over all *configured* backends, whatever their health.
//! 2. [`Base::overlay`]: the slots whose owner may not take new flows are refilled from the
//!    others; no other slot moves.
//! 3. [`advance`]: from the table in force and the owners wanted, the next table, in which slots
//!    that change hands are in transition, so that established flows stay where they are.
//!
//! ```
//! use lb_userspace::table::{Base, Member, advance, size_for};
//!
//! let members: Vec<Member> = (1..=3)
//!     .map(|index| Member { index, identity: format!("10.0.0.{index}:80"), weight: 100 })
//!     .collect();
//! let base = Base::new(&members, size_for(members.iter().map(|m| m.weight)));
//! let all = advance(&[], &base.overlay(|_| true), |_| false);
//! // Backend 2 drains: its slots, and no others, go over to 1 and 3.
//! let next = advance(&all, &base.overlay(|index| index != 2), |_| true);
//! for (old, new) in all.iter().zip(&next) {
//!     assert_eq!(old.current() == 2, new.in_transition());
//! }
//! ```

mod maglev;
mod overlay;
mod transition;

pub use maglev::{SLOTS_PER_BACKEND, size_for};
pub use transition::{Settled, advance, count_current, referenced, resize, settle};

use lb_common::slot::BackendIndex;

/// A configured backend as the table sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number in the backend array, a mere label here: the layout of the table does not depend
    /// on it. Not 0, at most `MAX_BACKEND_INDEX`.
    pub index: BackendIndex,
    /// What decides which slots it gets: stable over restarts and the same on all balancers, such
    /// as its address and port. Distinct among the members of a table.
    pub identity: String,
    /// Share of the slots, relative to the other members; 0: none.
    pub weight: u32,
}

/// The consistent-hash table of a service's configured backends.
///
/// Depends on nothing but the identities and weights of the members and the size: neither their
/// order nor their numbers nor their health.
#[derive(Clone, Debug)]
pub struct Base {
    /// Members with a weight, by identity.
    members: Vec<Member>,
    /// Position in `members` of each slot's owner; empty if nobody has a weight.
    owners: Vec<u16>,
    size: u32,
}

impl Base {
    /// Builds the table. `size` is one of [`lb_common::slot::TABLE_SIZES`], or any other prime.
    ///
    /// At most 65,535 members with a weight are used; any more (the backend array holds fewer)
    /// get no slots.
    pub fn new(members: &[Member], size: u32) -> Self {
        let mut members: Vec<Member> = members.iter().filter(|m| m.weight > 0).cloned().collect();
        members.sort_by(|a, b| (&a.identity, a.index).cmp(&(&b.identity, b.index)));
        members.truncate(usize::from(u16::MAX));
        let owners = maglev::fill(&members, size);
        Self {
            members,
            owners,
            size,
        }
    }

    /// Number of slots.
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// Owner of each slot when everyone is eligible; 0 where nobody has a weight.
    pub fn owners(&self) -> Vec<BackendIndex> {
        self.overlay(|_| true)
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod transition_tests;
