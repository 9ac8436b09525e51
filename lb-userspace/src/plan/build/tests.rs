use std::time::Duration;

use lb_common::abi::BackendState::{Active, Draining, Out};

use super::*;
use crate::config;
use crate::table::count_current;

const NOW: Duration = Duration::from_secs(1000);

/// One service of these backends, given by the last byte of their addresses.
fn model(forwarding: &str, backends: &[u8]) -> Model {
    let mut text = format!(
        "[node]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\n\
         address = \"203.0.113.10:80\"\nprotocol = \"tcp\"\nforwarding = \"{forwarding}\"\n\
         drain_deadline = \"30s\"\n[service.health]\nprobe = \"tcp\"\n"
    );
    for last in backends {
        text +=
            &format!("[[service.backend]]\nname = \"b{last}\"\naddress = \"10.0.0.{last}:80\"\n");
    }
    config::parse(&text, "test").unwrap()
}

fn duties(model: &Model, states: &[(&str, BackendState)]) -> BTreeMap<BackendKey, Duty> {
    let service = &model.services[0];
    let duty = |backend: &model::Backend| {
        let given = states.iter().find(|(name, _)| **name == *backend.name);
        let state = given.map_or(Active, |(_, state)| *state);
        let share = if state == Active { 100 } else { 0 };
        (
            service.key(backend),
            Duty {
                state,
                weight: backend.weight,
                share,
            },
        )
    };
    service.backends.iter().map(duty).collect()
}

fn build(
    builder: &mut Builder,
    model: &Model,
    states: &[(&str, BackendState)],
    now: Duration,
) -> Contents {
    let duties = duties(model, states);
    let built = builder.build(model, &duties, &paths(model), now);
    Contents::clone(built.unwrap())
}

fn path() -> Path {
    Path {
        hop: lb_common::abi::Hop {
            ifindex: 3,
            ..Default::default()
        },
        source: "10.0.0.254".parse().unwrap(),
        mtu: 1500,
        tunnel: super::super::Tunnel::default(),
    }
}

fn paths(model: &Model) -> BTreeMap<IpAddr, Path> {
    let backends = model.services.iter().flat_map(|service| &service.backends);
    backends
        .map(|backend| (backend.address.ip(), path()))
        .collect()
}

fn counts(contents: &Contents) -> Vec<u32> {
    count_current(&contents.services[&1].slots)
}

#[test]
fn an_ejection_and_a_return_leave_the_table_as_it_was() {
    let model = model("nat", &[1, 2, 3]);
    let mut builder = Builder::new(Contents::default());
    let before = build(&mut builder, &model, &[], NOW);
    let out = build(&mut builder, &model, &[("b2", Out)], NOW);
    assert_eq!(out.backends[&2].state, Out);
    assert_eq!(counts(&out)[2], 0);
    assert_eq!(counts(&out).iter().sum::<u32>(), 4093);
    assert_eq!(build(&mut builder, &model, &[], NOW), before);
}

#[test]
fn the_next_agent_goes_on_where_the_last_one_stopped() {
    let model = model("dsr", &[1, 2, 3]);
    let mut first = Builder::new(Contents::default());
    build(&mut first, &model, &[], NOW);
    let left = build(&mut first, &model, &[("b2", Draining)], NOW);
    let mut second = Builder::new(left.clone());
    assert_eq!(build(&mut second, &model, &[("b2", Draining)], NOW), left);
}

#[test]
fn a_removed_backend_drains_then_loses_its_flows_then_its_number() {
    let mut builder = Builder::new(Contents::default());
    build(&mut builder, &model("nat", &[1, 2, 3]), &[], NOW);
    let rest = model("nat", &[1, 3]);
    let draining = build(&mut builder, &rest, &[], NOW);
    assert_eq!(draining.backends[&2].state, Draining);
    assert_eq!(counts(&draining)[2], 0);
    assert_eq!(builder.next_deadline(), Some(NOW + Duration::from_secs(30)));
    assert!(builder.gone().is_empty());

    let later = NOW + Duration::from_secs(30);
    let out = build(&mut builder, &rest, &[], later);
    assert_eq!(out.backends[&2].state, Out);
    assert_eq!(builder.gone(), BTreeSet::from([2]));
    // A sweep that did not know of it says nothing.
    assert!(!builder.release(&BTreeSet::new()));
    assert!(builder.release(&BTreeSet::from([2])));
    let released = build(&mut builder, &rest, &[], later);
    assert!(!released.backends.contains_key(&2));
    // Another backend may have the number now.
    let next = build(&mut builder, &model("nat", &[1, 3, 4]), &[], later);
    assert_eq!(next.backends[&2].address.to_string(), "10.0.0.4:80");
}

