// SPDX-License-Identifier: GPL-2.0

//! Mapping a guest's grants into pages of ours, many in one hypercall.
//!
//! C header: [`include/xen/grant_table.h`](srctree/include/xen/grant_table.h)

use core::ptr::NonNull;
use kernel::prelude::*;

use crate::{
    io::{
        Done,
        Finished,
        List,
        Mapped,
        Slot,
        Staged,
        INLINE_SEGMENTS, //
    },
    log,
    raw, //
};

/// Grants that go into one hypercall at most. A hypercall of 64 operations costs Xen some tens of
/// microseconds, and its arrays 5 KiB of memory per ring.
const BATCH: usize = 64;

/// Pages kept by a pool at most: as many as a ring of one page can have in use without indirect
/// requests.
const POOL_MAX: usize = 32 * INLINE_SEGMENTS;

/// Pages that grants are mapped into: struct pages without memory of their own, where the kernel
/// has such (`CONFIG_XEN_UNPOPULATED_ALLOC`), else ballooned ones.
///
/// A pool holds back enough pages for one request without indirect segments, so that a ring whose requests have all been
/// answered can always serve one more.
///
/// # Invariants
///
/// All pages come from `gnttab_alloc_pages()`, are not mapped, and are ours. The vector has room for
/// [`POOL_MAX`].
pub struct PagePool {
    pages: KVec<NonNull<raw::page>>,
}

// SAFETY: The pages are ours, and may be used and freed in any task.
unsafe impl Send for PagePool {}

impl PagePool {
    /// Creates a pool with the pages of one request. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        let mut pool = Self {
            pages: KVec::with_capacity(POOL_MAX, GFP_KERNEL)?,
        };
        for _ in 0..INLINE_SEGMENTS {
            let page = Self::alloc()?;
            pool.put(page);
        }
        Ok(pool)
    }

    fn alloc() -> Result<NonNull<raw::page>> {
        let mut page = core::ptr::null_mut();
        // SAFETY: `page` is room for one pointer.
        kernel::error::to_result(unsafe { raw::gnttab_alloc_pages(1, &mut page) })?;
        NonNull::new(page).ok_or(ENOMEM)
    }

    /// Takes a page. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn get(&mut self) -> Result<NonNull<raw::page>> {
        match self.pages.pop() {
            Some(page) => Ok(page),
            None => Self::alloc(),
        }
    }

    /// Gives back a page that is not mapped any more.
    pub(crate) fn put(&mut self, page: NonNull<raw::page>) {
        if self.pages.push_within_capacity(page).is_err() {
            Self::free(page);
        }
    }

    fn free(page: NonNull<raw::page>) {
        let mut page = page.as_ptr();
        // SAFETY: The page comes from `gnttab_alloc_pages()` and is not mapped.
        unsafe { raw::gnttab_free_pages(1, &mut page) }
    }
}

impl Drop for PagePool {
    fn drop(&mut self) {
        while let Some(page) = self.pages.pop() {
            Self::free(page);
        }
    }
}

/// Maps and unmaps the grants of whole lists of requests in as few hypercalls as possible.
///
/// # Invariants
///
/// The vectors have room for [`BATCH`] elements and are empty between calls. During a call, the
/// slots are those of requests that the call owns, each of them once.
pub struct Mapper {
    domid: u16,
    map_ops: KVec<raw::gnttab_map_grant_ref>,
    unmap_ops: KVec<raw::gnttab_unmap_grant_ref>,
    pages: KVec<*mut raw::page>,
    slots: KVec<NonNull<Slot>>,
}

// SAFETY: The pointers are only there during a call.
unsafe impl Send for Mapper {}

