// SPDX-License-Identifier: GPL-2.0

//! The pages behind a guest's grants, made ready for I/O and given back: mapped, copied, or mapped
//! already, whichever is best for each of them.

mod batch;
pub mod copy;
mod map;
mod persistent;
mod pool;
pub mod share;
pub mod stage;

use blkif::persistent::Index;
use core::ptr::NonNull;
use kernel::{
    pr_err_once,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    time::Jiffies, //
};

use crate::{
    clock::jiffies,
    grants::{
        copy::{
            Copier,
            Copies, //
        },
        map::{
            Maps,
            Unmaps, //
        },
        persistent::{
            Kept,
            Mapping, //
        },
        pool::{
            is_referenced,
            Origin,
            PagePool, //
        },
        share::{
            Credit,
            Share, //
        }, //
    },
    module::log::Speaker,
    raw,
    request::{
        list::List,
        slot::{
            Backing,
            Slot, //
        },
        Direction,
        Done,
        Finished,
        Mapped,
        Owner,
        Staged,
        INLINE_SEGMENTS, //
    }, //
};

/// How the pages of requests were made ready.
#[derive(Default)]
pub struct PageCounts {
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
/// `maps`, `unmaps` and `copies` are empty between calls. During a call, their slots are those of requests
/// that the call owns, each of them once. All slots of requests with the number `id` are of these grants. `credit` has
/// been spent for each page of the pool that is in use.
pub struct Grants {
    /// No other grants, before or after, have the same number.
    id: u64,
    domid: u16,
    /// Whose requests they are.
    speaker: Arc<Speaker>,
    /// Pages that grants are mapped into. It holds back enough for one request without indirect segments, so
    /// that a ring whose requests have all been answered can always serve one more.
    pool: PagePool,
    /// `None` if the frontend does not use persistent grants.
    kept: Option<Kept>,
    /// `None` if it does use them.
    copies: Option<Copies>,
    page_counts: PageCounts,
    credit: Credit,
    maps: Maps,
    unmaps: Unmaps,
}

// SAFETY: All of it is ours and may be used in any task; the pointers to slots are only there
// during a call.
unsafe impl Send for Grants {}

/// Number of the next [`Grants`].
static NEXT_ID: Atomic<u64> = Atomic::new(0);

/// Says that a request has come to other grants than its own, which is a fault of the driver.
#[cold]
fn say_foreign() {
    pr_err_once!("a request of another ring's grants is refused\n");
}

impl Grants {
    /// Prepares for grants of the domain `domid`, which stay mapped if they are `persistent`, for a ring of
    /// `pages` pages. `share` is the guest's. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or `ENOSPC` if the guest has too much mapped already.
    pub fn new(
        domid: u16,
        persistent: bool,
        ring_pages: u32,
        share: Arc<Share>,
        speaker: Arc<Speaker>,
    ) -> Result<Self> {
        // INVARIANT: All is empty, no page is in use, and 64 bits do not overflow.
        Ok(Self {
            id: NEXT_ID.fetch_add(1, Relaxed),
            credit: Credit::new(share, ring_pages)?,
            domid,
            speaker,
            pool: PagePool::new(Origin::ForGrants, INLINE_SEGMENTS as u8)?,
            kept: persistent.then(Kept::new),
            copies: if persistent {
                None
            } else {
                Some(Copies::new(domid)?)
            },
            page_counts: PageCounts::default(),
            maps: Maps::new(domid)?,
            unmaps: Unmaps::new()?,
        })
    }

