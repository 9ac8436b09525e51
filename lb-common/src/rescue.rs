//! SYN rescue: whom a flow goes to when the backend of its first SYN did not answer.

use crate::hash;
use crate::slot::BackendIndex;

/// Slots that are looked at for another backend when a SYN is repeated. With one backend of two
/// dead they all belong to it for one flow in 16; that one's next SYN looks at other slots.
const TRIES: u32 = 4;

/// A backend other than `present` for a flow that was rescued `times` before; 0 if none was found.
/// `owner`, who had the flow first, only if there is no third.
///
/// `taker` gives the owner of the slot that a hash names, if that takes new flows, else 0. Each
/// rescue of a flow looks at other slots than the one before.
#[inline(always)]
pub fn another(
    hash: u32,
    times: u32,
    present: BackendIndex,
    owner: BackendIndex,
    taker: impl Fn(u32) -> BackendIndex,
) -> BackendIndex {
    let mut found = 0;
    let mut turn = 0;
    while turn < TRIES {
        let index = taker(hash::again(hash, times * TRIES + turn));
        if index != 0 && index != present {
            if index != owner {
                return index;
            }
            found = index;
        }
        turn += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_goes_to_another_and_then_to_a_third() {
        let owners = |count: u32| move |hash: u32| (1 + hash::slot(hash, count)) as u16;
        let mut kept = 0;
        for flow in 0..10_000 {
            let first = another(flow, 0, 1, 1, owners(3));
            assert_ne!(first, 1);
            if first == 0 {
                kept += 1;
                continue;
            }
            let second = another(flow, 1, first, 1, owners(3));
            assert_ne!(second, first);
        }
        // One in 3^4, that is 123.
        assert!((60..200).contains(&kept), "{kept}");
        assert_eq!(another(7, 0, 1, 1, |_| 1), 0);
        assert_eq!(another(7, 0, 1, 1, |_| 0), 0);
        // Nobody else is left but who had it first.
        assert_eq!(another(7, 1, 2, 1, |_| 1), 1);
    }
}
