// SPDX-License-Identifier: GPL-2.0

//! Which grants of a frontend stay mapped between its requests.
//!
//! A frontend that offers `feature-persistent` uses the same grants again and again, so that the
//! backend may leave them mapped (xen/include/public/io/blkif.h). This table knows them by their
//! reference, counts the segments in flight that use each, and keeps those that none uses in the
//! order in which they were last used. What is mapped, and how, is the caller's: its values.
//!
//! The table needs no allocation of its own: it lives in a slice that its owner provides, and can
//! replace by a larger one.

use core::{
    marker::PhantomData,
    ops::DerefMut, //
};

/// No entry.
const NONE: u32 = u32::MAX;

/// Place of a grant in the table, valid until it is removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Index(u32);

/// An element of the slice that a table lives in.
#[derive(Debug)]
pub struct Entry<V> {
    gref: u32,
    /// Segments in flight that use the grant.
    users: u32,
    /// When it was last used, if nobody does now.
    since: u64,
    /// First entry of the bucket that has this entry's number.
    bucket: u32,
    /// Next entry in the same bucket; of a free entry, the next free one.
    chain: u32,
    /// Of a grant that nobody uses, the next one that has not been used for longer.
    older: u32,
    /// Of a grant that nobody uses, the next one that has been used more recently.
    newer: u32,
    /// What goes with the grant; `None` of a free entry.
    value: Option<V>,
}

impl<V> Entry<V> {
    /// An entry for a new slice.
    pub const fn free() -> Self {
        Self {
            gref: 0,
            users: 0,
            since: 0,
            bucket: NONE,
            chain: NONE,
            older: NONE,
            newer: NONE,
            value: None,
        }
    }
}

/// Grants by their reference.
///
/// # Invariants
///
/// Each entry is in exactly one list: that of free ones, if it has no value; that of its bucket, if
/// it has. It is in the list of unused ones, too, if and only if it has a value and no user. No
/// two entries with a value have the same reference.
#[derive(Debug)]
pub struct Table<V, S> {
    entries: S,
    len: u32,
    free: u32,
    oldest: u32,
    newest: u32,
    _values: PhantomData<V>,
}

impl<V, S: DerefMut<Target = [Entry<V>]>> Table<V, S> {
    /// An empty table in a slice of free entries, which may have no element.
    pub fn new(entries: S) -> Self {
        let mut table = Self {
            entries,
            len: 0,
            free: NONE,
            oldest: NONE,
            newest: NONE,
            _values: PhantomData,
        };
        table.free_from(0);
        table
    }

    /// Number of grants.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of grants that there is room for.
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Moves everything into a larger slice of free entries; places stay valid. A slice that is
    /// not larger comes back as it is, else the old one does.
    pub fn grow(&mut self, entries: S) -> S {
        let count = self.entries.len();
        if entries.len() <= count {
            return entries;
        }
        let mut old = core::mem::replace(&mut self.entries, entries);
        for (to, from) in self.entries.iter_mut().zip(old.iter_mut()) {
            core::mem::swap(to, from);
            to.bucket = NONE;
            if to.value.is_some() {
                to.chain = NONE;
            }
        }
        let mut index = 0;
        while index < count as u32 {
            self.enter(index);
            index = index.wrapping_add(1);
        }
        self.free_from(count as u32);
        old
    }

    /// The grant's value, with one more user. `None` if the table does not have it.
    pub fn acquire(&mut self, gref: u32) -> Option<(Index, &V)> {
        let index = self.find(gref)?;
        if self.entry(index)?.users == 0 {
            self.unlink_unused(index);
        }
        let entry = self.entry_mut(index)?;
        entry.users = entry.users.wrapping_add(1);
        Some((Index(index), entry.value.as_ref()?))
    }

    /// The grant's value, which nobody may keep.
    pub fn get(&self, gref: u32) -> Option<&V> {
        self.entry(self.find(gref)?)?.value.as_ref()
    }

    /// Adds a grant, with one user. Gives the value back if there is no room, or if the table has
    /// the grant.
    pub fn insert(&mut self, gref: u32, value: V) -> Result<Index, V> {
        if self.find(gref).is_some() {
            return Err(value);
        }
        let index = self.free;
        let Some(entry) = self.entry_mut(index) else {
            return Err(value);
        };
        entry.gref = gref;
        entry.users = 1;
        entry.value = Some(value);
        let next = entry.chain;
        self.free = next;
        self.len = self.len.wrapping_add(1);
        self.enter(index);
        Ok(Index(index))
    }

