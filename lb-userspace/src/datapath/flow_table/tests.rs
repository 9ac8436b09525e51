use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use lb_common::abi::tcp_seen::{CLIENT_ACK, REPLY};

use super::*;

const SEED: u32 = 7;
const BUCKETS: u32 = 4;

/// An array like a map's, in plain memory.
fn memory<T: super::super::sys::Plain>(entries: u32) -> Mapped<T> {
    // SAFETY: a name without effect; the descriptor is new.
    let file = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"table".as_ptr(), 0)) };
    let length = entries as usize * size_of::<T>();
    std::fs::File::from(file.try_clone().unwrap())
        .set_len(length as u64)
        .unwrap();
    Mapped::new(file.as_fd(), entries).unwrap()
}

fn table() -> FlowTable {
    FlowTable::new(memory(BUCKETS), memory(reply_lines(BUCKETS)), SEED, 0)
}

fn backend(index: u16) -> Backend {
    let addr = Addr::v4(u32::from_ne_bytes([10, 0, 0, index as u8]));
    Backend {
        addr,
        port: 80u16.to_be(),
        ..Backend::default()
    }
}

fn source(index: u8) -> Addr {
    Addr::v4(u32::from_ne_bytes([10, 9, 9, index]))
}

/// One look at the table.
fn repair(table: &mut FlowTable) {
    let held = table.iter().filter(|(_, flow)| flow.is_none());
    let held = held.map(|(way, _)| way).collect();
    table.repair(held);
}

fn check(table: &FlowTable) -> Vec<Inconsistency> {
    table.check(backend, source)
}

/// An established NAT flow from this port, with the same number as its NAT port.
fn flow(port: u16) -> Flow {
    Flow {
        client: Addr::v4(u32::from_ne_bytes([198, 51, 100, 1])),
        vip: Addr::v4(u32::from_ne_bytes([203, 0, 113, 1])),
        client_port: port.to_be(),
        vip_port: 80u16.to_be(),
        protocol: 6,
        source: 1,
        backend: 2,
        nat_port: port.to_be(),
        forward: CLIENT_ACK,
        reply: REPLY,
        ..Flow::default()
    }
}

/// Where the references of a flow's replies belong, and what refers to the record there.
fn referred(table: &FlowTable, flow: &Flow, way: Way) -> (usize, u32) {
    let entry = backend(flow.backend);
    let key = flow.reply_key(entry.addr, entry.port, source(flow.source));
    let place = Place::of(&key, SEED);
    (table.line(place), place.reference(way.number()))
}

fn refer(table: &mut FlowTable, (line, reference): (usize, u32)) {
    let free = |at: &usize| table.replies.get_field::<u32>(line, *at) == 0;
    let at = (0..REFERENCES).map(|n| n * 4).find(free).unwrap();
    table.replies.set_field(line, at, reference);
}

/// Puts a flow where it belongs, as the packet path does.
fn put(table: &mut FlowTable, flow: Flow) -> Way {
    let place = Place::of(&flow.key(), SEED);
    let bucket = place.index(BUCKETS) as usize;
    let tags = table.tags(bucket);
    let home = place.home();
    let way = if tags[home] == 0 {
        home
    } else {
        tags.iter().position(|tag| *tag == 0).unwrap()
    };
    let way = Way { bucket, way };
    write(table, way, flow);
    table.buckets.set_field(bucket, way.tag(), place.tag());
    if flow.source != 0 {
        let reference = referred(table, &flow, way);
        refer(table, reference);
    }
    way
}

fn write(table: &mut FlowTable, way: Way, flow: Flow) {
    let mut bucket = table.buckets.get(way.bucket);
    bucket.records[way.way] = flow;
    table.buckets.set(way.bucket, bucket);
}

fn set_tag(table: &mut FlowTable, way: Way, tag: u32) {
    table.buckets.set_field(way.bucket, way.tag(), tag);
}

#[test]
fn a_table_of_whole_flows_is_in_order() {
    let mut table = table();
    assert_eq!(check(&table), []);
    for port in 1000..1040 {
        put(&mut table, flow(port));
        put(
            &mut table,
            Flow {
                source: 0,
                nat_port: 0,
                ..flow(port + 1000)
            },
        );
    }
    assert_eq!(check(&table), []);
    assert_eq!(table.iter().count(), 80);
    repair(&mut table);
    repair(&mut table);
    assert_eq!((check(&table), table.iter().count()), (vec![], 80));
}