#[test]
fn a_backend_that_comes_back_while_it_leaves_is_as_before() {
    let all = model("nat", &[1, 2, 3]);
    let mut builder = Builder::new(Contents::default());
    let before = build(&mut builder, &all, &[], NOW);
    build(&mut builder, &model("nat", &[1, 3]), &[], NOW);
    assert_eq!(build(&mut builder, &all, &[], NOW), before);
    assert_eq!(builder.next_deadline(), None);
}

#[test]
fn a_number_that_a_slot_names_is_not_given_away() {
    let mut builder = Builder::new(Contents::default());
    build(&mut builder, &model("dsr", &[1, 2, 3]), &[], NOW);
    let rest = model("dsr", &[1, 3]);
    let later = NOW + Duration::from_secs(30);
    build(&mut builder, &rest, &[], NOW);
    build(&mut builder, &rest, &[], later);
    let gone = BTreeSet::from([2]);
    assert_eq!(builder.gone(), gone);
    assert!(!builder.release(&gone), "its slots are still in transition");
    assert!(builder.settle(|_| false, &BTreeMap::new(), later));
    assert!(builder.release(&gone));
}

#[test]
fn transitions_wait_for_the_flows_that_need_them() {
    let model = model("dsr", &[1, 2]);
    let mut builder = Builder::new(Contents::default());
    build(&mut builder, &model, &[], NOW);
    let draining = build(&mut builder, &model, &[("b2", Draining)], NOW);
    let in_transition = |contents: &Contents| {
        contents.services[&1]
            .slots
            .iter()
            .filter(|slot| slot.in_transition())
            .count()
    };
    let open = in_transition(&draining);
    assert!(open > 2000);
    // The previous owner may have flows.
    assert!(!builder.settle(|_| false, &BTreeMap::new(), NOW));
    // It has none without a record, but one slot has a record of another backend.
    let later = NOW + TCP_LASTS;
    let slots = &draining.services[&1].slots;
    let held = slots.iter().position(|slot| slot.in_transition()).unwrap() as u32;
    let held = BTreeMap::from([(1, BTreeSet::from([held]))]);
    assert!(builder.settle(|_| true, &held, later));
    assert_eq!(in_transition(builder.contents()), 1);
    // Once it may serve no more, nothing is left to wait for but the record.
    build(&mut builder, &model, &[("b2", Out)], NOW);
    assert!(!builder.settle(|_| false, &held, NOW));
    assert!(builder.settle(|_| false, &BTreeMap::new(), NOW));
    assert_eq!(in_transition(builder.contents()), 0);
}

#[test]
fn slots_remember_a_dead_owner_whose_flows_are_reset() {
    let mut model = model("dsr", &[1, 2]);
    model.services[0].on_death = OnDeath::Reset;
    let mut builder = Builder::new(Contents::default());
    build(&mut builder, &model, &[], NOW);
    let out = build(&mut builder, &model, &[("b2", Out)], NOW);
    let remembering = |contents: &Contents| {
        let slots = contents.services[&1].slots.iter();
        slots.filter(|slot| slot.previous() == 2).count()
    };
    let all = remembering(&out);
    assert!(all > 2000);
    assert!(!builder.settle(|_| true, &BTreeMap::new(), NOW));
    // Nobody is left, and still it is known who had the flows.
    let none = build(&mut builder, &model, &[("b1", Out), ("b2", Out)], NOW);
    assert_eq!(remembering(&none), all);
    let dead = |slot: &Slot| slot.current() == 0 && slot.previous() != 0;
    assert!(none.services[&1].slots.iter().all(dead));
    // Back again: its flows are its own.
    build(&mut builder, &model, &[], NOW);
    assert!(builder.settle(|_| false, &BTreeMap::new(), NOW));
    assert_eq!(remembering(builder.contents()), 0);
    // Otherwise it is forgotten when no flow can be left.
    build(&mut builder, &model, &[("b2", Out)], NOW);
    assert!(builder.settle(|_| true, &BTreeMap::new(), NOW + TCP_LASTS));
    assert_eq!(remembering(builder.contents()), 0);
}

