// SPDX-License-Identifier: GPL-2.0

//! How many pages of each guest are mapped. How many may be is in [`blkif::share`].
//!
//! The numbers never show what was asked for and is not permitted: another ring would be refused for it, and who
//! reads them would see more than the limit. Lock order: inside of [`Share::taking`] nothing is locked.

use blkif::share::{
    Mapped,
    RESERVE, //
};
use kernel::{
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc,
        SpinLock, //
    },
};

use crate::module::params;

/// Pages of all guests that are mapped, or may be at once.
static ALL: Atomic<u32> = Atomic::new(0);

/// Of these, those of rings, and persistent grants.
static PERMANENT: Atomic<u32> = Atomic::new(0);

/// What a ring asks for at a time, so that most requests cost the guest's numbers nothing, and what it keeps
/// at most without using it.
const CHUNK: u32 = 32;
const SLACK: u32 = 2 * CHUNK;

/// Pages of one guest that are mapped for all its disks, or may be at once.
#[pin_data]
pub struct Share {
    /// Of the guest's rings one at a time gets more, so that `mapped` and `rings` grow only by what is permitted.
    #[pin]
    taking: SpinLock<()>,
    /// All of them.
    mapped: Atomic<u32>,
    /// Those for rings.
    rings: Atomic<u32>,
    /// Those of persistent grants.
    kept: Atomic<u32>,
}

/// Adds to the number, if what it becomes is permitted. Returns whether it is.
fn raise(number: &Atomic<u32>, by: u32, permits: impl Fn(u32) -> bool) -> bool {
    let mut old = number.load(Relaxed);
    loop {
        let new = old.wrapping_add(by);
        if !permits(new) {
            return false;
        }
        match number.cmpxchg(old, new, Full) {
            Ok(_) => return true,
            Err(other) => old = other,
        }
    }
}

impl Share {
    /// That of a guest which has nothing mapped.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            taking <- new_spinlock!((), "share"),
            mapped: Atomic::new(0),
            rings: Atomic::new(0),
            kept: Atomic::new(0),
        })
    }

    /// How many pages are mapped. Any context.
    pub fn mapped(&self) -> u32 {
        self.mapped.load(Relaxed)
    }

    /// How many may be as of now. Any context.
    pub fn limit(&self) -> u32 {
        params::limits().share(ALL.load(Relaxed))
    }

    /// What there is with `count` more pages of requests.
    fn with(&self, count: u32, all: u32) -> Mapped {
        Mapped {
            all,
            permanent: PERMANENT.load(Relaxed),
            guest: self.mapped.load(Relaxed).wrapping_add(count),
            rings: self.rings.load(Relaxed),
            kept: self.kept.load(Relaxed),
        }
    }

    /// Counts `count` pages of requests, if they are permitted.
    fn take(&self, count: u32) -> bool {
        let _taking = self.taking.lock();
        let limits = params::limits();
        let permitted = raise(&ALL, count, |all| {
            limits.permits_request(self.with(count, all))
        });
        if permitted {
            self.mapped.fetch_add(count, Full);
        }
        permitted
    }

    /// Counts `count` pages of another ring, if they are permitted.
    fn take_ring(&self, count: u32) -> bool {
        let _taking = self.taking.lock();
        let limits = params::limits();
        let rings = self.rings.load(Relaxed).wrapping_add(count);
        let permitted = raise(&PERMANENT, count, |permanent| {
            limits.permits_ring(Mapped {
                permanent,
                rings,
                ..self.with(count, ALL.load(Relaxed).wrapping_add(count))
            })
        });
        if permitted {
            self.rings.fetch_add(count, Relaxed);
            ALL.fetch_add(count, Full);
            self.mapped.fetch_add(count, Full);
        }
        permitted
    }

    /// Counts `count` pages as not mapped any more. Whoever looks for rings that wait after that finds those that have
    /// been refused before it.
    fn give(&self, count: u32) {
        ALL.fetch_sub(count, Full);
        self.mapped.fetch_sub(count, Full);
    }
}

/// What one ring may map without asking.
///
/// # Invariants
///
/// `taken` pages are counted in `share`, `rings` of them as those of a ring, and `kept` as persistent grants.
/// All but `left` of those that are not the ring's own are mapped, or are going to be.
pub(crate) struct Credit {
    share: Arc<Share>,
    taken: u32,
    rings: u32,
    kept: u32,
    left: u32,
    /// Others of the guest do not wait for theirs.
    may_ask: bool,
}

impl Credit {
    /// That of a ring of `pages` pages.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if the guest has too much already.
    pub(crate) fn new(share: Arc<Share>, ring_pages: u32) -> Result<Self> {
        let count = ring_pages.saturating_add(RESERVE);
        if !share.take_ring(count) {
            return Err(ENOSPC);
        }
        // INVARIANT: Counted just now.
        Ok(Self {
            share,
            taken: count,
            rings: count,
            kept: 0,
            left: RESERVE,
            may_ask: true,
        })
    }

    /// Sets whether the ring may ask for more than it has.
    #[inline]
    pub(crate) fn set_may_ask(&mut self, may_ask: bool) {
        self.may_ask = may_ask;
    }

    /// May one more page be mapped?
    #[inline]
    pub(crate) fn spend(&mut self) -> bool {
        if self.left == 0 && !self.ask() {
            return false;
        }
        self.left = self.left.wrapping_sub(1);
        true
    }

    #[cold]
    fn ask(&mut self) -> bool {
        if !self.may_ask {
            return false;
        }
        for count in [CHUNK, 1] {
            if self.share.take(count) {
                // INVARIANT: Counted just now.
                self.taken = self.taken.wrapping_add(count);
                self.left = self.left.wrapping_add(count);
                return true;
            }
        }
        false
    }

    /// So many pages are not mapped any more.
    #[inline]
    pub(crate) fn refund(&mut self, count: u32) {
        self.left = self.left.wrapping_add(count);
    }

    /// Tells the guest's numbers how many persistent grants there are.
    #[inline]
    pub(crate) fn count_kept(&mut self, kept: usize) {
        let kept = kept as u32;
        if kept != self.kept {
            // INVARIANT: This is the difference, which may be negative: all wrap around.
            let more = kept.wrapping_sub(self.kept);
            self.share.kept.fetch_add(more, Relaxed);
            PERMANENT.fetch_add(more, Relaxed);
            self.kept = kept;
        }
    }

    /// Gives back what is not used, if that is much; all of it if the ring is `idle`, or if others wait for it.
    #[inline]
    pub(crate) fn settle(&mut self, idle: bool) {
        let surplus = self.left.saturating_sub(RESERVE);
        if surplus > SLACK || (idle && surplus > 0) {
            // INVARIANT: `left` gets smaller by as much.
            self.left = self.left.wrapping_sub(surplus);
            self.taken = self.taken.wrapping_sub(surplus);
            self.share.give(surplus);
        }
    }

    /// How many more pages may stay mapped.
    pub(crate) fn keepable(&self) -> u32 {
        let share = &self.share;
        params::limits().keepable(share.with(0, ALL.load(Relaxed)))
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        PERMANENT.fetch_sub(self.kept.wrapping_add(self.rings), Relaxed);
        self.share.kept.fetch_sub(self.kept, Relaxed);
        self.share.rings.fetch_sub(self.rings, Relaxed);
        self.share.give(self.taken);
    }
}