#[test]
fn each_breach_is_found() {
    let mut table = table();
    let [a, b, c] = [1000, 1001, 1002].map(|port| put(&mut table, flow(port)));
    let tag = table.tag(a);
    set_tag(&mut table, a, HELD);
    let (line, reference) = referred(&table, &flow(1000), a);
    assert!(check(&table).contains(&Inconsistency::Held(a)));
    set_tag(&mut table, a, 0);
    assert!(check(&table).contains(&Inconsistency::Half(a)));
    set_tag(&mut table, a, tag ^ 4);
    assert_eq!(check(&table), [Inconsistency::Misplaced(a)]);
    set_tag(&mut table, a, tag);
    assert_eq!(check(&table), []);

    refer(&mut table, (line, reference));
    let twice = Inconsistency::Referred {
        way: a,
        references: 2,
    };
    assert_eq!(check(&table), [twice]);
    assert!(table.drop_reference(line, reference));
    assert!(table.drop_reference(line, reference));
    let none = Inconsistency::Referred {
        way: a,
        references: 0,
    };
    assert_eq!(check(&table), [none]);
    refer(&mut table, (line, reference));

    // The right record in a line where no reply of it is looked for.
    let elsewhere = (line + 1) % reply_lines(BUCKETS) as usize;
    refer(&mut table, (elsewhere, reference));
    let found = check(&table);
    assert!(
        matches!(found[..], [Inconsistency::Stray { line, record, .. }]
            if line == elsewhere && record == Some(a)),
        "{found:?}"
    );
    assert!(table.drop_reference(elsewhere, reference));

    // The second flow with the ports of the third: one flow twice, with the same replies.
    write(&mut table, b, flow(1002));
    let found = check(&table);
    let pair = (b.min(c), b.max(c));
    assert!(
        found.contains(&Inconsistency::Twice(pair.0, pair.1)),
        "{found:?}"
    );
    assert!(
        found.contains(&Inconsistency::SameReplies(pair.0, pair.1)),
        "{found:?}"
    );
}

#[test]
fn a_way_held_at_two_looks_is_freed_with_what_refers_to_it() {
    let mut table = table();
    let stopped = put(&mut table, flow(1000));
    let other = put(&mut table, flow(1001));
    set_tag(&mut table, stopped, HELD);
    repair(&mut table);
    assert_eq!(table.tag(stopped), HELD);
    repair(&mut table);
    assert_eq!((table.tag(stopped), table.record(stopped).protocol), (0, 0));
    repair(&mut table);
    repair(&mut table);
    assert_eq!(check(&table), []);
    let left: Vec<_> = table.iter().map(|(way, _)| way).collect();
    assert_eq!(left, [other]);
}

#[test]
fn a_way_that_is_held_only_for_a_moment_is_let_be() {
    let mut table = table();
    let way = put(&mut table, flow(1000));
    let tag = table.tag(way);
    for _ in 0..3 {
        set_tag(&mut table, way, HELD);
        repair(&mut table);
        set_tag(&mut table, way, tag);
        repair(&mut table);
    }
    assert_eq!((check(&table), table.tag(way)), (vec![], tag));
}

#[test]
fn a_reference_to_nothing_goes_after_two_looks() {
    let mut table = table();
    let way = put(&mut table, flow(1000));
    // Killed after the record was cleared and its way freed, before its reference was.
    let word = way.record() + offset_of!(Flow, client_port);
    table.buckets.set_field(way.bucket, word, 0u64);
    set_tag(&mut table, way, 0);
    repair(&mut table);
    assert_eq!(check(&table).len(), 1);
    repair(&mut table);
    assert_eq!(check(&table), []);
}

#[test]
fn a_flow_is_removed_with_its_reference() {
    let mut table = table();
    put(&mut table, flow(1000));
    put(&mut table, flow(1001));
    let flows = table.iter().filter_map(|(way, flow)| Some((way, flow?)));
    let all: Vec<_> = flows.collect();
    assert_eq!(table.remove(&all[..1], backend, source), 1);
    // It is not there any more.
    assert_eq!(table.remove(&all[..1], backend, source), 0);
    assert_eq!((check(&table), table.iter().count()), (vec![], 1));
    // The backend's entry is another's by now.
    assert_eq!(table.remove(&all[1..], |_| backend(99), source), 1);
    assert_eq!((check(&table), table.iter().count()), (vec![], 0));
}
