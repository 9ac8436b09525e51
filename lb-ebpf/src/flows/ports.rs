//! Ports of NAT flows. To place the reference of a flow's replies is what reserves its port.

use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::bpf_loop;
use lb_common::abi::FlowKey;
use lb_common::flow_table::{HELD, Place, REFERENCES, WAYS};
use lb_common::hash;

use super::{
    NONE, bucket, can_yield, candidates, free, is_answered_by, lines, record, reference, tag,
};
use crate::atomic::{get, put32, swap_if};
use crate::maps::{PARAMS, REPLIES, opening};

/// Ports tried before a flow is refused: with 80 % of a backend's ports taken, 16 tries fail for
/// one flow in 36.
const PORT_TRIES: u32 = 16;

/// Finds a port for the flow that is being opened, if need be that of a flow which can do without;
/// `reserved` tells whether there was one.
#[inline(always)]
pub fn reserve() {
    let Some(opening) = opening() else {
        return;
    };
    opening.draw = 1;
    opening.victim = NONE;
    within(PORT_TRIES);
    // SAFETY: in the scratch; read anew, since the loop has changed it.
    let (victim, reserved) = unsafe {
        (
            (&raw const opening.victim).read_volatile(),
            (&raw const opening.reserved).read_volatile(),
        )
    };
    if victim != NONE && reserved == 0 && evict(victim, opening.tick) {
        opening.draw = 0;
        opening.reply.dport = opening.victim_port;
        within(1);
    }
}

/// A helper's loop, because the verifier goes through its body once, and through what follows an
/// ordinary loop once for each turn.
#[inline(always)]
fn within(tries: u32) {
    // SAFETY: the function has the form that the helper wants (Linux 5.17), and needs no context.
    unsafe { bpf_loop(tries, draw as *mut c_void, core::ptr::null_mut(), 0) };
}

/// One try to find a port: draws one and places the reference of the flow's replies. Nonzero ends
/// the loop.
extern "C" fn draw(_turn: u64, _context: *mut c_void) -> u64 {
    let (Some(opening), Some(params)) = (opening(), PARAMS.get(0)) else {
        return 1;
    };
    let key = &mut opening.reply;
    if opening.draw != 0 {
        opening.random = hash::mix(opening.random.wrapping_add(0x9e37_79b9_7f4a_7c15));
        let offset = hash::slot((opening.random >> 32) as u32, params.snat_count as u32);
        key.dport = params.snat_first.wrapping_add(offset as u16).to_be();
    }
    let Some(bucket) = bucket(opening.bucket) else {
        return 1;
    };
    let flow = record(bucket, opening.way);
    // SAFETY: this CPU holds the way.
    unsafe { (*flow).nat_port = key.dport };
    let number = opening.bucket * WAYS as u32 + (opening.way & (WAYS as u32 - 1));
    let place = Place::of(key, params.seed);
    let Some(line) = REPLIES.get_ptr_mut(place.index(lines(params.flow_buckets))) else {
        return 1;
    };
    let taken = lb_flow_taken(number, key);
    if taken != NONE {
        if can_yield_number(taken, params.tick) {
            opening.victim = taken;
            opening.victim_port = key.dport;
        }
        return 0;
    }
    let mine = place.reference(number);
    let mut free = place.reply_home();
    if get(reference(line, free)) != 0 {
        free = 0;
        while free < REFERENCES && get(reference(line, free)) != 0 {
            free += 1;
        }
    }
    if free == REFERENCES || !swap_if(reference(line, free), 0, mine) {
        return 0;
    }
    // Another CPU may have taken the same port in this moment. Each of the two then finds the other,
    // and draws again.
    if lb_flow_taken(number, key) != NONE {
        put32(reference(line, free), 0);
        return 0;
    }
    opening.reserved = 1;
    1
}

/// Another flow with such replies than the one of this number; also one that is just being opened,
/// which may have them.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_flow_taken(own: u32, key: *const FlowKey) -> u32 {
    let Some(params) = PARAMS.get(0) else {
        return own;
    };
    if key.is_null() {
        return own;
    }
    // SAFETY: the caller's.
    let key = unsafe { &*key };
    let place = Place::of(key, params.seed);
    let Some(line) = REPLIES.get_ptr_mut(place.index(lines(params.flow_buckets))) else {
        return own;
    };
    let [first, second, third] = candidates(line, place);
    if third != NONE && third != own && first != own && second != own {
        // No room for a fourth with this tag.
        return third;
    }
    if may_have(first, own, key) {
        first
    } else if may_have(second, own, key) {
        second
    } else if may_have(third, own, key) {
        third
    } else {
        NONE
    }
}

#[inline(always)]
fn may_have(number: u32, own: u32, key: &FlowKey) -> bool {
    if number == NONE || number == own {
        return false;
    }
    // SAFETY: as above.
    let in_use = bucket(number / WAYS as u32)
        .is_some_and(|bucket| unsafe { (*record(bucket, number)).protocol } != 0);
    !in_use || is_answered_by(number, key)
}

#[inline(always)]
fn can_yield_number(number: u32, tick: u32) -> bool {
    // SAFETY: as above.
    bucket(number / WAYS as u32)
        .is_some_and(|bucket| can_yield(unsafe { &*record(bucket, number) }, tick))
}

/// Frees the place and the port of a flow that can do without; whether it could.
#[inline(always)]
fn evict(number: u32, tick: u32) -> bool {
    let index = number / WAYS as u32;
    let Some(bucket) = bucket(index) else {
        return false;
    };
    let known = get(tag(bucket, number));
    // SAFETY: as above.
    let yields = known > HELD && can_yield(unsafe { &*record(bucket, number) }, tick);
    yields && free(bucket, index, number, known)
}