    /// Their number, by which requests are known to be theirs.
    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// A slot for a grant, which is mapped already if it is a persistent one; else the grant is going to
    /// be copied if that is `cheap`, and if there is memory, or mapped. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or `ENOSPC` if the guest may not have more pages mapped now.
    #[inline]
    pub(crate) fn slot(&mut self, gref: u32, cheap: bool) -> Result<Slot> {
        if cheap {
            if let Some(page) = self.copies.as_mut().and_then(Copies::page) {
                self.page_counts.copied = self.page_counts.copied.wrapping_add(1);
                // INVARIANT: The page is from there.
                return Ok(Slot {
                    page,
                    gref,
                    backing: Backing::Own,
                });
            }
        }
        if let Some(kept) = &mut self.kept {
            if let Some((index, page)) = kept.acquire(gref) {
                self.page_counts.persistent = self.page_counts.persistent.wrapping_add(1);
                // INVARIANT: The mapping stays as long as it has a user, which this slot is now.
                return Ok(Slot {
                    page,
                    gref,
                    backing: Backing::Kept(index),
                });
            }
        }
        if !self.credit.spend() {
            self.spend_unused()?;
        }
        let page = match self.pool.get() {
            Ok(page) => page,
            Err(_) => self.page_of_unused()?,
        };
        self.page_counts.mapped = self.page_counts.mapped.wrapping_add(1);
        // INVARIANT: The page comes from a pool, and is not mapped.
        Ok(Slot {
            page,
            gref,
            backing: Backing::Nothing,
        })
    }

    /// A page when there is no memory for more: persistent grants have pages, too, and may have those that the
    /// pool held back.
    #[cold]
    fn page_of_unused(&mut self) -> Result<NonNull<raw::page>> {
        self.evict(INLINE_SEGMENTS, jiffies() as u64);
        let page = self.pool.get();
        if page.is_err() {
            self.credit.refund(1);
        }
        page
    }

    /// The same when no more pages may be mapped.
    #[cold]
    fn spend_unused(&mut self) -> Result {
        self.evict(INLINE_SEGMENTS, jiffies() as u64);
        self.credit.spend().then_some(()).ok_or(ENOSPC)
    }

    /// Sets whether the ring may ask for more of the guest's share than it has at hand, which is at least enough for
    /// a request without indirect segments when it has none in flight.
    #[inline]
    pub fn set_may_ask(&mut self, may_ask: bool) {
        self.credit.set_may_ask(may_ask);
    }

    /// Gives back what has been asked for of the guest's share and is not used, if that is much; all of it if
    /// the ring is `idle`, or others wait for it.
    #[inline]
    pub fn settle(&mut self, idle: bool) {
        let kept = self.persistent();
        self.credit.count_kept(kept);
        self.credit.settle(idle);
    }

