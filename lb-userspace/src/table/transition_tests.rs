//! A model of the data plane and its clients, driven at random: no flow of a backend that serves
//! without interruption may ever change its backend.

use std::collections::BTreeMap;

use lb_common::hash::mix;
use lb_common::slot::Slot;
use proptest::prelude::*;

use super::*;

const BACKENDS: u16 = 5;
/// Few slots and few tuples, so that each slot sees many changes and each tuple is used again.
const SIZE: u32 = 13;
const TUPLES: u64 = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Active,
    Draining,
    Out,
}

#[derive(Clone, Debug)]
enum Op {
    /// A backend's state changes, and the table follows.
    State(u16, State),
    /// A backend's weight changes, and the table follows.
    Weight(u16, u32),
    /// A client opens a flow.
    Open(u64),
    /// A client sends on its flow.
    Send(u64),
    /// A client ends its flow.
    Close(u64),
    /// The agent closes the transitions that it may.
    Settle,
}

fn op() -> impl Strategy<Value = Op> {
    let backend = 1..=BACKENDS;
    let state = prop_oneof![
        3 => Just(State::Active),
        2 => Just(State::Draining),
        1 => Just(State::Out)
    ];
    prop_oneof![
        3 => (backend.clone(), state).prop_map(|(b, s)| Op::State(b, s)),
        1 => (backend, 0u32..4).prop_map(|(b, w)| Op::Weight(b, w)),
        6 => (0..TUPLES).prop_map(Op::Open),
        4 => (0..TUPLES).prop_map(Op::Send),
        2 => (0..TUPLES).prop_map(Op::Close),
        2 => Just(Op::Settle),
    ]
}

struct World {
    states: [State; BACKENDS as usize + 1],
    weights: [u32; BACKENDS as usize],
    slots: Vec<Slot>,
    /// The flow map: what the packet rule has recorded.
    records: BTreeMap<u64, u16>,
    /// The truth: live flows by tuple, each with the one backend that knows it.
    live: BTreeMap<u64, u16>,
    /// How often something was closed, to see that the model gets there.
    closed: usize,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            states: [State::Active; BACKENDS as usize + 1],
            weights: [1; BACKENDS as usize],
            slots: Vec::new(),
            records: BTreeMap::new(),
            live: BTreeMap::new(),
            closed: 0,
        };
        world.rewrite();
        world
    }

    fn serves(&self, index: u16) -> bool {
        index != 0 && self.states[usize::from(index)] != State::Out
    }

    fn slot_of(tuple: u64) -> u32 {
        (mix(tuple) % u64::from(SIZE)) as u32
    }

    fn rewrite(&mut self) {
        let members: Vec<Member> = (1..=BACKENDS)
            .map(|index| Member {
                index,
                identity: index.to_string(),
                weight: self.weights[usize::from(index) - 1],
            })
            .collect();
        let base = Base::new(&members, SIZE);
        let wanted = base.overlay(|index| self.states[usize::from(index)] == State::Active);
        self.slots = advance(&self.slots, &wanted, |index| self.serves(index));
    }

    /// The packet rule, as `lb-ebpf` has it. The backend the packet goes to, 0 for none.
    fn packet(&mut self, tuple: u64, syn: bool) -> u16 {
        let slot = self.slots[Self::slot_of(tuple) as usize];
        let for_new = |index: u16| {
            let active = index != 0 && self.states[usize::from(index)] == State::Active;
            if active { index } else { 0 }
        };
        if !slot.in_transition() {
            let index = slot.current();
            return if syn {
                for_new(index)
            } else if self.serves(index) {
                index
            } else {
                0
            };
        }
        if syn {
            let index = for_new(slot.current());
            if index != 0 {
                self.records.insert(tuple, index);
            }
            return index;
        }
        match self.records.get(&tuple) {
            Some(&index) if self.serves(index) => index,
            None if self.serves(slot.previous()) => slot.previous(),
            Some(_) | None => for_new(slot.current()),
        }
    }

    fn settle(&mut self) {
        let over = |number: u32, slot: Slot| {
            let of_slot = |tuple: &u64| Self::slot_of(*tuple) == number;
            let strays = self
                .live
                .iter()
                .any(|(tuple, &backend)| of_slot(tuple) && backend != slot.current());
            !strays
        };
        if let Some(settled) = settle(&self.slots, over) {
            self.closed += settled.closed.len();
            self.slots = settled.slots;
            self.records
                .retain(|tuple, _| !settled.closed.contains(&Self::slot_of(*tuple)));
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::State(index, state) => {
                self.states[usize::from(index)] = state;
                if state == State::Out {
                    // Its flows are given up.
                    self.live.retain(|_, backend| *backend != index);
                }
                self.rewrite();
            }
            Op::Weight(index, weight) => {
                self.weights[usize::from(index) - 1] = weight;
                self.rewrite();
            }
            Op::Open(tuple) => {
                // A client does not open a flow over a live one of the same tuple.
                if !self.live.contains_key(&tuple) {
                    let backend = self.packet(tuple, true);
                    if backend != 0 {
                        self.live.insert(tuple, backend);
                    }
                }
            }
            Op::Send(tuple) => {
                // One whose flow was given up gets a RST somewhere; that must leave no trace.
                self.packet(tuple, false);
            }
            Op::Close(tuple) => {
                self.live.remove(&tuple);
            }
            Op::Settle => self.settle(),
        }
    }

    /// Every live flow's next packet reaches its backend.
    fn misdirected(&mut self) -> Option<(u64, u16, u16)> {
        let live: Vec<(u64, u16)> = self.live.iter().map(|(&t, &b)| (t, b)).collect();
        live.into_iter().find_map(|(tuple, backend)| {
            let got = self.packet(tuple, false);
            (got != backend).then_some((tuple, backend, got))
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_flow_of_a_serving_backend_moves(ops in prop::collection::vec(op(), 1..160)) {
        let mut world = World::new();
        for (step, op) in ops.iter().enumerate() {
            world.apply(op);
            prop_assert_eq!(world.misdirected(), None, "after step {} {:?}", step, op);
        }
    }
}

/// The model is worth something only if transitions open, nest and close in it.
#[test]
fn the_model_gets_around() {
    let mut world = World::new();
    for tuple in 0..TUPLES {
        world.apply(&Op::Open(tuple));
    }
    for index in 1..=3 {
        world.apply(&Op::State(index, State::Draining));
    }
    assert!(world.slots.iter().any(|slot| slot.in_transition()));
    assert_eq!(world.misdirected(), None);
    // Nothing may be closed while flows are where their slot no longer is.
    let strays = world.live.clone();
    world.apply(&Op::Settle);
    assert!(world.slots.iter().any(|slot| slot.in_transition()));
    for tuple in strays.keys() {
        world.apply(&Op::Close(*tuple));
    }
    world.apply(&Op::Settle);
    assert!(world.closed > 0 && !world.slots.iter().any(|slot| slot.in_transition()));
}
