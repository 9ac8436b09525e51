use std::collections::BTreeMap;

use lb_common::hash::mix;
use lb_common::slot::{Slot, TABLE_SIZES};
use proptest::prelude::*;

use super::*;

fn member(index: u16, weight: u32) -> Member {
    Member {
        index,
        identity: format!("10.{}.{}.1:80", index / 256, index % 256),
        weight,
    }
}

fn members(weights: &[u32]) -> Vec<Member> {
    (1..).zip(weights).map(|(i, &w)| member(i, w)).collect()
}

fn counts(owners: &[BackendIndex]) -> BTreeMap<BackendIndex, usize> {
    owners.iter().fold(BTreeMap::new(), |mut counts, &owner| {
        *counts.entry(owner).or_default() += 1;
        counts
    })
}

fn built(weights: &[u32]) -> Base {
    let members = members(weights);
    Base::new(&members, size_for(weights.iter().copied()))
}

/// Weights such as configurations have, with a spread that the largest table can still show.
fn weights(max: usize) -> impl Strategy<Value = Vec<u32>> {
    prop_oneof![
        prop::collection::vec(Just(100), 1..max),
        prop::collection::vec(1u32..=5, 1..max),
        prop::collection::vec(prop_oneof![Just(50u32), Just(100), Just(200)], 1..max),
    ]
}

#[test]
fn the_size_follows_the_least_share() {
    let size = |weights: &[u32]| size_for(weights.iter().copied());
    assert_eq!(size(&[]), 4_093);
    assert_eq!(size(&[0, 0]), 4_093);
    assert_eq!(size(&[1]), 4_093);
    assert_eq!(size(&[100; 40]), 4_093);
    assert_eq!(size(&[100; 41]), 65_537);
    assert_eq!(size(&[1, 100]), 65_537);
    assert_eq!(size(&[100; 656]), 655_373);
    assert_eq!(size(&[u32::MAX, u32::MAX, 1]), 655_373);
}

#[test]
fn nobody_and_nothing() {
    for base in [built(&[]), built(&[0, 0])] {
        assert_eq!(base.owners(), vec![0; 4_093]);
    }
    let base = built(&[100, 0, 100]);
    assert!(
        !counts(&base.owners()).contains_key(&2),
        "weight 0: no slots"
    );
    assert_eq!(base.overlay(|_| false), vec![0; 4_093]);
    assert_eq!(base.overlay(|index| index == 2), vec![0; 4_093]);
}

/// Layout of a table, fixed: balancers of different versions must agree.
#[test]
fn the_layout_is_stable() {
    let base = built(&[100, 200, 300]);
    let all = |owners: &[BackendIndex]| {
        owners
            .iter()
            .fold(0u64, |hash, &owner| mix(hash ^ u64::from(owner)))
    };
    assert_eq!(all(&base.owners()), LAYOUT.0, "base");
    assert_eq!(all(&base.overlay(|index| index != 3)), LAYOUT.1, "overlay");
}
const LAYOUT: (u64, u64) = (417_636_488_784_937_269, 18_366_391_280_563_882_829);

/// A thousand backends fill the largest table; every one is within a percent of its share.
#[test]
fn a_thousand_backends() {
    let weights: Vec<u32> = (0..1000).map(|n| [100, 150, 50][n % 3]).collect();
    let base = built(&weights);
    assert_eq!(base.size(), 655_373);
    assert_balanced(&base, &weights);
}

fn assert_balanced(base: &Base, weights: &[u32]) {
    let counts = counts(&base.owners());
    let total: u64 = weights.iter().copied().map(u64::from).sum();
    for (index, &weight) in (1..).zip(weights) {
        let share = f64::from(base.size()) * f64::from(weight) / total as f64;
        let got = counts.get(&index).copied().unwrap_or(0) as f64;
        // A percent, or the one slot that no rounding can avoid.
        let allowed = (share * 0.011).max(1.0);
        assert!(
            (got - share).abs() <= allowed,
            "backend {index}: {got} of {share}"
        );
    }
}

/// Weights far apart: nobody starves another, and the work stays proportional to the table.
#[test]
fn extreme_weights() {
    let mut weights = vec![1u32; 300];
    weights[7] = 1_000_000;
    let base = Base::new(&members(&weights), 65_537);
    let counts = counts(&base.owners());
    assert!(counts[&8] >= 65_500);
    assert_eq!(counts.values().sum::<usize>(), 65_537);
}