    /// How pages were made ready since the last call.
    #[inline]
    pub fn take_page_counts(&mut self) -> PageCounts {
        core::mem::take(&mut self.page_counts)
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

    /// Returns whether the grant is, or could be made, a persistent one that is mapped, and has been copied.
    fn copy_kept(&mut self, gref: u32, pairs: usize, copier: &mut Copier) -> bool {
        let Some(kept) = &mut self.kept else {
            return false;
        };
        let (index, page) = match kept.acquire(gref) {
            Some(found) => found,
            None => match self.keep(gref) {
                Some(found) => found,
                None => return false,
            },
        };
        // SAFETY: By the invariant of the mapping; it stays, as we are a user of it.
        unsafe { copier.copy_mapped(page, pairs) };
        if let Some(kept) = &mut self.kept {
            kept.release(index);
        }
        true
    }

    /// Maps a grant for good, if it may stay, with the caller as its user.
    fn keep(&mut self, gref: u32) -> Option<(Index, NonNull<raw::page>)> {
        let kept = self.kept.as_mut()?;
        if kept.is_full() || self.credit.keepable() == 0 || !self.credit.spend() {
            return None;
        }
        let Ok(page) = self.pool.get() else {
            self.credit.refund(1);
            return None;
        };
        // SAFETY: The page is from the pool.
        let handle = match unsafe { self.maps.one(gref, page) } {
            Ok(handle) => handle,
            Err(page) => {
                if let Some(page) = page {
                    // SAFETY: It has not been mapped.
                    unsafe { self.pool.put(page) };
                    self.credit.refund(1);
                }
                return None;
            }
        };
        // INVARIANT: The grant was mapped just now.
        let index = kept.insert(gref, Mapping { page, handle });
        if index.is_none() {
            // SAFETY: It was mapped just now, and no mapping has it.
            unsafe { self.unmaps.add(page, handle) };
            self.flush_unmaps();
        }
        index.map(|index| (index, page))
    }

    /// Has Xen do what is in the batch of grants to be unmapped.
    #[inline]
    fn flush_unmaps(&mut self) {
        let unmapped = self.unmaps.flush(&mut self.pool, &self.speaker);
        self.credit.refund(unmapped);
    }

    /// Takes back a slot that nothing has been mapped for. May sleep.
    pub(crate) fn put_back(&mut self, slot: Slot) {
        let Self {
            pool,
            kept,
            copies,
            credit,
            ..
        } = self;
        match slot.backing {
            Backing::Nothing | Backing::NoRoom => {
                // SAFETY: By the slot's invariant.
                unsafe { pool.put(slot.page) };
                credit.refund(1);
            }
            Backing::Kept(index) => {
                if let Some(kept) = kept {
                    kept.release(index);
                }
            }
            Backing::Own | Backing::Copied => {
                if let Some(copies) = copies {
                    // SAFETY: By the slot's invariant.
                    unsafe { copies.put(slot.page) };
                }
            }
            Backing::Mapped(_) | Backing::Lost => {}
        }
    }

    /// Makes the pages of all requests in `staged` ready, by mapping their grants or, for a write, copying
    /// them, and hands each request to `then`: ready, or, if that could not be done for one of its
    /// grants, done with an error. One for which Xen has no room goes to `no_room`, to be given to this
    /// function again later; it has nothing mapped then but persistent grants. May sleep.
    ///
    /// Requests of other [`Grants`] are done with `EINVAL`; their own can still take their pages back.
    pub fn map<T: Owner>(
        &mut self,
        staged: &mut List<Staged<T>>,
        no_room: &mut List<Staged<T>>,
        mut then: impl FnMut(Result<Mapped<T>, Done<T>>),
    ) {
        // Requests all of whose operations are in the batch, or have been done.
        let mut whole = List::new();
        while let Some(mut request) = staged.pop() {
            if !request.is_of(self.id) {
                say_foreign();
                then(Err(request.failed(EINVAL)));
                continue;
            }
            let direction = request.direction();
            // A persistent grant serves requests of both directions.
            let readonly = direction == Direction::Write && self.kept.is_none();
            for (slot, vec) in request.pieces_mut() {
                let map = match slot.backing {
                    Backing::Nothing | Backing::NoRoom => true,
                    Backing::Own if direction == Direction::Write => false,
                    Backing::Own => {
                        // What the device reads is going to be copied.
                        slot.backing = Backing::Copied;
                        continue;
                    }
                    _ => continue,
                };
                if self.maps.is_full() || self.copies.as_ref().is_some_and(Copies::is_full) {
                    self.map_batch();
                    self.sort(&mut whole, no_room, &mut then);
                }
                // There is room in either batch.
                //
                // INVARIANT: The slot's request is in `whole` or at hand until the batch is done.
                if map {
                    // SAFETY: By the slot's invariant the page is from the pool, and not mapped.
                    unsafe {
                        self.maps
                            .add(slot.gref, slot.page, readonly, NonNull::from(slot))
                    };
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
            if whole.is_empty() && self.maps.is_empty() && self.no_copies() {
                // It waits for nothing.
                match request.mapped() {
                    Ok(mapped) => then(Ok(mapped)),
                    Err(request) => self.not_mapped(request, no_room, &mut then),
                }
            } else {
                whole.push(request);
            }
        }
        self.map_batch();
        self.sort(&mut whole, no_room, &mut then);
    }

    /// Hands requests on for which [`Grants::map`] has done all it could.
    #[inline]
    fn sort<T: Owner>(
        &mut self,
        whole: &mut List<Staged<T>>,
        no_room: &mut List<Staged<T>>,
        then: &mut impl FnMut(Result<Mapped<T>, Done<T>>),
    ) {
        while let Some(request) = whole.pop() {
            match request.mapped() {
                Ok(mapped) => then(Ok(mapped)),
                Err(request) => self.not_mapped(request, no_room, then),
            }
        }
    }

    /// A request that is not mapped wholly: it fails, or waits for room.
    #[cold]
    fn not_mapped<T: Owner>(
        &mut self,
        mut request: Staged<T>,
        no_room: &mut List<Staged<T>>,
        then: &mut impl FnMut(Result<Mapped<T>, Done<T>>),
    ) {
        if !request.waits_for_room() {
            return then(Err(request.failed(EFAULT)));
        }
        // What it has is what others wait for.
        for (slot, _) in request.pieces_mut() {
            if let Backing::Mapped(handle) = slot.backing {
                // SAFETY: By the slot's invariant; the request is not in flight.
                if unsafe { self.unmaps.one(slot.page, handle) } {
                    // INVARIANT: The page was unmapped just now.
                    slot.backing = Backing::NoRoom;
                }
            }
        }
        no_room.push(request);
    }

    /// Has Xen do what is in the batches of [`Grants::map`].
    #[inline]
    fn map_batch(&mut self) {
        if let Some(copies) = &mut self.copies {
            copies.flush(|slot, result| {
                // SAFETY: By the type invariant the slot is valid, and nobody else looks at it now.
                let slot = unsafe { slot.as_mut() };
                match result {
                    // INVARIANT: The page stays what it is.
                    Ok(()) => slot.backing = Backing::Copied,
                    Err(status) => self.speaker.warn_limited(fmt!(
                        "grant {} of a request cannot be copied (grant table error {})",
                        slot.gref,
                        status
                    )),
                }
            });
        }
        let mut keepable = self.kept.as_ref().map_or(0, |_| self.credit.keepable());
        self.maps.flush(|slot, result| {
            // SAFETY: By the type invariant the slot is valid, and nobody else looks at it now.
            let slot = unsafe { slot.as_mut() };
            match result {
                Ok(handle) => {
                    let page = slot.page;
                    let kept = &mut self.kept;
                    // INVARIANT: The grant was mapped just now; if it is kept, the page belongs to the
                    // mapping, and the slot is its user.
                    slot.backing = kept
                        .as_mut()
                        .filter(|_| keepable > 0)
                        .and_then(|kept| kept.insert(slot.gref, Mapping { page, handle }))
                        .map_or(Backing::Mapped(handle), Backing::Kept);
                    keepable = keepable.saturating_sub(1);
                }
                Err(status) if is_no_room(status) => {
                    // INVARIANT: The page stays what it is.
                    slot.backing = Backing::NoRoom;
                    self.speaker.warn_limited(fmt!(
                        "Xen has no room for another mapping, requests wait (gnttab_max_maptrack_frames)"
                    ));
                }
                Err(status) => self.speaker.warn_limited(fmt!(
                    "grant {} of a request cannot be mapped (grant table error {})",
                    slot.gref,
                    status
                )),
            }
        });
        let kept = self.persistent();
        self.credit.count_kept(kept);
    }

    /// Takes the slots of the requests in `done` back, copies to the guest what has been read for it,
    /// unmaps the grants that are not kept, and hands what remains of each request to `then`. May sleep.
    ///
    /// A request one of whose pages is still held by somebody, as by a network card that sends it
    /// again, goes to `held` instead: the guest must not get its memory back before. A persistent
    /// grant is not given back to the guest, so its page does not matter, and neither does a page of ours.
    ///
    /// Requests of other [`Grants`] go to `held`, too.
    pub fn unmap<T: Owner>(
        &mut self,
        done: &mut List<Done<T>>,
        held: &mut List<Done<T>>,
        mut then: impl FnMut(Finished<T>),
    ) {
        let mut whole = List::new();
        while let Some(mut request) = done.pop() {
            if !request.is_of(self.id) {
                say_foreign();
                held.push(request);
                continue;
            }
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
                        if self.unmaps.is_full() {
                            self.finish_batch(&mut whole, &mut then);
                        }
                        // SAFETY: By the slot's invariant, and nobody uses the page any more.
                        unsafe { self.unmaps.add(slot.page, handle) };
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
                            kept.release(index);
                        }
                    }
                    Backing::Nothing | Backing::NoRoom => {
                        // SAFETY: By the slot's invariant.
                        unsafe { self.pool.put(slot.page) };
                        self.credit.refund(1);
                    }
                    // These are given back when the batch is done.
                    Backing::Own | Backing::Copied => {}
                    Backing::Lost => {}
                }
            }
            if whole.is_empty() && self.unmaps.is_empty() && self.no_copies() {
                // It waits for nothing.
                self.finish(request, &mut then);
            } else {
                whole.push(request);
            }
        }
        self.finish_batch(&mut whole, &mut then);
    }