    /// One user less, at the time `now`, which must not go back from call to call.
    pub fn release(&mut self, index: Index, now: u64) {
        let Some(entry) = self.entry_mut(index.0) else {
            return;
        };
        if entry.users == 0 {
            return;
        }
        entry.users = entry.users.wrapping_sub(1);
        if entry.users == 0 {
            self.link_unused(index.0, now);
        }
    }

    /// Of the grants that nobody uses, the one that has not been used for longest, with the time
    /// at which it last was.
    pub fn oldest(&self) -> Option<(Index, &V, u64)> {
        let entry = self.entry(self.oldest)?;
        Some((Index(self.oldest), entry.value.as_ref()?, entry.since))
    }

    /// Takes a grant for one that was used at the time `now`, if nobody uses it.
    pub fn refresh(&mut self, index: Index, now: u64) {
        if self.entry(index.0).is_some_and(Entry::is_unused) {
            self.unlink_unused(index.0);
            self.link_unused(index.0, now);
        }
    }

    /// Removes a grant, if nobody uses it.
    pub fn remove(&mut self, index: Index) -> Option<V> {
        if !self.entry(index.0)?.is_unused() {
            return None;
        }
        self.unlink_unused(index.0);
        self.leave(index.0);
        let free = self.free;
        let entry = self.entry_mut(index.0)?;
        entry.chain = free;
        let value = entry.value.take();
        self.free = index.0;
        self.len = self.len.wrapping_sub(1);
        value
    }

    fn entry(&self, index: u32) -> Option<&Entry<V>> {
        self.entries.get(index as usize)
    }

    fn entry_mut(&mut self, index: u32) -> Option<&mut Entry<V>> {
        self.entries.get_mut(index as usize)
    }

    /// Number of the bucket of a reference. References are small numbers that follow each other:
    /// the multiplication spreads them over the high bits, of which as many are taken as there
    /// are buckets.
    fn bucket(&self, gref: u32) -> u32 {
        let spread = u64::from(gref.wrapping_mul(0x9e37_79b1));
        (spread.wrapping_mul(self.entries.len() as u64) >> 32) as u32
    }

    fn find(&self, gref: u32) -> Option<u32> {
        let mut index = self.entry(self.bucket(gref))?.bucket;
        while let Some(entry) = self.entry(index) {
            if entry.gref == gref {
                return Some(index);
            }
            index = entry.chain;
        }
        None
    }

    /// Puts an entry that has a value into its bucket.
    fn enter(&mut self, index: u32) {
        let Some(gref) = self
            .entry(index)
            .filter(|e| e.value.is_some())
            .map(|e| e.gref)
        else {
            return;
        };
        let bucket = self.bucket(gref);
        let Some(bucket) = self.entry_mut(bucket) else {
            return;
        };
        let next = core::mem::replace(&mut bucket.bucket, index);
        if let Some(entry) = self.entry_mut(index) {
            entry.chain = next;
        }
    }

    /// Takes an entry out of its bucket.
    fn leave(&mut self, index: u32) {
        let Some((gref, next)) = self.entry(index).map(|entry| (entry.gref, entry.chain)) else {
            return;
        };
        let bucket = self.bucket(gref);
        let Some(bucket) = self.entry_mut(bucket) else {
            return;
        };
        if bucket.bucket == index {
            bucket.bucket = next;
            return;
        }
        let mut at = bucket.bucket;
        while let Some(entry) = self.entry_mut(at) {
            if entry.chain == index {
                entry.chain = next;
                return;
            }
            at = entry.chain;
        }
    }

    /// Puts the entries from this one on into the list of free ones.
    fn free_from(&mut self, first: u32) {
        let mut index = self.entries.len() as u32;
        while index > first {
            index = index.wrapping_sub(1);
            let free = self.free;
            if let Some(entry) = self.entry_mut(index) {
                entry.chain = free;
            }
            self.free = index;
        }
    }

    fn link_unused(&mut self, index: u32, now: u64) {
        let newest = self.newest;
        if let Some(entry) = self.entry_mut(index) {
            entry.since = now;
            entry.older = newest;
            entry.newer = NONE;
        }
        match self.entry_mut(newest) {
            Some(entry) => entry.newer = index,
            None => self.oldest = index,
        }
        self.newest = index;
    }

    fn unlink_unused(&mut self, index: u32) {
        let Some((older, newer)) = self.entry(index).map(|entry| (entry.older, entry.newer)) else {
            return;
        };
        match self.entry_mut(older) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
        match self.entry_mut(newer) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
    }
}

impl<V> Entry<V> {
    fn is_unused(&self) -> bool {
        self.users == 0 && self.value.is_some()
    }
}
