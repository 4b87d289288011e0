// SPDX-License-Identifier: GPL-2.0

//! Persistent grants: a frontend uses them again and again, and they stay mapped meanwhile.
//!
//! Which ones there are, and since when nobody has used them, is in [`blkif::persistent`]; here is
//! how many are kept, and which of them go when.

use blkif::persistent::{
    Entry,
    Index,
    Table, //
};
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    time::{
        msecs_to_jiffies,
        Jiffies, //
    }, //
};

use crate::{
    clock::jiffies,
    grants::pool::is_referenced,
    mem,
    module::params,
    raw, //
};

/// Time between two rounds of returning persistent grants when a frontend uses more than are kept,
/// in milliseconds, and the part of them that is returned in each round. Both as in xen-blkback.
const PURGE_INTERVAL: u32 = 100;
const PURGE_DIVISOR: usize = 20;

/// Persistent grants that there is room for at first.
const FIRST_ROOM: usize = 64;

/// A persistent grant.
///
/// # Invariants
///
/// The grant is mapped into `page`, which belongs to the mapping, with this handle.
pub(crate) struct Mapping {
    pub(crate) page: NonNull<raw::page>,
    pub(crate) handle: u32,
}

/// The persistent grants of a ring.
pub(crate) struct Kept {
    table: Table<Mapping, KVec<Entry<Mapping>>>,
    /// There were more than may be kept, since the last round of returning some.
    overflow: bool,
    last_purge: Jiffies,
}

impl Kept {
    pub(crate) fn new() -> Self {
        Self {
            table: Table::new(KVec::new()),
            overflow: false,
            last_purge: jiffies(),
        }
    }

    /// How many there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Are there as many as the parameter `max_persistent_grants` allows?
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= params::max_persistent_grants()
    }

    /// The page that a grant is mapped into, if it is kept. It stays mapped until the caller has given
    /// the index to [`Kept::release`].
    #[inline]
    pub(crate) fn acquire(&mut self, gref: u32) -> Option<(Index, NonNull<raw::page>)> {
        let (index, mapping) = self.table.acquire(gref)?;
        Some((index, mapping.page))
    }

    #[inline]
    pub(crate) fn release(&mut self, index: Index) {
        self.table.release(index, jiffies() as u64);
    }

    /// Keeps a grant, if there is room or can be made; the caller is its user as after [`Kept::acquire`]. May sleep.
    pub(crate) fn insert(&mut self, gref: u32, mapping: Mapping) -> Option<Index> {
        if self.is_full() {
            self.overflow = true;
            return None;
        }
        if self.len() >= self.table.capacity() {
            let room = self.len().saturating_mul(2).max(FIRST_ROOM);
            let room = room.min(params::max_persistent_grants());
            // If this fails, the grant is not kept.
            if let Ok(mut entries) = mem::try_vec(room) {
                for _ in 0..room {
                    let _ = entries.push_within_capacity(Entry::free());
                }
                self.table.grow(entries);
            }
        }
        self.table.insert(gref, mapping).ok()
    }

    /// How many are to be returned now, because there are more than the parameter allows, or because the
    /// frontend has used more since the last time. Says so every 100 ms at most.
    #[inline]
    pub(crate) fn surplus(&mut self) -> usize {
        let max = params::max_persistent_grants();
        let excess = self.len().saturating_sub(max);
        if !self.overflow && excess == 0 {
            return 0;
        }
        let now = jiffies();
        if now.wrapping_sub(self.last_purge) < msecs_to_jiffies(PURGE_INTERVAL) {
            return 0;
        }
        self.last_purge = now;
        self.overflow = false;
        excess.saturating_add(max / PURGE_DIVISOR)
    }

    /// Gives up the one that nobody has used for longest, if that is since `until` or longer. Looks at `count`
    /// grants at most, which it counts down.
    pub(crate) fn take_unused(&mut self, count: &mut usize, until: u64) -> Option<Mapping> {
        loop {
            let (index, mapping, since) = self.table.oldest()?;
            if *count == 0 || since > until {
                return None;
            }
            *count = count.saturating_sub(1);
            if !is_referenced(mapping.page) {
                return self.table.remove(index);
            }
            self.table.refresh(index, jiffies() as u64);
        }
    }

    /// Gives up the room for grants if there are none. Returns whether there are none.
    pub(crate) fn shrink(&mut self) -> bool {
        let empty = self.table.is_empty();
        if empty {
            self.table = Table::new(KVec::new());
        }
        empty
    }
}
