//! Compare-and-swap and exchange on memory that CPUs share (Linux 5.12). The compiler's BPF target
//! does not offer them in `core::sync::atomic`, so they are written out. Both order all accesses before
//! and after them, as the kernel's own (Documentation/bpf/standardization/instruction-set.rst).

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

/// Reads a word that others may write.
#[inline(always)]
pub fn get(place: *const u32) -> u32 {
    // SAFETY: as above.
    unsafe { place.read_volatile() }
}

/// A value that the compiler knows nothing of, so that it keeps the checks that the verifier wants
/// to see.
#[inline(always)]
pub fn opaque(value: u32) -> u32 {
    let mut value = u64::from(value);
    // SAFETY: does nothing. It is an instruction nevertheless, since the kernel wants each entry of
    // the line table at one of its own.
    unsafe { asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack)) };
    value as u32
}
