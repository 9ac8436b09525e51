//! The flow table's readers and writers; [`lb_common::flow_table`] says how it is laid out.
//!
//! What goes through many places is a global function in the verifier's sense, exported and called
//! with numbers only, or pointers that it checks: such a function is verified once, on its own, and
//! nothing is known of its answer.

use lb_common::abi::{Addr, Flow, FlowKey, tcp_seen};
use lb_common::flow as policy;
use lb_common::flow_table::{Bucket, HELD, Place, REFERENCES, Replies, SAME_TAG, WAYS};
use lb_common::verdict::Verdict;

use crate::atomic::{choose, equal, get, opaque, put32, put64, swap_if};
use crate::maps::{BACKENDS, FLOWS, PARAMS, REPLIES, SOURCES, opening};
use crate::parse::TCP;
use crate::select;

mod ports;

/// Flows looked at for one that can do without its place, when a bucket is full. With five eighths
/// of the flows established, one try in 40 finds none.
const VICTIM_TRIES: u32 = 8;
/// No such way or record.
const NONE: u32 = u32::MAX;

#[inline(always)]
fn bucket(index: u32) -> Option<*mut Bucket> {
    FLOWS.get_ptr_mut(index)
}

#[inline(always)]
fn record(bucket: *mut Bucket, way: u32) -> *mut Flow {
    // SAFETY: the way is below `WAYS`, a power of two.
    unsafe {
        (&raw mut (*bucket).records)
            .cast::<Flow>()
            .add(opaque(way) as usize & (WAYS - 1))
    }
}

#[inline(always)]
fn tag(bucket: *mut Bucket, way: u32) -> *mut u32 {
    // SAFETY: as above.
    unsafe {
        (&raw mut (*bucket).tags)
            .cast::<u32>()
            .add(opaque(way) as usize & (WAYS - 1))
    }
}

/// The word of a record that says whether it is in use.
#[inline(always)]
fn word(record: *mut Flow) -> *mut u64 {
    // SAFETY: aligned, and inside the record by the assertions of its definition.
    unsafe { (&raw mut (*record).client_port).cast() }
}

/// The record of a flow, by the client's packets.
#[inline(always)]
pub fn find(key: &FlowKey) -> Option<&'static mut Flow> {
    let params = PARAMS.get(0)?;
    let place = Place::of(key, params.seed);
    let bucket = bucket(place.index(params.flow_buckets))?;
    let home = record(bucket, place.home() as u32);
    // SAFETY: memory of the map is never freed while the program runs. A record that is taken
    // from another CPU's hands at this very moment shows a mixture of two flows once.
    unsafe {
        if (*home).is_of(key) {
            return Some(&mut *home);
        }
        let way = lb_flow_away(place.index(params.flow_buckets), place.tag(), key);
        if way == NONE {
            None
        } else {
            Some(&mut *record(bucket, way))
        }
    }
}

/// Notes that a flow is alive. Writes only what changed, so that the record's cache line stays
/// shared among CPUs.
#[inline(always)]
pub fn see(record: &mut Flow) {
    let tick = PARAMS.get(0).map_or(0, |params| params.tick);
    if record.last_seen != tick {
        record.last_seen = tick;
    }
}

/// The way that a flow has in a bucket, if it is not at home.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_flow_away(index: u32, wanted: u32, key: *const FlowKey) -> u32 {
    let Some(bucket) = bucket(index) else {
        return NONE;
    };
    if key.is_null() {
        return NONE;
    }
    // SAFETY: the caller's key.
    held_by(bucket, index, wanted, 0, unsafe { &*key })
}

/// The way of a flow with this tag, if it is not one of those whose bits are set in `but`: the first
/// or the second that has the tag. That three flows have one tag has a chance of one in 10^14.
#[inline(always)]
fn held_by(bucket: *mut Bucket, index: u32, wanted: u32, but: u32, key: &FlowKey) -> u32 {
    let first = lb_flow_tagged(index, wanted, but);
    // SAFETY: as above.
    if first == NONE || unsafe { (*record(bucket, first)).is_of(key) } {
        return first;
    }
    let second = lb_flow_tagged(index, wanted, but | bit(first));
    // SAFETY: as above.
    if second != NONE && unsafe { (*record(bucket, second)).is_of(key) } {
        return second;
    }
    NONE
}

