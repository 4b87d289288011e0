// SPDX-License-Identifier: GPL-2.0

//! How many pages of each guest are mapped. How many may be is in [`blkif::share`].

use blkif::share::{
    Limits,
    Mapped,
    RESERVE, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc, //
    },
};

use crate::params;

/// Pages of all guests that are mapped, or may be at once.
static ALL: Atomic<u32> = Atomic::new(0);

/// Of these, those of rings, and persistent grants.
static PERMANENT: Atomic<u32> = Atomic::new(0);

/// What a ring asks for at a time, so that most requests cost the guest's numbers nothing, and what it keeps
/// at most without using it.
const CHUNK: u32 = 32;
const SLACK: u32 = 2 * CHUNK;

/// Pages of one guest that are mapped for all its disks, or may be at once.
pub struct Share {
    mapped: Atomic<u32>,
    /// Of these, for rings.
    rings: Atomic<u32>,
    /// Of these, persistent grants.
    kept: Atomic<u32>,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            mapped: Atomic::new(0),
            rings: Atomic::new(0),
            kept: Atomic::new(0),
        }
    }
}

impl Share {
    /// How many pages are mapped. Any context.
    pub fn mapped(&self) -> u32 {
        self.mapped.load(Relaxed)
    }

    /// How many may be as of now. Any context.
    pub fn limit(&self) -> u32 {
        params::limits().share(ALL.load(Relaxed))
    }

    fn sum(&self, all: u32, guest: u32) -> Mapped {
        Mapped {
            all,
            permanent: PERMANENT.load(Relaxed),
            guest,
            rings: self.rings.load(Relaxed),
            kept: self.kept.load(Relaxed),
        }
    }

    /// Counts so many pages, if that is permitted. What was done before is ordered against the counting, as
    /// seen by who looks after [`Share::give`].
    fn take(&self, count: u32, permits: impl FnOnce(Limits, Mapped) -> bool) -> bool {
        let guest = self.mapped.fetch_add(count, Full).wrapping_add(count);
        let all = ALL.fetch_add(count, Full).wrapping_add(count);
        let permitted = permits(params::limits(), self.sum(all, guest));
        if !permitted {
            self.give(count);
        }
        permitted
    }

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
    /// That of a ring of so many pages.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if the guest has too much already.
    pub(crate) fn new(share: Arc<Share>, ring_pages: u32) -> Result<Self> {
        let count = ring_pages.saturating_add(RESERVE);
        share.rings.fetch_add(count, Relaxed);
        PERMANENT.fetch_add(count, Relaxed);
        if !share.take(count, |limits, mapped| limits.permits_ring(mapped)) {
            share.rings.fetch_sub(count, Relaxed);
            PERMANENT.fetch_sub(count, Relaxed);
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

    /// Whether the ring may ask for more than it has.
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
            if self
                .share
                .take(count, |limits, mapped| limits.permits_request(mapped))
            {
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
        params::limits().keepable(share.sum(ALL.load(Relaxed), share.mapped()))
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
