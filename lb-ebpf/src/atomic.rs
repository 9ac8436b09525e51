//! Compare-and-swap, exchange and addition on memory that CPUs share (Linux 5.12). The compiler's BPF
//! target does not offer them in `core::sync::atomic`, so they are written out. They order all accesses
//! before and after them, as the kernel's own
//! (Documentation/bpf/standardization/instruction-set.rst).

use core::arch::asm;

/// Puts `new` in the place of `old`; whether `old` was there.
#[inline(always)]
pub fn swap_if(place: *mut u32, old: u32, new: u32) -> bool {
    let found: u32;
    // SAFETY: the caller's place is valid, or the verifier refuses the program.
    unsafe {
        asm!(
            "w0 = cmpxchg32_32({place} + 0, w0, {new})",
            place = in(reg) place,
            new = in(wreg) new,
            inout("w0") old => found,
        );
    }
    found == old
}

/// Writes `new`.
#[inline(always)]
pub fn put32(place: *mut u32, new: u32) {
    // SAFETY: as above.
    unsafe {
        asm!(
            "{new} = xchg32_32({place} + 0, {new})",
            place = in(reg) place,
            new = inout(wreg) new => _,
        );
    }
}

/// Writes `new`.
#[inline(always)]
pub fn put64(place: *mut u64, new: u64) {
    // SAFETY: as above.
    unsafe {
        asm!(
            "{new} = xchg_64({place} + 0, {new})",
            place = in(reg) place,
            new = inout(reg) new => _,
        );
    }
}

/// Adds one; gives what was there before.
#[inline(always)]
pub fn add_one(place: *mut u32) -> u32 {
    let found: u32;
    // SAFETY: as above.
    unsafe {
        asm!(
            "{n} = atomic_fetch_add((u32 *)({place} + 0), {n})",
            place = in(reg) place,
            n = inout(wreg) 1u32 => found,
        );
    }
    found
}

/// Reads a word that others may write.
#[inline(always)]
pub fn get(place: *const u32) -> u32 {
    // SAFETY: as above.
    unsafe { place.read_volatile() }
}

/// All ones if the two are equal, else 0. Without a branch, of which the verifier would have to go
/// both ways for each place that is looked at.
#[inline(always)]
pub fn equal(a: u32, b: u32) -> u32 {
    below((a ^ b) as u64, 1)
}

/// All ones if `a` is less than `b`, else 0, without a branch. Both must be less than 2^63.
#[inline(always)]
pub fn below(a: u64, b: u64) -> u32 {
    // The difference itself: of the shifted one the compiler would make a comparison and a branch.
    ((opaque_long(a.wrapping_sub(b)) >> 63) as u32).wrapping_neg()
}

/// `a` where the mask has ones, else `b`.
#[inline(always)]
pub fn choose(mask: u32, a: u32, b: u32) -> u32 {
    b ^ ((a ^ b) & mask)
}

/// A value that the compiler knows nothing of, so that it keeps the checks that the verifier wants
/// to see.
#[inline(always)]
pub fn opaque(value: u32) -> u32 {
    opaque_long(value.into()) as u32
}

/// The same of a double word.
#[inline(always)]
pub fn opaque_long(value: u64) -> u64 {
    let mut value = value;
    // SAFETY: does nothing. It is an instruction nevertheless, since the kernel wants each entry of
    // the line table at one of its own.
    unsafe { asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack)) };
    value
}