#[inline(always)]
const fn bit(way: u32) -> u32 {
    1 << (way & (WAYS as u32 - 1))
}

/// The first way of a bucket with this tag whose bit in `but` is not set. A global function, because
/// the verifier goes through what follows it once, and not for each way.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_flow_tagged(index: u32, wanted: u32, but: u32) -> u32 {
    let Some(bucket) = bucket(index) else {
        return NONE;
    };
    let mut way = 0;
    while way < WAYS {
        // SAFETY: in the bucket. By constants, so that the loop is rolled out.
        let known = get(unsafe { &raw const (*bucket).tags[way] });
        // Of a copy: what the verifier learns of the bits themselves would keep its ways apart.
        if known == wanted && opaque(but >> way) & 1 == 0 {
            return way as u32;
        }
        way += 1;
    }
    NONE
}

/// The record of a NAT flow, by its backend's packets.
#[inline(always)]
pub fn find_reply(key: &FlowKey) -> Option<&'static mut Flow> {
    let number = lb_flow_referred(key);
    if number == NONE {
        return None;
    }
    let bucket = bucket(number / WAYS as u32)?;
    // SAFETY: as above.
    Some(unsafe { &mut *record(bucket, number) })
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_flow_referred(key: *const FlowKey) -> u32 {
    let Some(params) = PARAMS.get(0) else {
        return NONE;
    };
    if key.is_null() {
        return NONE;
    }
    // SAFETY: the caller's.
    let key = unsafe { &*key };
    let place = Place::of(key, params.seed);
    let Some(line) = REPLIES.get_ptr_mut(place.index(lines(params.flow_buckets))) else {
        return NONE;
    };
    let home = get(reference(line, place.reply_home()));
    if home >> 24 == place.reply_tag() {
        let number = (home & 0xff_ffff).wrapping_sub(1);
        if is_answered_by(number, key) {
            return number;
        }
    }
    candidates(line, place)
        .into_iter()
        .find(|number| *number != NONE && is_answered_by(*number, key))
        .unwrap_or(NONE)
}

/// The records that the references with this reply's tag name.
#[inline(always)]
fn candidates(line: *mut Replies, place: Place) -> [u32; SAME_TAG] {
    let mut found = [0; SAME_TAG];
    let mut n = 0;
    while n < REFERENCES {
        let reference = get(reference(line, n));
        let same = equal(reference >> 24, place.reply_tag());
        found[2] = choose(same, found[1], found[2]);
        found[1] = choose(same, found[0], found[1]);
        found[0] = choose(same, reference, found[0]);
        n += 1;
    }
    // Where nothing was found, 0 - 1 is `NONE`.
    found.map(|reference| (reference & 0xff_ffff).wrapping_sub(1))
}

#[inline(always)]
const fn lines(buckets: u32) -> u32 {
    lb_common::flow_table::reply_lines(buckets)
}

#[inline(always)]
fn reference(line: *mut Replies, n: usize) -> *mut u32 {
    // SAFETY: the index is below `REFERENCES`, a power of two.
    unsafe {
        (&raw mut (*line).0)
            .cast::<u32>()
            .add(opaque(n as u32) as usize & (REFERENCES - 1))
    }
}

/// Whether such packets are the replies of the flow whose record has this number.
#[inline(always)]
fn is_answered_by(number: u32, key: &FlowKey) -> bool {
    let Some(bucket) = bucket(number / WAYS as u32) else {
        return false;
    };
    // SAFETY: as above.
    let flow = unsafe { &*record(bucket, number) };
    // Early, and by branches: put together in one word, the verifier goes through all of it.
    if flow.protocol as u32 != key.protocol || flow.nat_port != key.dport {
        return false;
    }
    let (Some(backend), Some(source)) = (
        BACKENDS.get(flow.backend as u32),
        SOURCES.get(flow.source as u32),
    ) else {
        return false;
    };
    let port = select::port(backend, flow.vip_port);
    port == key.sport && backend.addr == key.src && *source == key.dst
}