/// Removing or adding one backend moves little beyond its own slots (Maglev, section 5.3).
#[test]
fn a_change_of_the_set_moves_little_else() {
    for n in [2u16, 10, 100, 500] {
        let with: Vec<Member> = (1..=n).map(|i| member(i, 100)).collect();
        let without = &with[..usize::from(n) - 1];
        let size = size_for(with.iter().map(|m| m.weight)).max(65_537);
        let (a, b) = (Base::new(&with, size), Base::new(without, size));
        let (a, b) = (a.owners(), b.owners());
        let others = a.iter().zip(&b).filter(|(a, b)| **a != n && a != b).count();
        let share = others as f64 / f64::from(size);
        assert!(
            share < 0.05,
            "{n} backends: {share} of unrelated slots moved"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn shares_follow_the_weights(weights in weights(300)) {
        assert_balanced(&built(&weights), &weights);
    }

    #[test]
    fn order_and_numbers_do_not_matter(weights in weights(40), seed: u64) {
        let ordered = members(&weights);
        let mut shuffled = ordered.clone();
        shuffled.sort_by_key(|m| mix(seed ^ u64::from(m.index)));
        let renumbered: Vec<Member> =
            ordered.iter().map(|m| Member { index: m.index + 1000, ..m.clone() }).collect();
        let owners = Base::new(&ordered, 4_093).owners();
        prop_assert_eq!(&Base::new(&shuffled, 4_093).owners(), &owners);
        let shifted: Vec<u16> = owners.iter().map(|index| index + 1000).collect();
        prop_assert_eq!(Base::new(&renumbered, 4_093).owners(), shifted);
    }

    /// Ejections and returns in any order: no slot of an eligible owner moves, an ejection moves
    /// only what its backend held, and the same set gives the same table.
    #[test]
    fn an_overlay_has_no_collateral(
        weights in weights(60),
        flips in prop::collection::vec(any::<prop::sample::Index>(), 1..12),
    ) {
        let base = Base::new(&members(&weights), 4_093);
        let owners = base.owners();
        let mut out = vec![false; weights.len() + 1];
        let mut before = owners.clone();
        for flip in flips {
            let flip = flip.index(weights.len()) + 1;
            out[flip] = !out[flip];
            let after = base.overlay(|index| !out[usize::from(index)]);
            if out[1..].contains(&false) {
                for slot in 0..owners.len() {
                    let (owner, before, after) = (owners[slot], before[slot], after[slot]);
                    prop_assert!(!out[usize::from(after)]);
                    if !out[usize::from(owner)] {
                        prop_assert_eq!(after, owner);
                    }
                    // What moved, moved away from the one ejected or to the one that returned.
                    let away = before == 0 || usize::from(before) == flip;
                    prop_assert!(after == before || away || usize::from(after) == flip);
                }
            } else {
                prop_assert!(after.iter().all(|&owner| owner == 0));
            }
            before = after;
        }
        prop_assert_eq!(base.overlay(|_| true), owners);
    }
}

/// Refilled slots are shared in proportion to the weights: chi-squared, whether the sequence of
/// preferences finds someone (half are eligible) or rendezvous must (3 of 400).
#[test]
fn refilled_slots_follow_the_weights() {
    for (backends, eligible) in [(20u16, 10u16), (400, 200), (400, 3)] {
        let weights: Vec<u32> = (0..backends)
            .map(|n| [100, 300][usize::from(n) % 2])
            .collect();
        let base = Base::new(&members(&weights), 65_537);
        let is_eligible = |index: BackendIndex| index <= eligible;
        let (before, after) = (base.owners(), base.overlay(is_eligible));
        let refilled: Vec<u16> = before
            .iter()
            .zip(&after)
            .filter(|(before, _)| !is_eligible(**before))
            .map(|(_, after)| *after)
            .collect();
        let counts = counts(&refilled);
        let total: u32 = weights[..usize::from(eligible)].iter().sum();
        let mut chi2 = 0.0;
        for index in 1..=eligible {
            let weight = weights[usize::from(index) - 1];
            let expected = refilled.len() as f64 * f64::from(weight) / f64::from(total);
            chi2 += (counts[&index] as f64 - expected).powi(2) / expected;
        }
        let freedom = f64::from(eligible - 1);
        // Five standard deviations above the mean, and room for the few degrees of freedom.
        let limit = freedom + 5.0 * (2.0 * freedom).sqrt() + 6.0;
        assert!(
            chi2 < limit,
            "{eligible} of {backends}: chi2 {chi2}, limit {limit}"
        );
    }
}

#[test]
fn both_ways_of_refilling_are_taken() {
    // With 3 of 400 eligible, (1 − 3/400)^64 = 62 % of the slots get beyond the sequence.
    let base = Base::new(&members(&[100; 400]), 65_537);
    let few = base.overlay(|index| index <= 3);
    let fewer = base.overlay(|index| index <= 2);
    for (few, fewer) in few.iter().zip(&fewer) {
        assert!(few == fewer || *few == 3, "only the third's slots move");
    }
}

#[test]
fn a_resized_table_keeps_nearly_every_hash_where_it_was() {
    let base = Base::new(&members(&[100; 30]), 4_093);
    let old = advance(&[], &base.owners(), |_| false);
    for size in TABLE_SIZES {
        let new = resize(&old, size as usize);
        assert_eq!(new.len(), size as usize);
        let moved = (0..100_000u32)
            .map(|n| mix(u64::from(n)) as u32)
            .filter(|&hash| {
                let at = |slots: &[Slot]| {
                    slots[lb_common::hash::slot(hash, slots.len() as u32) as usize]
                };
                at(&old) != at(&new)
            })
            .count();
        assert!(moved <= 3_200, "{size}: {moved} of 100,000");
    }
    assert_eq!(resize(&old, old.len()), old);
    assert_eq!(resize(&[], 3), [Slot::settled(0); 3]);
}

#[test]
fn helpers_count_and_name() {
    let slots = [Slot::settled(2), Slot::transition(2, 5), Slot::settled(0)];
    assert_eq!(count_current(&slots), [1, 0, 2]);
    assert_eq!(referenced(&slots).into_iter().collect::<Vec<_>>(), [2, 5]);
}

#[test]
fn advance_case_by_case() {
    use Slot as S;
    // (slot, wanted, whether the current owner may hold flows, expected)
    let cases = [
        (S::settled(1), 1, true, S::settled(1)),
        (S::settled(1), 2, true, S::transition(2, 1)),
        (S::settled(1), 2, false, S::settled(2)),
        (S::settled(0), 2, true, S::settled(2)),
        (S::settled(1), 0, true, S::transition(0, 1)),
        (S::transition(2, 1), 2, true, S::transition(2, 1)),
        (S::transition(2, 1), 3, true, S::transition(3, 1)),
        (S::transition(2, 1), 3, false, S::transition(3, 1)),
        (S::transition(2, 1), 1, true, S::transition(1, 1)),
    ];
    for (slot, wanted, may_hold, expected) in cases {
        assert_eq!(
            advance(&[slot], &[wanted], |_| may_hold),
            [expected],
            "{slot:?} {wanted}"
        );
    }
    let slots = [S::settled(1), S::transition(2, 1), S::transition(3, 1)];
    let settled = settle(&slots, |number, slot| number == 2 && slot.current() == 3).unwrap();
    assert_eq!(
        settled.slots,
        [S::settled(1), S::transition(2, 1), S::settled(3)]
    );
    assert_eq!(settled.closed, [2]);
    assert_eq!(settle(&slots, |_, _| false), None);
}

/// Easing in: each step only hands the backend slots of its own, in proportion to its share.
#[test]
fn a_growing_share_moves_only_its_own_slots() {
    let base = Base::new(&members(&[100; 20]), 65_537);
    let all = base.owners();
    let own = counts(&all)[&7] as f64;
    let mut before = base.overlay(|index| index != 7);
    for share in [10u8, 15, 50, 95, 100] {
        let after = base.overlay_shares(|index| if index == 7 { share } else { 100 });
        for ((before, after), owner) in before.iter().zip(&after).zip(&all) {
            assert!(before == after || (*after == 7 && *owner == 7));
        }
        let got = counts(&after)[&7] as f64 / own;
        assert!(
            (got - f64::from(share) / 100.0).abs() < 0.03,
            "{share} %: {got}"
        );
        before = after;
    }
    assert_eq!(before, all);
    // With shares alone, every slot still has an owner.
    let thin = base.overlay_shares(|index| if index <= 2 { 10 } else { 0 });
    assert!(thin.iter().all(|owner| (1..=2).contains(owner)));
}
