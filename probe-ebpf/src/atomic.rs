//! The one atomic instruction that every verifier knows.

use core::arch::asm;

/// Adds `value` to `counter`, modulo 2^64.
///
/// # Safety
/// `counter` is valid and aligned.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, value: u64) {
    // `AtomicU64` has no arithmetic on this target; and this is the one atomic instruction that
    // 5.10 knows.
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "lock *(u64 *)({counter} + 0) += {value}",
            counter = in(reg) counter,
            value = in(reg) value,
            options(nostack),
        );
    }
}
