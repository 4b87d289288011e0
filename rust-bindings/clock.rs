// SPDX-License-Identifier: GPL-2.0

//! Clocks that cost next to nothing to read.
//!
//! C headers: [`include/linux/jiffies.h`](srctree/include/linux/jiffies.h),
//! [`include/linux/sched/clock.h`](srctree/include/linux/sched/clock.h)

use kernel::time::Jiffies;

use crate::raw;

/// The kernel's clock, in units of `1/CONFIG_HZ` seconds. Any context.
#[inline]
pub fn jiffies() -> Jiffies {
    // SAFETY: The counter is written by the timer interrupt only, and is one machine word.
    unsafe { (&raw const raw::jiffies).read_volatile() }
}

/// Time since some moment, in nanoseconds. Good for measuring intervals; two processors may differ
/// by microseconds. Any context.
#[inline]
pub fn nanoseconds() -> u64 {
    // SAFETY: The function may be called in any context.
    unsafe { raw::local_clock() }
}