impl Mapper {
    /// Creates a mapper for grants of the domain `domid`. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(domid: u16) -> Result<Self> {
        // INVARIANT: The room is allocated here.
        Ok(Self {
            domid,
            map_ops: KVec::with_capacity(BATCH, GFP_KERNEL)?,
            unmap_ops: KVec::with_capacity(BATCH, GFP_KERNEL)?,
            pages: KVec::with_capacity(BATCH, GFP_KERNEL)?,
            slots: KVec::with_capacity(BATCH, GFP_KERNEL)?,
        })
    }

    /// Maps all grants of all requests in `staged`, and hands each request to `then`: mapped, or,
    /// if one of its grants could not be mapped, done with an error. May sleep.
    pub fn map<T>(
        &mut self,
        staged: &mut List<Staged<T>>,
        mut then: impl FnMut(core::result::Result<Mapped<T>, Done<T>>),
    ) {
        // Requests all of whose operations are in the batch, or have been done.
        let mut whole = List::new();
        while let Some(mut request) = staged.pop() {
            let flags = if request.guest_memory_is_source() {
                raw::GNTMAP_HOST_MAP | raw::GNTMAP_READONLY
            } else {
                raw::GNTMAP_HOST_MAP
            };
            for slot in request.slots_mut() {
                if self.map_ops.len() >= BATCH {
                    self.map_batch();
                    while let Some(request) = whole.pop() {
                        then(Staged::mapped(request));
                    }
                }
                let mut op: raw::gnttab_map_grant_ref = pin_init::zeroed();
                // SAFETY: The operation may be written, the page is valid.
                unsafe {
                    raw::gnttab_set_map_op(
                        &mut op,
                        slot.page().as_ptr(),
                        flags,
                        slot.gref(),
                        self.domid,
                    )
                };
                // There is room.
                //
                // INVARIANT: The slot's request is in `whole` or at hand until the batch is done.
                let _ = self.map_ops.push_within_capacity(op);
                let _ = self.pages.push_within_capacity(slot.page().as_ptr());
                let _ = self.slots.push_within_capacity(NonNull::from(slot));
            }
            whole.push(request);
        }
        self.map_batch();
        while let Some(request) = whole.pop() {
            then(Staged::mapped(request));
        }
    }

    fn map_batch(&mut self) {
        if !self.map_ops.is_empty() {
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
        }
        for (slot, op) in self.slots.iter_mut().zip(&self.map_ops) {
            // SAFETY: By the type invariant the slot is valid, and nobody else looks at it now.
            let slot = unsafe { slot.as_mut() };
            if op.status == raw::GNTST_okay as i16 {
                // INVARIANT: Mapped just now.
                slot.set_mapped(op.handle);
            } else if log::permitted() {
                pr_warn!(
                    "dom{}: grant {} of a request cannot be mapped (grant table error {})\n",
                    self.domid,
                    slot.gref(),
                    op.status
                );
            }
        }
        self.map_ops.clear();
        self.pages.clear();
        self.slots.clear();
    }

    /// Unmaps all grants of the requests in `done`, gives their pages back to `pool`, and hands
    /// what remains of each request to `then`. May sleep.
    ///
    /// A request one of whose pages is still held by somebody, as by a network card that sends it
    /// again, goes to `held` instead: the guest must not get its memory back before.
    pub fn unmap<T>(
        &mut self,
        pool: &mut PagePool,
        done: &mut List<Done<T>>,
        held: &mut List<Done<T>>,
        mut then: impl FnMut(Finished<T>),
    ) {
        let mut whole = List::new();
        while let Some(mut request) = done.pop() {
            let referenced = request.slots().iter().any(|slot| {
                // SAFETY: The page is valid.
                unsafe { raw::page_count(slot.page().as_ptr()) > 1 }
            });
            if referenced {
                held.push(request);
                continue;
            }
            for slot in request.slots_mut() {
                let Some(handle) = slot.handle() else {
                    continue;
                };
                if self.unmap_ops.len() >= BATCH {
                    self.unmap_batch();
                    self.finish(pool, &mut whole, &mut then);
                }
                let mut op: raw::gnttab_unmap_grant_ref = pin_init::zeroed();
                // SAFETY: The operation may be written, the page is valid.
                unsafe {
                    raw::gnttab_set_unmap_op(
                        &mut op,
                        slot.page().as_ptr(),
                        raw::GNTMAP_HOST_MAP,
                        handle,
                    )
                };
                // There is room.
                //
                // INVARIANT: The slot's request is in `whole` or at hand until the batch is done.
                let _ = self.unmap_ops.push_within_capacity(op);
                let _ = self.pages.push_within_capacity(slot.page().as_ptr());
                let _ = self.slots.push_within_capacity(NonNull::from(slot));
            }
            whole.push(request);
        }
        self.unmap_batch();
        self.finish(pool, &mut whole, &mut then);
    }

    fn unmap_batch(&mut self) {
        if !self.unmap_ops.is_empty() {
            // SAFETY: Both arrays have `len` elements; the pages are mapped by the handles.
            unsafe {
                raw::gnttab_unmap_refs(
                    self.unmap_ops.as_mut_ptr(),
                    core::ptr::null_mut(),
                    self.pages.as_mut_ptr(),
                    self.unmap_ops.len() as u32,
                )
            };
        }
        for (slot, op) in self.slots.iter_mut().zip(&self.unmap_ops) {
            if op.status == raw::GNTST_okay as i16 {
                // SAFETY: By the type invariant the slot is valid, and nobody else looks at it now.
                //
                // INVARIANT: Unmapped just now.
                unsafe { slot.as_mut() }.set_unmapped();
            }
        }
        self.unmap_ops.clear();
        self.pages.clear();
        self.slots.clear();
    }

    /// Gives back the pages of unmapped requests.
    fn finish<T>(
        &self,
        pool: &mut PagePool,
        whole: &mut List<Done<T>>,
        then: &mut impl FnMut(Finished<T>),
    ) {
        while let Some(request) = whole.pop() {
            for slot in request.slots() {
                if slot.handle().is_none() {
                    pool.put(slot.page());
                } else {
                    // The page may still show the guest's memory; it can never be used again.
                    pr_err!(
                        "dom{}: a grant cannot be unmapped, a page is lost\n",
                        self.domid
                    );
                }
            }
            then(request.finish());
        }
    }
}

