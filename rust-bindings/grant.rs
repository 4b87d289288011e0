// SPDX-License-Identifier: GPL-2.0

//! A guest's grants: mapping them into pages of ours, many in one hypercall; keeping those mapped
//! that the guest uses again and again; and copying from them.
//!
//! C header: [`include/xen/grant_table.h`](srctree/include/xen/grant_table.h)

use blkif::persistent::{
    Entry,
    Index,
    Table, //
};
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    str::CString,
    sync::Arc,
    time::{
        msecs_to_jiffies,
        Jiffies, //
    }, //
};

use crate::{
    clock::jiffies,
    copy::{
        Copier,
        Copies, //
    },
    io::{
        Direction,
        Done,
        Finished,
        Mapped,
        Staged, //
    },
    list::List,
    log::Limit,
    params,
    pool::PagePool,
    raw, //
};

/// Grants that go into one hypercall at most. A hypercall of 64 operations costs Xen some tens of
/// microseconds, and its arrays 5 KiB of memory per ring.
const BATCH: usize = 64;

/// Time between two rounds of returning persistent grants when a frontend uses more than are kept,
/// in milliseconds, and the part of them that is returned in each round. Both as in xen-blkback.
const PURGE_INTERVAL: u32 = 100;
const PURGE_DIVISOR: usize = 20;

/// Persistent grants that there is room for at first.
const FIRST_ROOM: usize = 64;

/// One granted page of a request.
///
/// # Invariants
///
/// `page` comes from where `backing` says. A slot belongs to one request of the [`Grants`] that made
/// it, and is given back to it once.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    page: NonNull<raw::page>,
    gref: u32,
    backing: Backing,
}

/// What is in the page of a slot, and where it comes from.
#[derive(Clone, Copy)]
enum Backing {
    /// Nothing; the page comes from the [`PagePool`].
    Nothing,
    /// The grant, mapped with this handle for this slot alone into a page of the [`PagePool`].
    Mapped(u32),
    /// The grant, which stays mapped in the page of a [`Mapping`]; the slot is one of its users.
    Kept(Index),
    /// Nothing yet, or nothing that the guest has got; the page comes from [`Copies`].
    Own,
    /// A copy of what is in the guest's page, or will be; the page comes from [`Copies`].
    Copied,
}

impl Slot {
    pub(crate) fn page(&self) -> NonNull<raw::page> {
        self.page
    }

    /// Can the page be used for I/O?
    pub(crate) fn is_ready(&self) -> bool {
        !matches!(self.backing, Backing::Nothing | Backing::Own)
    }
}

/// A persistent grant.
///
/// # Invariants
///
/// The grant is mapped into `page`, which belongs to the mapping, with this handle.
struct Mapping {
    page: NonNull<raw::page>,
    handle: u32,
}

/// The persistent grants of a ring.
struct Kept {
    table: Table<Mapping, KVec<Entry<Mapping>>>,
    /// There were more than may be kept, since the last round of returning some.
    overflow: bool,
    last_purge: Jiffies,
}

impl Kept {
    /// Keeps a grant, if there is room or can be made. May sleep.
    fn insert(&mut self, gref: u32, mapping: Mapping) -> Option<Index> {
        let max = params::max_persistent_grants();
        let len = self.table.len();
        if len >= max {
            self.overflow = true;
            return None;
        }
        if len >= self.table.capacity() {
            let room = len.saturating_mul(2).max(FIRST_ROOM).min(max);
            // If this fails, the grant is not kept.
            if let Ok(mut entries) = KVec::with_capacity(room, GFP_KERNEL | __GFP_NOWARN) {
                for _ in 0..room {
                    let _ = entries.push_within_capacity(Entry::free());
                }
                self.table.grow(entries);
            }
        }
        self.table.insert(gref, mapping).ok()
    }
}

/// How the pages of requests were made ready.
#[derive(Default)]
pub struct Ways {
    /// Pages mapped for a request, or to stay.
    pub mapped: u32,
    /// Pages whose data are copied.
    pub copied: u32,
    /// Pages that were mapped already.
    pub persistent: u32,
}

