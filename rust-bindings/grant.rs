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
        Staged,
        MAX_SEGMENTS, //
    },
    log,
    raw, //
};

/// Grants that go into one hypercall at most. A hypercall of 64 operations costs Xen some tens of
/// microseconds, and its arrays 5 KiB of memory per ring.
const BATCH: usize = 64;

const _: () = assert!(MAX_SEGMENTS <= BATCH);

/// Pages kept by a pool at most: as many as a ring of one page can have in use.
const POOL_MAX: usize = 32 * MAX_SEGMENTS;

/// Pages that grants are mapped into: struct pages without memory of their own, where the kernel
/// has such (`CONFIG_XEN_UNPOPULATED_ALLOC`), else ballooned ones.
///
/// A pool holds back enough pages for one request, so that a ring whose requests have all been
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
        for _ in 0..MAX_SEGMENTS {
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
/// The vectors have room for [`BATCH`] elements and are empty between calls.
pub struct Mapper {
    domid: u16,
    map_ops: KVec<raw::gnttab_map_grant_ref>,
    unmap_ops: KVec<raw::gnttab_unmap_grant_ref>,
    pages: KVec<*mut raw::page>,
}

// SAFETY: The page pointers are only there during a call.
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
        })
    }

    /// Maps all grants of all requests in `staged`, and hands each request to `then`: mapped, or,
    /// if one of its grants could not be mapped, done with an error. May sleep.
    pub fn map<T>(
        &mut self,
        staged: &mut List<Staged<T>>,
        mut then: impl FnMut(core::result::Result<Mapped<T>, Done<T>>),
    ) {
        let mut batch = List::new();
        while let Some(mut request) = staged.pop() {
            if self.map_ops.len() > BATCH.saturating_sub(request.slots().len()) {
                self.map_batch(&mut batch, &mut then);
            }
            let flags = if request.guest_memory_is_source() {
                raw::GNTMAP_HOST_MAP | raw::GNTMAP_READONLY
            } else {
                raw::GNTMAP_HOST_MAP
            };
            for slot in request.slots_mut() {
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
                // There is room: at most `MAX_SEGMENTS` are added to a vector with as much left.
                let _ = self.map_ops.push_within_capacity(op);
                let _ = self.pages.push_within_capacity(slot.page().as_ptr());
            }
            batch.push(request);
        }
        self.map_batch(&mut batch, &mut then);
    }

    fn map_batch<T>(
        &mut self,
        batch: &mut List<Staged<T>>,
        then: &mut impl FnMut(core::result::Result<Mapped<T>, Done<T>>),
    ) {
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
        let mut ops = self.map_ops.iter();
        while let Some(mut request) = batch.pop() {
            let mut good = true;
            for (slot, op) in request.slots_mut().iter_mut().zip(&mut ops) {
                if op.status == raw::GNTST_okay as i16 {
                    slot.set_mapped(op.handle);
                } else {
                    good = false;
                    if log::permitted() {
                        pr_warn!(
                            "dom{}: grant {} of a request cannot be mapped (grant table error {})\n",
                            self.domid,
                            slot.gref(),
                            op.status
                        );
                    }
                }
            }
            // INVARIANT: All slots have been mapped if `good`.
            then(request.mapped(good));
        }
        self.map_ops.clear();
        self.pages.clear();
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
        let mut batch = List::new();
        while let Some(request) = done.pop() {
            let referenced = request.slots().iter().any(|slot| {
                // SAFETY: The page is valid.
                unsafe { raw::page_count(slot.page().as_ptr()) > 1 }
            });
            if referenced {
                held.push(request);
                continue;
            }
            if self.unmap_ops.len() > BATCH.saturating_sub(request.slots().len()) {
                self.unmap_batch(pool, &mut batch, &mut then);
            }
            for slot in request.slots() {
                let Some(handle) = slot.handle() else {
                    continue;
                };
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
                // There is room: at most `MAX_SEGMENTS` are added to a vector with as much left.
                let _ = self.unmap_ops.push_within_capacity(op);
                let _ = self.pages.push_within_capacity(slot.page().as_ptr());
            }
            batch.push(request);
        }
        self.unmap_batch(pool, &mut batch, &mut then);
    }

    fn unmap_batch<T>(
        &mut self,
        pool: &mut PagePool,
        batch: &mut List<Done<T>>,
        then: &mut impl FnMut(Finished<T>),
    ) {
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
        let mut ops = self.unmap_ops.iter();
        while let Some(request) = batch.pop() {
            for slot in request.slots() {
                let unmapped = match slot.handle() {
                    None => true,
                    Some(_) => ops
                        .next()
                        .is_some_and(|op| op.status == raw::GNTST_okay as i16),
                };
                if unmapped {
                    // INVARIANT: Not mapped, or not any more.
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
        self.unmap_ops.clear();
        self.pages.clear();
    }
}
