// SPDX-License-Identifier: GPL-2.0

//! Mapping and unmapping a guest's grants: many in one hypercall.
//!
//! C header: [`include/xen/grant_table.h`](srctree/include/xen/grant_table.h)

use core::ptr::NonNull;
use kernel::prelude::*;

use super::batch::Batch;
use crate::{
    grants::pool::PagePool,
    module::log::Speaker,
    raw,
    request::slot::Slot, //
};

/// Grants that are to be mapped.
///
/// # Invariants
///
/// The batches are of the same length.
pub(crate) struct Maps {
    domid: u16,
    ops: Batch<raw::gnttab_map_grant_ref>,
    pages: Batch<*mut raw::page>,
    /// For which slot each operation is.
    whose: Batch<NonNull<Slot>>,
}

impl Maps {
    /// Prepares to map grants of the domain `domid`. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(domid: u16) -> Result<Self> {
        // INVARIANT: All are empty.
        Ok(Self {
            domid,
            ops: Batch::new()?,
            pages: Batch::new()?,
            whose: Batch::new()?,
        })
    }

    /// Is there nothing to be done?
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Is there no room for another operation?
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.ops.is_full()
    }

    /// The operation that maps a grant into `page`.
    ///
    /// # Safety
    ///
    /// `page` is of a [`PagePool`] for grants.
    #[inline]
    unsafe fn operation(
        &self,
        gref: u32,
        page: NonNull<raw::page>,
        readonly: bool,
    ) -> raw::gnttab_map_grant_ref {
        let mut op: raw::gnttab_map_grant_ref = pin_init::zeroed();
        let flags = if readonly {
            raw::GNTMAP_HOST_MAP | raw::GNTMAP_READONLY
        } else {
            raw::GNTMAP_HOST_MAP
        };
        // SAFETY: The operation may be written; pages of pools are valid.
        unsafe { raw::gnttab_set_map_op(&mut op, page.as_ptr(), flags, gref, self.domid) };
        op
    }

    /// Adds an operation, for which there must be room.
    ///
    /// # Safety
    ///
    /// `page` is of a [`PagePool`] for grants, is not mapped, and nobody uses it until [`Maps::flush`]; nor
    /// does anybody use `slot`, which is valid until then.
    #[inline]
    pub(crate) unsafe fn add(
        &mut self,
        gref: u32,
        page: NonNull<raw::page>,
        readonly: bool,
        slot: NonNull<Slot>,
    ) {
        // SAFETY: By the caller's guarantee.
        let op = unsafe { self.operation(gref, page, readonly) };
        self.ops.push(op);
        self.pages.push(page.as_ptr());
        self.whose.push(slot);
    }

    /// Has all operations done; `then` is told of each with the handle of the mapping, or with the error of
    /// the grant table. May sleep.
    #[inline]
    pub(crate) fn flush(&mut self, mut then: impl FnMut(&mut NonNull<Slot>, Result<u32, i16>)) {
        if self.ops.is_empty() {
            return;
        }
        // An operation that Xen did not get to keeps the positive status that it was prepared with.
        //
        // SAFETY: Both arrays have `len` elements; the pages are not mapped by the guarantee of `add`.
        let ret = unsafe {
            raw::gnttab_map_refs(
                self.ops.as_mut_ptr(),
                core::ptr::null_mut(),
                self.pages.as_mut_ptr(),
                self.ops.len() as u32,
            )
        };
        for (whose, op) in self.whose.iter_mut().zip(self.ops.iter()) {
            let okay = op.status == raw::GNTST_okay as i16;
            if okay && ret != 0 {
                // Xen has mapped it, but the kernel does not know of that.
                //
                // SAFETY: The slot is valid until it is handed over here, and nobody else looks at it.
                unsafe { whose.as_mut() }.lose_page();
                then(whose, Err(raw::GNTST_general_error as i16));
                continue;
            }
            then(whose, if okay { Ok(op.handle) } else { Err(op.status) });
        }
        self.ops.clear();
        self.pages.clear();
        self.whose.clear();
    }

    /// Maps a single grant, writable; the handle of the mapping. If that fails it gives the page back, unless
    /// something may be mapped into it all the same. May sleep.
    ///
    /// # Safety
    ///
    /// As for [`Maps::add`].
    pub(crate) unsafe fn one(
        &self,
        gref: u32,
        page: NonNull<raw::page>,
    ) -> Result<u32, Option<NonNull<raw::page>>> {
        // SAFETY: By the caller's guarantee.
        let mut op = unsafe { self.operation(gref, page, false) };
        let mut pages = [page.as_ptr()];
        // SAFETY: There is one of each; the page is not mapped by the caller's guarantee.
        let ret =
            unsafe { raw::gnttab_map_refs(&mut op, core::ptr::null_mut(), pages.as_mut_ptr(), 1) };
        match (op.status == raw::GNTST_okay as i16, ret) {
            (true, 0) => Ok(op.handle),
            (true, _) => Err(None),
            (false, _) => Err(Some(page)),
        }
    }
}

