//! A slot of a service's table: who serves new flows, and who served them before a transition.

/// Number of a backend in the backend array; 0 means none.
pub type BackendIndex = u16;

/// Highest backend number that fits beside the transition bit of a slot.
pub const MAX_BACKEND_INDEX: BackendIndex = 0x7fff;

/// One slot, packed in 32 bits: bits 0–15 current owner, 16–30 previous owner, 31 transition.
///
/// While the transition bit is set, flows opened before the change belong to `previous`, and flows
/// opened since are recorded. The bit stands on its own because an owner that lost a slot and got
/// it back is both current and previous while recorded flows of its stand-in are still alive.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Slot(pub u32);

impl Slot {
    const TRANSITION: u32 = 1 << 31;

    /// A slot whose owner is not changing.
    pub const fn settled(current: BackendIndex) -> Self {
        Self(current as u32)
    }

    /// A slot that goes from `previous` to `current`.
    pub const fn transition(current: BackendIndex, previous: BackendIndex) -> Self {
        Self(current as u32 | ((previous & MAX_BACKEND_INDEX) as u32) << 16 | Self::TRANSITION)
    }

    /// Owner that new flows go to; 0 if there is none.
    #[inline(always)]
    pub const fn current(self) -> BackendIndex {
        self.0 as u16
    }

    /// Owner from before the transition; 0 if there was none, or no transition.
    #[inline(always)]
    pub const fn previous(self) -> BackendIndex {
        (self.0 >> 16) as u16 & MAX_BACKEND_INDEX
    }

    /// Whether flows through this slot must be looked up.
    #[inline(always)]
    pub const fn in_transition(self) -> bool {
        self.0 & Self::TRANSITION != 0
    }
}

/// The sizes a table may have, all prime, in entries. The smallest is chosen that has at least a
/// hundred slots for each backend (Maglev, NSDI 2016, section 3.4: imbalance under 1 %).
///
/// Each size is an outer map of its own, because the kernel inlines look-ups only into inner maps
/// that all have the size of the template.
pub const TABLE_SIZES: [u32; 3] = [4_093, 65_537, 655_373];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_keeps_its_three_parts_apart() {
        let slot = Slot::transition(0xffff, MAX_BACKEND_INDEX);
        assert_eq!(
            (slot.current(), slot.previous()),
            (0xffff, MAX_BACKEND_INDEX)
        );
        assert!(slot.in_transition());
        let slot = Slot::transition(3, 3);
        assert!(slot.in_transition() && slot.current() == 3 && slot.previous() == 3);
        assert!(!Slot::settled(7).in_transition());
        assert_eq!(Slot::settled(7).previous(), 0);
    }

    #[test]
    fn table_sizes_are_prime() {
        for size in TABLE_SIZES {
            assert!(
                (2..size)
                    .take_while(|d| d * d <= size)
                    .all(|d| size % d != 0),
                "{size}"
            );
        }
    }
}
