// SPDX-License-Identifier: GPL-2.0

//! Allocation in the path that writes dirty memory out.

use crate::raw;

/// Runs `f` with every allocation of the current task treated as `GFP_NOIO`.
///
/// A backend is below the page cache of its guests and of dom0 itself: an allocation here that
/// waits for I/O could wait for its own disk. The scope also covers what file systems and the
/// block layer allocate on our behalf.
///
/// May be called in any task context; `f` may sleep.
pub fn with_noio<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: Changes flags of the current task only; the matching restore is below.
    let flags = unsafe { raw::memalloc_noio_save() };
    let ret = f();
    // SAFETY: `flags` is what the matching save returned, and scopes nest since `f` is a closure.
    unsafe { raw::memalloc_noio_restore(flags) };
    ret
}

/// Gives other tasks the processor if it is their turn. May sleep.
#[inline]
pub fn cond_resched() {
    // SAFETY: No requirement but a context that may sleep, which the documentation demands; in a
    // context that may not, the scheduler complains but memory stays safe.
    unsafe { raw::cond_resched() }
}