    /// Is there nothing to be copied?
    #[inline]
    fn no_copies(&self) -> bool {
        self.copies.as_ref().is_none_or(Copies::is_empty)
    }

    /// Has Xen do what is in the batches of [`Grants::unmap`], which is all that the requests in `whole`
    /// wait for.
    fn finish_batch<T: Owner>(
        &mut self,
        whole: &mut List<Done<T>>,
        then: &mut impl FnMut(Finished<T>),
    ) {
        self.flush_unmaps();
        if let Some(copies) = &mut self.copies {
            copies.flush(|slot, result| {
                if let Err(status) = result {
                    // SAFETY: By the type invariant the slot is valid, and nobody else looks at it now.
                    let slot = unsafe { slot.as_mut() };
                    // INVARIANT: The page stays what it is.
                    slot.backing = Backing::Own;
                    self.speaker.warn_limited(fmt!(
                        "grant {} of a request cannot be copied to (grant table error {})",
                        slot.gref,
                        status
                    ));
                }
            });
        }
        while let Some(request) = whole.pop() {
            self.finish(request, then);
        }
    }

    /// Takes back the pages of ours that a request has had, and hands the rest of it to `then`.
    fn finish<T: Owner>(&mut self, mut request: Done<T>, then: &mut impl FnMut(Finished<T>)) {
        if let Some(copies) = &mut self.copies {
            let mut failed = false;
            for slot in request.slots() {
                if let Backing::Own | Backing::Copied = slot.backing {
                    failed |= matches!(slot.backing, Backing::Own);
                    // SAFETY: By the slot's invariant the page is from there; this is where it is given back.
                    unsafe { copies.put(slot.page) };
                }
            }
            if failed {
                request.fail(EFAULT);
            }
        }
        then(request.finish());
    }