/// A private copy of a guest's page.
#[repr(C, align(4096))]
struct CopiedPage([u32; WORDS_PER_PAGE]);

const WORDS_PER_PAGE: usize = blkif::abi::PAGE_SIZE as usize / 4;

/// Copies of guests' pages, made by Xen: whatever the guest does to its page later, the copy stays.
///
/// # Invariants
///
/// The page begins at a multiple of its size.
pub struct Copier {
    domid: u16,
    page: KBox<CopiedPage>,
}

impl Copier {
    /// Creates a copier for grants of the domain `domid`. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(domid: u16) -> Result<Self> {
        let mut page = KBox::<CopiedPage>::new_uninit(GFP_KERNEL | __GFP_NOWARN)?;
        // SAFETY: The memory is ours, and zeroes are valid for an array of integers.
        let page = unsafe {
            page.as_mut_ptr().write_bytes(0, 1);
            page.assume_init()
        };
        // INVARIANT: Allocations are aligned as their type wants it.
        Ok(Self { domid, page })
    }

    /// Copies the first `words` words, at most 1024, of the page behind a grant. May sleep.
    ///
    /// # Errors
    ///
    /// `EFAULT` if the guest has granted no such page.
    pub fn copy(&mut self, gref: u32, words: usize) -> Result<&[u32]> {
        let words = words.min(WORDS_PER_PAGE);
        // SAFETY: The page is memory of the kernel's linear mapping, and at least as long.
        let status = unsafe {
            raw::gnttab_copy_from(
                self.domid,
                gref,
                self.page.0.as_mut_ptr().cast(),
                words.wrapping_mul(4) as u32,
            )
        };
        if status != raw::GNTST_okay as i32 {
            return Err(EFAULT);
        }
        self.page.0.get(..words).ok_or(EINVAL)
    }
}
