// SPDX-License-Identifier: GPL-2.0

//! Rate limit for log lines that a guest can cause.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::msecs_to_jiffies,
};

use crate::clock::jiffies;

/// Lines that are printed in one interval, and the interval in milliseconds: the kernel's
/// `DEFAULT_RATELIMIT_BURST` and `DEFAULT_RATELIMIT_INTERVAL` (`include/linux/ratelimit_types.h`).
const BURST: u32 = 10;
const INTERVAL: u32 = 5000;

/// The limit of one disk, so that its guest can neither flood the log nor hide what others do.
pub struct Limit {
    since: Atomic<u64>,
    lines: Atomic<u32>,
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            since: Atomic::new(0),
            lines: Atomic::new(0),
        }
    }
}

impl Limit {
    /// Whether a line about `disk` may be printed now. Says so when some were left out before. Two
    /// that ask at the same time may get one line too many. Any context.
    pub fn permits(&self, disk: &CStr) -> bool {
        let now = jiffies() as u64;
        if now.wrapping_sub(self.since.load(Relaxed)) >= msecs_to_jiffies(INTERVAL) as u64 {
            self.since.store(now, Relaxed);
            let left_out = self.lines.xchg(0, Relaxed).saturating_sub(BURST);
            if left_out > 0 {
                pr_warn!("{}: {} messages were left out\n", disk, left_out);
            }
        }
        self.lines.fetch_add(1, Relaxed) < BURST
    }
}
