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

/// How many limits there are: more than a host has guests. Guests whose numbers differ by a multiple of
/// it share one.
const GUESTS: usize = 1024;

static LIMITS: [Limit; GUESTS] = [const { Limit::new() }; GUESTS];

/// The limit of one guest, for all its disks together, so that it can neither flood the log nor hide what
/// others do.
pub struct Limit {
    since: Atomic<u64>,
    lines: Atomic<u32>,
}

impl Limit {
    const fn new() -> Self {
        Self {
            since: Atomic::new(0),
            lines: Atomic::new(0),
        }
    }

    /// The limit of a domain. Any context.
    pub fn of(domid: u16) -> &'static Self {
        let [first, ..] = &LIMITS;
        LIMITS.get(usize::from(domid) % GUESTS).unwrap_or(first)
    }

    /// Whether a line about `disk` may be printed now. Says so when some of this guest's were left out
    /// before. Two that ask at the same time may get one line too many. Any context.
    pub fn permits(&self, disk: &CStr) -> bool {
        self.begin(disk);
        self.lines.fetch_add(1, Relaxed) < BURST
    }

    /// As [`Limit::permits`], for what may make somebody else print a line: if there is no room for one it
    /// is put off rather than left out. Any context.
    pub fn has_room(&self, disk: &CStr) -> bool {
        self.begin(disk);
        let room = self.lines.load(Relaxed) < BURST;
        if room {
            self.lines.fetch_add(1, Relaxed);
        }
        room
    }

    /// Begins another interval if it is time.
    fn begin(&self, disk: &CStr) {
        let now = jiffies() as u64;
        if now.wrapping_sub(self.since.load(Relaxed)) >= msecs_to_jiffies(INTERVAL) as u64 {
            self.since.store(now, Relaxed);
            let left_out = self.lines.xchg(0, Relaxed).saturating_sub(BURST);
            if left_out > 0 {
                pr_warn!("{}: {} messages were left out\n", disk, left_out);
            }
        }
    }
}