/// Whether a flow may lose its place and its port to a new one: it is over, or was never answered
/// or carried on.
#[inline(always)]
fn can_yield(flow: &Flow, tick: u32) -> bool {
    let is_tcp = flow.protocol == TCP;
    if flow.source == 0 {
        return flow.forward & tcp_seen::CLIENT_ACK == 0
            || tick.saturating_sub(flow.last_seen) > policy::tracked_limit(flow.forward);
    }
    flow.reply & tcp_seen::REPLY == 0
        || (is_tcp && flow.forward & tcp_seen::CLIENT_ACK == 0)
        // A closed flow gives way at once. The clocks of opening and of the agent may differ by a
        // second.
        || (is_tcp && policy::is_closed(flow.forward, flow.reply))
        || tick.saturating_sub(flow.last_seen)
            > policy::idle_limit(is_tcp, flow.forward, flow.reply)
}

/// Takes hold of a way for a new flow: its home, another free one, or one whose flow yields.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_flow_claim(index: u32, home: u32, tick: u32) -> u32 {
    let Some(bucket) = bucket(index) else {
        return NONE;
    };
    let take = |way: u32, from: u32| swap_if(tag(bucket, way), from, HELD);
    if get(tag(bucket, home)) == 0 && take(home, 0) {
        return home;
    }
    let mut way = 0;
    while way < WAYS as u32 {
        if get(tag(bucket, way)) == 0 && take(way, 0) {
            return way;
        }
        way += 1;
    }
    let mut tries = 0;
    while tries < VICTIM_TRIES {
        let way = (home + tries * (WAYS as u32 / VICTIM_TRIES)) & (WAYS as u32 - 1);
        let known = get(tag(bucket, way));
        // SAFETY: as above.
        let yields = known > HELD && can_yield(unsafe { &*record(bucket, way) }, tick);
        if yields && take(way, known) {
            lb_flow_clear(index, way);
            return way;
        }
        tries += 1;
    }
    NONE
}

/// Empties a record whose way the caller holds, and gives its port back. The answer says nothing:
/// such a function must have one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_flow_clear(index: u32, way: u32) -> u32 {
    let (Some(bucket), Some(params)) = (bucket(index), PARAMS.get(0)) else {
        return NONE;
    };
    let flow = record(bucket, way);
    let number = index * WAYS as u32 + (way & (WAYS as u32 - 1));
    // SAFETY: as above.
    let known = unsafe { &*flow };
    if known.source != 0
        && let Some(backend) = BACKENDS.get(known.backend as u32)
        && let Some(source) = SOURCES.get(known.source as u32)
    {
        let place = Place::of(
            &known.reply_key(backend.addr, backend.port, *source),
            params.seed,
        );
        if let Some(line) = REPLIES.get_ptr_mut(place.index(lines(params.flow_buckets))) {
            let mine = place.reference(number);
            let mut n = 0;
            while n < REFERENCES {
                let reference = reference(line, n);
                if get(reference) == mine {
                    // Only its holder clears it.
                    put32(reference, 0);
                }
                n += 1;
            }
        }
    }
    put64(word(flow), 0);
    number
}

/// Removes a flow whose client opens its successor.
#[inline(always)]
fn remove(key: &FlowKey, place: Place, index: u32) {
    let Some(bucket) = bucket(index) else {
        return;
    };
    let home = place.home() as u32;
    // SAFETY: as above.
    let way = if unsafe { (*record(bucket, home)).is_of(key) } {
        home
    } else {
        lb_flow_away(index, place.tag(), key)
    };
    if way != NONE {
        free(bucket, index, way, place.tag());
    }
}

/// Frees a way that has this tag; whether it had. Another CPU may be quicker.
#[inline(always)]
fn free(bucket: *mut Bucket, index: u32, way: u32, known: u32) -> bool {
    let tag = tag(bucket, way);
    if !swap_if(tag, known, HELD) {
        return false;
    }
    lb_flow_clear(index, way & (WAYS as u32 - 1));
    put32(tag, 0);
    true
}