#[test]
fn a_service_that_leaves_takes_its_backends_out_at_once() {
    let mut builder = Builder::new(Contents::default());
    build(&mut builder, &model("nat", &[1, 2]), &[], NOW);
    let mut empty = model("nat", &[1, 2]);
    empty.services.clear();
    let left = builder
        .build(&empty, &BTreeMap::new(), &BTreeMap::new(), NOW)
        .unwrap();
    assert!(left.services.is_empty());
    assert!(left.backends.values().all(|backend| backend.state == Out));
    assert_eq!(builder.gone(), BTreeSet::from([1, 2]));
}

#[test]
fn a_backend_that_starts_slowly_has_a_share_of_its_own_slots() {
    let model = model("nat", &[1, 2, 3]);
    let mut builder = Builder::new(Contents::default());
    let whole = build(&mut builder, &model, &[], NOW);
    let mut duties = duties(&model, &[]);
    let mut step = |share| {
        duties.get_mut(&BackendKey::new("web", "b2")).unwrap().share = share;
        let built = builder.build(&model, &duties, &paths(&model), NOW);
        Contents::clone(built.unwrap())
    };
    let tenth = step(10);
    assert!(
        (80..200).contains(&counts(&tenth)[2]),
        "{:?}",
        counts(&tenth)
    );
    for (before, now) in whole.services[&1]
        .slots
        .iter()
        .zip(&*tenth.services[&1].slots)
    {
        assert!(before == now || before.current() == 2);
    }
    assert_eq!(step(100), whole);
}

#[test]
fn a_path_once_known_is_kept_and_without_one_there_are_no_slots() {
    let model = model("nat", &[1, 2]);
    let mut builder = Builder::new(Contents::default());
    let duties = duties(&model, &[]);
    let one = BTreeMap::from([("10.0.0.1".parse().unwrap(), path())]);
    let built = builder.build(&model, &duties, &one, NOW).unwrap().clone();
    assert_eq!(counts(&built), [0, 4093]);
    let lost = builder
        .build(&model, &duties, &BTreeMap::new(), NOW)
        .unwrap();
    assert_eq!(*lost, built);
    assert_eq!(lost.backends[&1].path, Some(path()));
    assert!(lost.sources.contains(&path().source));
}

#[test]
fn silence_counts_from_the_change_on() {
    let model = model("dsr", &[1, 2]);
    let mut builder = Builder::new(Contents::default());
    build(&mut builder, &model, &[], NOW);
    let draining = [("b2", Draining)];
    build(&mut builder, &model, &draining, NOW);
    let all = |_| true;
    let early = NOW + TCP_LASTS - Duration::from_secs(1);
    assert!(!builder.settle(all, &BTreeMap::new(), early));
    assert!(builder.settle(all, &BTreeMap::new(), NOW + TCP_LASTS));
}

#[test]
fn what_was_out_when_it_left_is_gone_at_once() {
    let mut builder = Builder::new(Contents::default());
    build(&mut builder, &model("nat", &[1, 2]), &[("b2", Out)], NOW);
    let left = build(&mut builder, &model("nat", &[1]), &[], NOW);
    assert_eq!(left.backends[&2].state, Out);
    assert_eq!(builder.gone(), BTreeSet::from([2]));
}

#[test]
fn a_tunnel_gets_its_port_and_its_source() {
    let tunnel = |forwarding: &str, node: &str| {
        let mut model = model(forwarding, &[1]);
        let text = format!(
            "[node]\ninterfaces = [\"eth0\"]\n{node}\n[[service]]\nname = \"web\"\n\
             address = \"203.0.113.10:80\"\n[[service.backend]]\naddress = \"10.0.0.1:80\"\n"
        );
        model.node = config::parse(&text, "test").unwrap().node;
        let mut builder = Builder::new(Contents::default());
        let built = build(&mut builder, &model, &[], NOW);
        let path = built.backends[&1].path.unwrap();
        let bits = path.tunnel.source_bits.to_ne_bytes();
        (path.source.to_string(), path.tunnel.gue_port, bits)
    };
    let own = || "10.0.0.254".to_owned();
    let spread = "tunnel_source4 = \"172.16.0.0/16\"";
    assert_eq!(tunnel("dsr", spread), (own(), 0, [0; 4]));
    assert_eq!(tunnel("ipip", ""), (own(), 0, [0; 4]));
    let varied = ("172.16.0.0".to_owned(), 0, [0, 0, 0xff, 0xff]);
    assert_eq!(tunnel("ipip", spread), varied);
    assert_eq!(tunnel("gue", spread), (own(), 6080, [0; 4]));
    assert_eq!(tunnel("gue", "gue_port = 7000"), (own(), 7000, [0; 4]));
}
