//! Ports of NAT flows. To place the reference of a flow's replies is what reserves its port.

use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::bpf_loop;
use lb_common::abi::{FlowKey, Params};
use lb_common::flow_table::{HELD, Place, REFERENCES, WAYS};
use lb_common::hash;

use super::{
    NONE, bucket, can_yield, candidates, copy, free, is_answered_by, lines, record, reference, tag,
};
use crate::atomic::{get, put32, swap_if};
use crate::maps::{BACKENDS, Opening, PARAMS, REPLIES, SOURCES, opening};
use crate::select;

/// Ports tried before a flow is refused: with 80 % of a backend's ports taken, 16 tries fail for
/// one flow in 36.
const PORT_TRIES: u32 = 16 + QUICK_TRIES as u32;
/// Of these the first, which make do with any port that is surely free.
const QUICK_TRIES: u64 = 4;

/// Draws a port for the flow that is being opened, if there is an address that it is of, and has the
/// processor read the line that the reference of its replies goes to.
#[inline(always)]
pub fn draw_first(opening: &mut Opening, params: &Params) {
    let Some(entry) = BACKENDS.get(opening.backend as u32) else {
        return;
    };
    let Some(address) = SOURCES.get(entry.source_index as u32) else {
        return;
    };
    let key = &opening.key;
    copy(&raw const entry.addr, &raw mut opening.reply.src);
    copy(address, &raw mut opening.reply.dst);
    opening.reply.sport = select::port(entry, key.dport);
    opening.reply.protocol = key.protocol;
    // What differs among flows; the generator mixes it.
    let client = key.src.0[0] >> 32 ^ key.src.0[1] >> 32;
    opening.random = client << 32 | (params.seed ^ key.sport as u32) as u64;
    draw(opening, params);
    if let Some(line) = REPLIES.get_ptr_mut(opening.line) {
        get(reference(line, 0));
    }
    opening.source = entry.source_index as u16;
}

/// Draws a port.
#[inline(always)]
fn draw(opening: &mut Opening, params: &Params) {
    opening.random = hash::mix(opening.random.wrapping_add(0x9e37_79b9_7f4a_7c15));
    let offset = hash::slot((opening.random >> 32) as u32, params.snat_count as u32);
    opening.reply.dport = params.snat_first.wrapping_add(offset as u16).to_be();
    aim(opening, params);
}

/// Says which line the reference of the replies goes to.
#[inline(always)]
fn aim(opening: &mut Opening, params: &Params) {
    let place = Place::of(&opening.reply, params.seed);
    opening.line = place.index(lines(params.flow_buckets));
}

/// Reserves a port for the flow that is being opened, beginning with the one that was drawn, if need
/// be that of a flow which can do without; `reserved` tells whether there was one.
#[inline(always)]
pub fn reserve() {
    let (Some(opening), Some(params)) = (opening(), PARAMS.get(0)) else {
        return;
    };
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
        opening.reply.dport = opening.victim_port;
        aim(opening, params);
        within(1);
    }
}

/// A helper's loop, because the verifier goes through its body once, and through what follows an
/// ordinary loop once for each turn.
#[inline(always)]
fn within(tries: u32) {
    // SAFETY: the function has the form that the helper wants (Linux 5.17), and needs no context.
    unsafe { bpf_loop(tries, attempt as *mut c_void, core::ptr::null_mut(), 0) };
}

/// One try to reserve the port that was drawn, by placing the reference of the flow's replies; draws
/// another one if it is taken. Nonzero ends the loop.
extern "C" fn attempt(turn: u64, _context: *mut c_void) -> u64 {
    let (Some(opening), Some(params)) = (opening(), PARAMS.get(0)) else {
        return 1;
    };
    let careful = turn >= QUICK_TRIES || opening.victim != NONE;
    opening.reserved = place(opening, params, careful) as u32;
    if opening.reserved == 0 {
        draw(opening, params);
    }
    opening.reserved as u64
}

/// Places the reference of the replies in `opening`; whether nobody else has such replies. In the
/// first tries a reference with the same tag is enough to look elsewhere: what it leads to would have
/// to be read from memory.
#[inline(always)]
fn place(opening: &mut Opening, params: &Params, careful: bool) -> bool {
    let key = &opening.reply;
    let Some(bucket) = bucket(opening.bucket) else {
        return false;
    };
    let flow = record(bucket, opening.way);
    // SAFETY: this CPU holds the way.
    unsafe { (*flow).nat_port = key.dport };
    let number = opening.bucket * WAYS as u32 + (opening.way & (WAYS as u32 - 1));
    let place = Place::of(key, params.seed);
    let Some(line) = REPLIES.get_ptr_mut(opening.line) else {
        return false;
    };
    let mine = place.reference(number);
    let taken = || {
        if careful {
            lb_flow_taken(number, key)
        } else {
            lb_reply_alike(opening.line, mine)
        }
    };
    let other = taken();
    if other != NONE {
        if careful && can_yield_number(other, params.tick) {
            opening.victim = other;
            opening.victim_port = key.dport;
        }
        return false;
    }
    let mut free = place.reply_home();
    if get(reference(line, free)) != 0 {
        free = 0;
        while free < REFERENCES && get(reference(line, free)) != 0 {
            free += 1;
        }
    }
    if free == REFERENCES || !swap_if(reference(line, free), 0, mine) {
        return false;
    }
    // Another CPU may have taken the same port in this moment. Each of the two then finds the other,
    // and draws again.
    if taken() != NONE {
        put32(reference(line, free), 0);
        return false;
    }
    true
}

/// Another reference in a line that has the tag of this one: the number of its record.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_reply_alike(line: u32, mine: u32) -> u32 {
    let Some(line) = REPLIES.get_ptr_mut(line) else {
        return 0;
    };
    let mut n = 0;
    while n < REFERENCES {
        // SAFETY: in the line. By constants, for a loop that is rolled out.
        let other = get(unsafe { &raw const (*line).0[n] });
        if (other ^ mine) >> 24 == 0 && other != mine {
            return (other & 0xff_ffff).wrapping_sub(1);
        }
        n += 1;
    }
    NONE
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