/// Records the flow in [`OPENING`], in the place of an older one of the same client and port.
#[inline(always)]
pub fn insert() -> Result<(), Verdict> {
    match lb_flow_insert() {
        RECORDED => Ok(()),
        NO_PORT => Err(Verdict::DropNoPort),
        _ => Err(Verdict::DropFlowTable),
    }
}

const RECORDED: u32 = 0;
const NO_PORT: u32 = 1;
const NO_PLACE: u32 = 2;

/// Does what [`insert`] says.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_flow_insert() -> u32 {
    let (Some(params), Some(opening)) = (PARAMS.get(0), opening()) else {
        return NO_PLACE;
    };
    let place = Place::of(&opening.key, params.seed);
    let index = place.index(params.flow_buckets);
    opening.source = 0;
    if opening.is_nat != 0 {
        // Before the first compare-and-swap, after which nothing is read ahead: so its line comes from
        // memory while the bucket's do.
        ports::draw_first(opening, params);
    }
    let key = &opening.key;
    if opening.known != 0 {
        remove(key, place, index);
    }
    let way = lb_flow_claim(index, place.home() as u32, opening.tick);
    let Some(bucket) = bucket(index).filter(|_| way != NONE) else {
        return NO_PLACE;
    };
    let flow = record(bucket, way);
    // SAFETY: this CPU holds the way, and nobody reads a record whose word is 0.
    unsafe {
        copy(&raw const key.src, &raw mut (*flow).client);
        copy(&raw const key.dst, &raw mut (*flow).vip);
        (*flow).last_seen = opening.tick;
        (*flow).nat_port = 0;
        (*flow).forward = opening.forward;
        (*flow).reply = 0;
        // By words, for the same reason as `copy`.
        let way_back = &raw const opening.way_back;
        (*flow).way_back.macs[0] = (&raw const (*way_back).macs[0]).read_volatile();
        (*flow).way_back.macs[1] = (&raw const (*way_back).macs[1]).read_volatile();
        (*flow).way_back.macs[2] = (&raw const (*way_back).macs[2]).read_volatile();
        (*flow).way_back.ifindex = (&raw const (*way_back).ifindex).read_volatile();
    }
    if opening.is_nat != 0 {
        opening.reserved = 0;
        if opening.source != 0 {
            opening.bucket = index;
            opening.way = way;
            ports::reserve();
        }
        // SAFETY: in the scratch; read anew, since the loop has changed it.
        if unsafe { (&raw const opening.reserved).read_volatile() } == 0 {
            put32(tag(bucket, way), 0);
            return NO_PORT;
        }
    }
    let [a, b] = [key.sport.to_ne_bytes(), key.dport.to_ne_bytes()];
    let c = opening.backend.to_ne_bytes();
    let bytes = [
        a[0],
        a[1],
        b[0],
        b[1],
        key.protocol as u8,
        opening.source as u8,
        c[0],
        c[1],
    ];
    put64(word(flow), u64::from_ne_bytes(bytes));
    put32(tag(bucket, way), place.tag());
    // That orders what comes after it: of two CPUs that do this at once, one at least sees the other.
    let twin = lb_flow_twin(index, place.tag(), way, key);
    if twin != NONE {
        // Another CPU has opened the same flow in this moment. Both keep the same one of the two.
        let later = if twin > way { twin } else { way };
        free(bucket, index, later, place.tag());
    }
    RECORDED
}

/// Another way of a bucket than `own` that has the same flow.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_flow_twin(index: u32, wanted: u32, own: u32, key: *const FlowKey) -> u32 {
    let Some(bucket) = bucket(index) else {
        return NONE;
    };
    if key.is_null() {
        return NONE;
    }
    // SAFETY: the caller's key.
    held_by(bucket, index, wanted, bit(own), unsafe { &*key })
}

/// Copies by double words. Left to itself LLVM calls memmove, a loop over bytes.
#[inline(always)]
fn copy(from: *const Addr, to: *mut Addr) {
    for n in 0..2 {
        // SAFETY: both are valid, and no other CPU uses the target.
        unsafe { (&raw mut (*to).0[n]).write((&raw const (*from).0[n]).read_volatile()) };
    }
}