    /// Returns up to `count` persistent grants that nobody has used since `until`, the least
    /// recently used first.
    fn evict(&mut self, mut count: usize, until: u64) {
        while let Some(mapping) = self
            .kept
            .as_mut()
            .and_then(|kept| kept.take_unused(&mut count, until))
        {
            if self.unmaps.is_full() {
                self.flush_unmaps();
            }
            // SAFETY: By the invariant of the mapping, which is no longer kept.
            unsafe { self.unmaps.add(mapping.page, mapping.handle) };
        }
        self.flush_unmaps();
    }

    /// Returns some persistent grants if there are more than the parameter `max_persistent_grants`
    /// allows, or if the frontend has used more since the last time. To be called often; does
    /// something at most every 100 ms. May sleep.
    #[inline]
    pub fn purge(&mut self) {
        let surplus = self.kept.as_mut().map_or(0, Kept::surplus);
        if surplus > 0 {
            self.evict(surplus, jiffies() as u64);
        }
    }

    /// Number of persistent grants that are mapped.
    #[inline]
    pub fn persistent(&self) -> usize {
        self.kept.as_ref().map_or(0, Kept::len)
    }

    /// Is there memory that [`Grants::give_back`] could return, now or later?
    #[inline]
    pub fn has_spare(&self) -> bool {
        self.pool.has_spare()
            || self.copies.as_ref().is_some_and(Copies::has_spare)
            || self.persistent() > 0
    }

    /// Returns the persistent grants that have not been used for `unused`, and the pages that are
    /// not in use. Returns whether no persistent grant is left. May sleep.
    pub fn give_back(&mut self, unused: Jiffies) -> bool {
        let until = (jiffies() as u64).checked_sub(unused as u64);
        if let Some(until) = until {
            self.evict(self.persistent(), until);
        }
        self.pool.trim();
        if let Some(copies) = &mut self.copies {
            copies.trim();
        }
        self.kept.as_mut().is_none_or(Kept::shrink)
    }
}

impl Drop for Grants {
    fn drop(&mut self) {
        if !self.give_back(0) {
            self.speaker.error(fmt!(
                "persistent grants in use at the end, their pages are lost"
            ));
        }
    }
}

/// Does the grant table's error say that Xen has no room for another mapping of this domain? Which of the two
/// it is depends on its version.
fn is_no_room(status: i16) -> bool {
    i32::from(status) == raw::GNTST_no_device_space || i32::from(status) == raw::GNTST_no_space
}