/// Grants that are to be unmapped.
///
/// # Invariants
///
/// The batches are of the same length. The grants are mapped into
/// the pages, which are nobody else's.
pub(crate) struct Unmaps {
    ops: Batch<raw::gnttab_unmap_grant_ref>,
    pages: Batch<*mut raw::page>,
}

impl Unmaps {
    /// May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        // INVARIANT: All are empty.
        Ok(Self {
            ops: Batch::new()?,
            pages: Batch::new()?,
        })
    }

    /// Is there nothing to be done?
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Is there no room for another operation?
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.ops.is_full()
    }

    /// Adds an operation, for which there must be room.
    ///
    /// # Safety
    ///
    /// A grant is mapped with this handle into `page`, which is of the pool that [`Unmaps::flush`] is
    /// going to be called with, and is no longer the caller's.
    #[inline]
    pub(crate) unsafe fn add(&mut self, page: NonNull<raw::page>, handle: u32) {
        let mut op: raw::gnttab_unmap_grant_ref = pin_init::zeroed();
        // SAFETY: The operation may be written, the page is valid.
        unsafe { raw::gnttab_set_unmap_op(&mut op, page.as_ptr(), raw::GNTMAP_HOST_MAP, handle) };
        // One that Xen does not get to has failed.
        op.status = raw::GNTST_general_error as i16;
        // INVARIANT: By the caller's guarantee.
        self.ops.push(op);
        self.pages.push(page.as_ptr());
    }

    /// Has all operations done, and gives the pages to `pool`. Returns how many pages are not mapped any more.
    /// May sleep.
    #[inline]
    pub(crate) fn flush(&mut self, pool: &mut PagePool, speaker: &Speaker) -> u32 {
        if self.ops.is_empty() {
            return 0;
        }
        let mut unmapped = 0u32;
        // SAFETY: Both arrays have `len` elements; the pages are mapped by the handles.
        let ret = unsafe {
            raw::gnttab_unmap_refs(
                self.ops.as_mut_ptr(),
                core::ptr::null_mut(),
                self.pages.as_mut_ptr(),
                self.ops.len() as u32,
            )
        };
        for (page, op) in self.pages.iter().zip(self.ops.iter()) {
            match NonNull::new(*page) {
                // With an error the kernel may still have it for a page of the guest, whatever Xen says.
                //
                // SAFETY: By the guarantee of `add`; the page has just been unmapped.
                Some(page) if ret == 0 && op.status == raw::GNTST_okay as i16 => unsafe {
                    pool.put(page);
                    unmapped = unmapped.wrapping_add(1);
                },
                // The page may still show the guest's memory; it can never be used again.
                _ => speaker.error(fmt!(
                    "a grant cannot be unmapped (error {}, {}), a page is lost",
                    ret,
                    op.status
                )),
            }
        }
        self.ops.clear();
        self.pages.clear();
        unmapped
    }

    /// Unmaps a single grant; the page stays the caller's. Returns whether that could be done. May sleep.
    ///
    /// # Safety
    ///
    /// A grant is mapped with this handle into `page`, which is of a [`PagePool`], and nobody uses it.
    pub(crate) unsafe fn one(&self, page: NonNull<raw::page>, handle: u32) -> bool {
        let mut op: raw::gnttab_unmap_grant_ref = pin_init::zeroed();
        let mut pages = [page.as_ptr()];
        // SAFETY: The operation may be written; there is one of each, and the page is mapped by the handle.
        let ret = unsafe {
            raw::gnttab_set_unmap_op(&mut op, page.as_ptr(), raw::GNTMAP_HOST_MAP, handle);
            // Not what a mapping that was never undone would have.
            op.status = raw::GNTST_general_error as i16;
            raw::gnttab_unmap_refs(&mut op, core::ptr::null_mut(), pages.as_mut_ptr(), 1)
        };
        ret == 0 && op.status == raw::GNTST_okay as i16
    }
}