/// The grants of one ring's requests.
///
/// # Invariants
///
/// The vectors have room for [`BATCH`] elements and are empty between calls. During a call, the
/// slots are those of requests that the call owns, each of them once. So are those of `copies`.
pub struct Grants {
    domid: u16,
    /// Whose requests they are, for log lines, and the limit of these.
    name: CString,
    log: Arc<Limit>,
    pool: PagePool,
    /// None if the frontend does not use persistent grants.
    kept: Option<Kept>,
    /// None if it does.
    copies: Option<Copies>,
    ways: Ways,
    map_ops: KVec<raw::gnttab_map_grant_ref>,
    unmap_ops: KVec<raw::gnttab_unmap_grant_ref>,
    pages: KVec<*mut raw::page>,
    slots: KVec<NonNull<Slot>>,
}

// SAFETY: All of it is ours and may be used in any task; the pointers to slots are only there
// during a call.
unsafe impl Send for Grants {}

impl Grants {
    /// Prepares for grants of the domain `domid`, which stay mapped if they are `persistent`. `name` and
    /// `log` are for log lines. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(domid: u16, persistent: bool, name: &CStr, log: Arc<Limit>) -> Result<Self> {
        // INVARIANT: The room is allocated here.
        Ok(Self {
            domid,
            name: CString::try_from(name)?,
            log,
            pool: PagePool::new()?,
            kept: persistent.then(|| Kept {
                table: Table::new(KVec::new()),
                overflow: false,
                last_purge: jiffies(),
            }),
            copies: if persistent {
                None
            } else {
                Some(Copies::new(domid)?)
            },
            ways: Ways::default(),
            map_ops: KVec::with_capacity(BATCH, GFP_KERNEL)?,
            unmap_ops: KVec::with_capacity(BATCH, GFP_KERNEL)?,
            pages: KVec::with_capacity(BATCH, GFP_KERNEL)?,
            slots: KVec::with_capacity(BATCH, GFP_KERNEL)?,
        })
    }

    /// A slot for a grant, which is mapped already if it is a persistent one; else the grant is going to
    /// be copied if that is `cheap`, and if there is memory, or mapped. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn slot(&mut self, gref: u32, cheap: bool) -> Result<Slot> {
        if cheap {
            if let Some(page) = self.copies.as_mut().and_then(Copies::page) {
                self.ways.copied = self.ways.copied.wrapping_add(1);
                // INVARIANT: The page is from there.
                return Ok(Slot {
                    page,
                    gref,
                    backing: Backing::Own,
                });
            }
        }
        if let Some(kept) = &mut self.kept {
            if let Some((index, mapping)) = kept.table.acquire(gref) {
                self.ways.persistent = self.ways.persistent.wrapping_add(1);
                // INVARIANT: The mapping stays as long as it has a user, which this slot is now.
                return Ok(Slot {
                    page: mapping.page,
                    gref,
                    backing: Backing::Kept(index),
                });
            }
        }
        self.ways.mapped = self.ways.mapped.wrapping_add(1);
        // INVARIANT: The page comes from a pool, and is not mapped.
        Ok(Slot {
            page: self.pool.get()?,
            gref,
            backing: Backing::Nothing,
        })
    }

    /// How pages were made ready since the last call.
    pub fn take_ways(&mut self) -> Ways {
        core::mem::take(&mut self.ways)
    }

    /// Copies the first `pairs` pairs of words (at most as many as there are) of the page behind a grant. If that is a
    /// persistent one it is mapped, and stays so: then this takes no hypercall the next time. May sleep.
    ///
    /// # Errors
    ///
    /// `EFAULT` if the guest has granted no such page.
    pub(crate) fn copy<'a>(
        &mut self,
        gref: u32,
        pairs: usize,
        copier: &'a mut Copier,
    ) -> Result<&'a [u64]> {
        if !self.copy_kept(gref, pairs, copier) {
            copier.copy_granted(self.domid, gref, pairs)?;
        }
        Ok(copier.pairs(pairs))
    }

    /// Whether the grant is, or could be made, a persistent one that is mapped, and has been copied.
    fn copy_kept(&mut self, gref: u32, pairs: usize, copier: &mut Copier) -> bool {
        let Some(kept) = &mut self.kept else {
            return false;
        };
        let found = kept.table.acquire(gref);
        let (index, page) = match found.map(|(index, mapping)| (index, mapping.page)) {
            Some(found) => found,
            None => match self.keep(gref) {
                Some(found) => found,
                None => return false,
            },
        };
        // SAFETY: By the invariant of the mapping; it stays, as we are a user of it.
        unsafe { copier.copy_mapped(page, pairs) };
        if let Some(kept) = &mut self.kept {
            kept.table.release(index, jiffies() as u64);
        }
        true
    }

    /// Maps a grant for good, if it may stay, with the caller as its user.
    fn keep(&mut self, gref: u32) -> Option<(Index, NonNull<raw::page>)> {
        let kept = self.kept.as_mut()?;
        if kept.table.len() >= params::max_persistent_grants() {
            return None;
        }
        let page = self.pool.get().ok()?;
        let mut op: raw::gnttab_map_grant_ref = pin_init::zeroed();
        let mut pages = [page.as_ptr()];
        // SAFETY: The operation may be written, the page is ours and not mapped; there is one of each.
        unsafe {
            raw::gnttab_set_map_op(
                &mut op,
                page.as_ptr(),
                raw::GNTMAP_HOST_MAP,
                gref,
                self.domid,
            );
            raw::gnttab_map_refs(&mut op, core::ptr::null_mut(), pages.as_mut_ptr(), 1);
        }
        if op.status != raw::GNTST_okay as i16 {
            self.pool.put(page);
            return None;
        }
        // INVARIANT: The grant was mapped just now.
        let mapping = Mapping {
            page,
            handle: op.handle,
        };
        let index = kept.insert(gref, mapping);
        if index.is_none() {
            self.unmap_later(page, op.handle);
            self.unmap_batch();
        }
        index.map(|index| (index, page))
    }

    /// Takes back a slot that nothing has been mapped for. May sleep.
    pub(crate) fn put_back(&mut self, slot: Slot) {
        let Self {
            pool, kept, copies, ..
        } = self;
        match slot.backing {
            Backing::Nothing => pool.put(slot.page),
            Backing::Kept(index) => {
                if let Some(kept) = kept {
                    kept.table.release(index, jiffies() as u64);
                }
            }
            Backing::Own | Backing::Copied => {
                if let Some(copies) = copies {
                    // SAFETY: By the slot's invariant.
                    unsafe { copies.put(slot.page) };
                }
            }
            Backing::Mapped(_) => {}
        }
    }

    /// Makes the pages of all requests in `staged` ready, by mapping their grants or, for a write, copying
    /// them, and hands each request to `then`: ready, or, if that could not be done for one of its
    /// grants, done with an error. May sleep.
    pub fn map<T>(
        &mut self,
        staged: &mut List<Staged<T>>,
        mut then: impl FnMut(core::result::Result<Mapped<T>, Done<T>>),
    ) {
        // Requests all of whose operations are in the batch, or have been done.
        let mut whole = List::new();
        while let Some(mut request) = staged.pop() {
            let direction = request.direction();
            // A persistent grant serves requests of both directions.
            let flags = if direction == Direction::Write && self.kept.is_none() {
                raw::GNTMAP_HOST_MAP | raw::GNTMAP_READONLY
            } else {
                raw::GNTMAP_HOST_MAP
            };
            for (slot, vec) in request.pieces_mut() {
                let map = match slot.backing {
                    Backing::Nothing => true,
                    Backing::Own if direction == Direction::Write => false,
                    Backing::Own => {
                        // What the device reads is going to be copied.
                        slot.backing = Backing::Copied;
                        continue;
                    }
                    _ => continue,
                };
                if self.map_ops.len() >= BATCH || self.copies.as_ref().is_some_and(Copies::is_full)
                {
                    self.map_batch();
                    while let Some(request) = whole.pop() {
                        then(Staged::mapped(request));
                    }
                }
                // There is room in either batch.
                //
                // INVARIANT: The slot's request is in `whole` or at hand until the batch is done.
                if map {
                    let mut op: raw::gnttab_map_grant_ref = pin_init::zeroed();
                    // SAFETY: The operation may be written, the page is valid.
                    unsafe {
                        raw::gnttab_set_map_op(
                            &mut op,
                            slot.page.as_ptr(),
                            flags,
                            slot.gref,
                            self.domid,
                        )
                    };
                    let _ = self.map_ops.push_within_capacity(op);
                    let _ = self.pages.push_within_capacity(slot.page.as_ptr());
                    let _ = self.slots.push_within_capacity(NonNull::from(slot));
                } else if let Some(copies) = &mut self.copies {
                    // SAFETY: By the slot's invariant the page is from there; the vector lies within the page.
                    unsafe {
                        copies.add(
                            direction,
                            slot.gref,
                            slot.page,
                            vec.bv_offset,
                            vec.bv_len,
                            NonNull::from(slot),
                        )
                    };
                }
            }
            whole.push(request);
        }
        self.map_batch();
        while let Some(request) = whole.pop() {
            then(Staged::mapped(request));
        }
    }

    /// Has Xen do what is in the batches of [`Grants::map`].
    fn map_batch(&mut self) {
        if let Some(copies) = &mut self.copies {
            copies.flush(|slot, result| {
                // SAFETY: By the type invariant the slot is valid, and nobody else looks at it now.
                let slot = unsafe { slot.as_mut() };
                match result {
                    // INVARIANT: The page stays what it is.
                    Ok(()) => slot.backing = Backing::Copied,
                    Err(status) if self.log.permits(&self.name) => pr_warn!(
                        "{}: grant {} of a request cannot be copied (grant table error {})\n",
                        &*self.name,
                        slot.gref,
                        status
                    ),
                    Err(_) => {}
                }
            });
        }
        if self.map_ops.is_empty() {
            return;
        }
        // The result says no more than the status of each operation: an operation that Xen did
        // not get to keeps the positive status that it was prepared with.
        //
        // SAFETY: Both arrays have `len` elements, and the pages are ours and not mapped.
        unsafe {
            raw::gnttab_map_refs(
                self.map_ops.as_mut_ptr(),
                core::ptr::null_mut(),
                self.pages.as_mut_ptr(),
                self.map_ops.len() as u32,
            )
        };
        for (slot, op) in self.slots.iter_mut().zip(&self.map_ops) {
            // SAFETY: By the type invariant the slot is valid, and nobody else looks at it now.
            let slot = unsafe { slot.as_mut() };
            if op.status == raw::GNTST_okay as i16 {
                // INVARIANT: The grant was mapped just now; if it is kept, the page belongs to the
                // mapping, and the slot is its user.
                let kept = self.kept.as_mut().and_then(|kept| {
                    kept.insert(
                        slot.gref,
                        Mapping {
                            page: slot.page,
                            handle: op.handle,
                        },
                    )
                });
                slot.backing = kept.map_or(Backing::Mapped(op.handle), Backing::Kept);
            } else if self.log.permits(&self.name) {
                pr_warn!(
                    "{}: grant {} of a request cannot be mapped (grant table error {})\n",
                    &*self.name,
                    slot.gref,
                    op.status
                );
            }
        }
        self.map_ops.clear();
        self.pages.clear();
        self.slots.clear();
    }

    /// Takes the slots of the requests in `done` back, copies to the guest what has been read for it,
    /// unmaps the grants that are not kept, and hands what remains of each request to `then`. May sleep.
    ///
    /// A request one of whose pages is still held by somebody, as by a network card that sends it
    /// again, goes to `held` instead: the guest must not get its memory back before. A persistent
    /// grant is not given back to the guest, so its page does not matter, and neither does a page of ours.
    pub fn unmap<T>(
        &mut self,
        done: &mut List<Done<T>>,
        held: &mut List<Done<T>>,
        mut then: impl FnMut(Finished<T>),
    ) {
        let now = jiffies() as u64;
        let mut whole = List::new();
        while let Some(mut request) = done.pop() {
            let referenced = request
                .slots()
                .iter()
                .any(|slot| matches!(slot.backing, Backing::Mapped(_)) && is_referenced(slot.page));
            if referenced {
                held.push(request);
                continue;
            }
            let has_data = request.has_data_for_guest();
            for (slot, vec) in request.pieces_mut() {
                match slot.backing {
                    Backing::Mapped(handle) => {
                        if self.unmap_ops.len() >= BATCH {
                            self.finish_batch(&mut whole, &mut then);
                        }
                        self.unmap_later(slot.page, handle);
                    }
                    Backing::Copied if has_data => {
                        if self.copies.as_ref().is_some_and(Copies::is_full) {
                            self.finish_batch(&mut whole, &mut then);
                        }
                        if let Some(copies) = &mut self.copies {
                            // SAFETY: By the slot's invariant the page is from there; the vector lies within the
                            // page.
                            //
                            // INVARIANT: The slot's request is in `whole` or at hand until the batch is done.
                            unsafe {
                                copies.add(
                                    Direction::Read,
                                    slot.gref,
                                    slot.page,
                                    vec.bv_offset,
                                    vec.bv_len,
                                    NonNull::from(slot),
                                )
                            };
                        }
                    }
                    Backing::Kept(index) => {
                        if let Some(kept) = &mut self.kept {
                            kept.table.release(index, now);
                        }
                    }
                    Backing::Nothing => self.pool.put(slot.page),
                    // These are given back when the batch is done.
                    Backing::Own | Backing::Copied => {}
                }
            }
            whole.push(request);
        }
        self.finish_batch(&mut whole, &mut then);
    }

    /// Has Xen do what is in the batches of [`Grants::unmap`], which is all that the requests in `whole`
    /// wait for.
    fn finish_batch<T>(&mut self, whole: &mut List<Done<T>>, then: &mut impl FnMut(Finished<T>)) {
        self.unmap_batch();
        if let Some(copies) = &mut self.copies {
            copies.flush(|slot, result| {
                if let Err(status) = result {
                    // SAFETY: By the type invariant the slot is valid, and nobody else looks at it now.
                    let slot = unsafe { slot.as_mut() };
                    // INVARIANT: The page stays what it is.
                    slot.backing = Backing::Own;
                    if self.log.permits(&self.name) {
                        pr_warn!(
                            "{}: grant {} of a request cannot be copied to (grant table error {})\n",
                            &*self.name,
                            slot.gref,
                            status
                        );
                    }
                }
            });
        }
        while let Some(mut request) = whole.pop() {
            if let Some(copies) = &mut self.copies {
                let mut failed = false;
                for slot in request.slots() {
                    if let Backing::Own | Backing::Copied = slot.backing {
                        failed |= matches!(slot.backing, Backing::Own);
                        // SAFETY: By the slot's invariant the page is from there; this is where it is given
                        // back.
                        unsafe { copies.put(slot.page) };
                    }
                }
                if failed {
                    request.fail(EFAULT);
                }
            }
            then(request.finish());
        }
    }

    /// Adds to the batch, which must have room, a page that is then no longer the caller's.
    fn unmap_later(&mut self, page: NonNull<raw::page>, handle: u32) {
        let mut op: raw::gnttab_unmap_grant_ref = pin_init::zeroed();
        // SAFETY: The operation may be written, the page is valid.
        unsafe { raw::gnttab_set_unmap_op(&mut op, page.as_ptr(), raw::GNTMAP_HOST_MAP, handle) };
        let _ = self.unmap_ops.push_within_capacity(op);
        let _ = self.pages.push_within_capacity(page.as_ptr());
    }

    /// Unmaps what is in the batch, and gives its pages to the pool.
    fn unmap_batch(&mut self) {
        if self.unmap_ops.is_empty() {
            return;
        }
        // SAFETY: Both arrays have `len` elements; the pages are mapped by the handles.
        unsafe {
            raw::gnttab_unmap_refs(
                self.unmap_ops.as_mut_ptr(),
                core::ptr::null_mut(),
                self.pages.as_mut_ptr(),
                self.unmap_ops.len() as u32,
            )
        };
        for (page, op) in self.pages.iter().zip(&self.unmap_ops) {
            match NonNull::new(*page) {
                Some(page) if op.status == raw::GNTST_okay as i16 => self.pool.put(page),
                // The page may still show the guest's memory; it can never be used again.
                _ => pr_err!(
                    "{}: a grant cannot be unmapped, a page is lost\n",
                    &*self.name
                ),
            }
        }
        self.unmap_ops.clear();
        self.pages.clear();
    }

    /// Returns up to `count` persistent grants that nobody has used since `until`, the least
    /// recently used first.
    fn evict(&mut self, mut count: usize, until: u64) {
        let now = jiffies() as u64;
        while let Some(kept) = &mut self.kept {
            let Some((index, mapping, since)) = kept.table.oldest() else {
                break;
            };
            if count == 0 || since > until {
                break;
            }
            count = count.saturating_sub(1);
            if is_referenced(mapping.page) {
                kept.table.refresh(index, now);
            } else if let Some(mapping) = kept.table.remove(index) {
                if self.unmap_ops.len() >= BATCH {
                    self.unmap_batch();
                }
                self.unmap_later(mapping.page, mapping.handle);
            }
        }
        self.unmap_batch();
    }

    /// Returns some persistent grants if there are more than the parameter `max_persistent_grants`
    /// allows, or if the frontend has used more since the last time. To be called often; does
    /// something at most every 100 ms. May sleep.
    pub fn purge(&mut self) {
        let Some(kept) = &mut self.kept else {
            return;
        };
        let max = params::max_persistent_grants();
        let excess = kept.table.len().saturating_sub(max);
        if !kept.overflow && excess == 0 {
            return;
        }
        let now = jiffies();
        if now.wrapping_sub(kept.last_purge) < msecs_to_jiffies(PURGE_INTERVAL) {
            return;
        }
        kept.last_purge = now;
        kept.overflow = false;
        self.evict(excess.saturating_add(max / PURGE_DIVISOR), now as u64);
    }

    /// Number of persistent grants that are mapped.
    pub fn persistent(&self) -> usize {
        self.kept.as_ref().map_or(0, |kept| kept.table.len())
    }

    /// Is there memory that [`Grants::give_back`] could return, now or later?
    pub fn has_spare(&self) -> bool {
        self.pool.has_spare()
            || self.copies.as_ref().is_some_and(Copies::has_spare)
            || self
                .kept
                .as_ref()
                .is_some_and(|kept| !kept.table.is_empty())
    }

    /// Returns the persistent grants that have not been used for `unused`, and the pages that are
    /// not in use. Whether no persistent grant is left. May sleep.
    pub fn give_back(&mut self, unused: Jiffies) -> bool {
        let until = (jiffies() as u64).checked_sub(unused as u64);
        if let (Some(kept), Some(until)) = (&self.kept, until) {
            self.evict(kept.table.len(), until);
        }
        self.pool.trim();
        if let Some(copies) = &mut self.copies {
            copies.trim();
        }
        let Some(kept) = &mut self.kept else {
            return true;
        };
        let empty = kept.table.is_empty();
        if empty {
            kept.table = Table::new(KVec::new());
        }
        empty
    }
}

impl Drop for Grants {
    fn drop(&mut self) {
        if !self.give_back(0) {
            pr_err!(
                "{}: persistent grants in use at the end, their pages are lost\n",
                &*self.name
            );
        }
    }
}

/// Does somebody beside us hold a reference to the page, one of a slot, a mapping or [`Copies`]?
pub(crate) fn is_referenced(page: NonNull<raw::page>) -> bool {
    // SAFETY: Pages in slots, mappings and copies are valid.
    unsafe { raw::page_count(page.as_ptr()) > 1 }
}
