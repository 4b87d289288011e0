// SPDX-License-Identifier: GPL-2.0

//! Who speaks in the log, and the rate limit for lines that a guest can cause.

use kernel::{
    fmt,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    time::msecs_to_jiffies, //
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

/// A disk that speaks in the log, with its name before each line.
pub struct Speaker {
    name: CString,
    limit: &'static Limit,
}

impl Speaker {
    /// The disk of this name, of the domain `domid`. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(name: &CStr, domid: u16) -> Result<Arc<Self>> {
        let speaker = Self {
            name: CString::try_from(name)?,
            limit: Limit::of(domid),
        };
        Ok(Arc::new(speaker, GFP_KERNEL)?)
    }

    /// Its name. Any context.
    #[inline]
    pub fn name(&self) -> &CStr {
        &self.name
    }

    /// Says what is good to know. Any context, as all of them.
    #[cold]
    pub fn info(&self, what: fmt::Arguments<'_>) {
        pr_info!("{}: {}\n", self.name(), what);
    }

    /// Says what an administrator should look at.
    #[cold]
    pub fn warn(&self, what: fmt::Arguments<'_>) {
        pr_warn!("{}: {}\n", self.name(), what);
    }

    /// As [`Speaker::info`], of what a guest has caused, and could cause again and again: within the limit of the guest.
    #[cold]
    pub fn info_limited(&self, what: fmt::Arguments<'_>) {
        if self.permits() {
            self.info(what);
        }
    }

    /// As [`Speaker::warn`], of what a guest has caused, and could cause again and again: within the limit of the guest.
    #[cold]
    pub fn warn_limited(&self, what: fmt::Arguments<'_>) {
        if self.permits() {
            self.warn(what);
        }
    }

    /// Says that something is wrong with the driver, or with Xen.
    #[cold]
    pub fn error(&self, what: fmt::Arguments<'_>) {
        pr_err!("{}: {}\n", self.name(), what);
    }

    /// Returns whether a line may be printed now that the guest has caused. Says so when some of the guest's were left out
    /// before. Two that ask at the same time may get one line too many.
    pub fn permits(&self) -> bool {
        self.limit.permits(&self.name)
    }

    /// As [`Speaker::permits`], for what may make somebody else print a line: if there is no room for one it
    /// is put off rather than left out.
    pub fn has_room(&self) -> bool {
        self.limit.has_room(&self.name)
    }
}

/// The limit of one guest, for all its disks together, so that it can neither flood the log nor hide what
/// others do.
struct Limit {
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

    /// The limit of a domain.
    fn of(domid: u16) -> &'static Self {
        let [first, ..] = &LIMITS;
        LIMITS.get(usize::from(domid) % GUESTS).unwrap_or(first)
    }

    /// As [`Speaker::permits`], for a line about `disk`.
    fn permits(&self, disk: &CStr) -> bool {
        self.begin(disk);
        self.lines.fetch_add(1, Relaxed) < BURST
    }

    /// As [`Speaker::has_room`], for a line about `disk`.
    fn has_room(&self, disk: &CStr) -> bool {
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
