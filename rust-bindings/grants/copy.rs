// SPDX-License-Identifier: GPL-2.0

//! Copying between a guest's pages and ours, by Xen: many copies in one hypercall.
//!
//! C header: [`include/xen/interface/grant_table.h`](srctree/include/xen/interface/grant_table.h)
//! (`GNTTABOP_copy`)

use core::{
    mem::MaybeUninit,
    ptr::NonNull, //
};
use kernel::prelude::*;

use super::batch::Batch;
use crate::{
    grants::pool::{
        Origin,
        PagePool, //
    },
    mem,
    raw,
    request::{
        slot::Slot,
        Direction, //
    }, //
};

/// Pages of dom0's memory that the requests of one ring can have at a time: a guest must not be able to
/// use it up with rings that are many and long. More is mapped.
const MAX_PAGES: usize = 256;

/// A private copy of a guest's page.
#[repr(C, align(4096))]
struct CopiedPage([u64; PAIRS_PER_PAGE]);

const PAIRS_PER_PAGE: usize = blkif::abi::PAGE_SIZE as usize / 8;

/// Copies of what guests say about a request: whatever the guest does to its page later, the copy stays.
///
/// # Invariants
///
/// The page begins at a multiple of its size.
pub struct Copier {
    page: KBox<CopiedPage>,
}

impl Copier {
    /// Creates a copier. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        let mut page = mem::try_box::<CopiedPage>()?;
        // SAFETY: The memory is ours, and zeroes are valid for an array of integers.
        let page = unsafe {
            page.as_mut_ptr().write_bytes(0, 1);
            page.assume_init()
        };
        // INVARIANT: Allocations are aligned as their type wants it.
        Ok(Self { page })
    }

    /// The first `pairs` pairs of words of the copy.
    pub(crate) fn pairs(&self, pairs: usize) -> &[u64] {
        let (pairs, _) = self.page.0.split_at(pairs.min(PAIRS_PER_PAGE));
        pairs
    }

    /// Has Xen copy the first `pairs` pairs of words of the page behind a grant of the domain `domid`.
    pub(crate) fn copy_granted(&mut self, domid: u16, gref: u32, pairs: usize) -> Result {
        let mut op = MaybeUninit::uninit();
        // SAFETY: The operation is written as a whole. The page is memory of the kernel's linear mapping,
        // at least as long as what is copied to it, and nobody else looks at it.
        let op = unsafe {
            let page = raw::virt_to_page(self.page.0.as_mut_ptr().cast());
            let len = pairs.min(PAIRS_PER_PAGE).wrapping_mul(8) as u32;
            raw::gnttab_set_copy_from(op.as_mut_ptr(), domid, gref, page, 0, len);
            raw::gnttab_batch_copy(op.as_mut_ptr(), 1);
            op.assume_init()
        };
        if op.status == raw::GNTST_okay as i16 {
            Ok(())
        } else {
            Err(EFAULT)
        }
    }

    /// Copies the first `pairs` pairs of words of a page that is mapped.
    ///
    /// # Safety
    ///
    /// A grant is mapped into `page`, and stays so during the call.
    pub(crate) unsafe fn copy_mapped(&mut self, page: NonNull<raw::page>, pairs: usize) {
        // SAFETY: The page is valid.
        let from = unsafe { raw::page_address(page.as_ptr()) }.cast::<u64>();
        for (index, to) in self.page.0.iter_mut().take(pairs).enumerate() {
            // SAFETY: A page is mapped there by the caller's guarantee, and the index lies within it. The
            // guest may write to it at any time: it is read once.
            *to = unsafe { from.add(index).read_volatile() };
        }
    }
}

/// Copies that are to be made, and pages of ours for them.
///
/// # Invariants
///
/// The batches are of the same length.
pub(crate) struct Copies {
    domid: u16,
    ops: Batch<raw::gnttab_copy>,
    /// For which slot each operation is.
    whose: Batch<NonNull<Slot>>,
    pages: PagePool,
    /// Pages that are in use, at most [`MAX_PAGES`].
    in_use: usize,
}

impl Copies {
    /// Prepares to copy from and to the domain `domid`. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(domid: u16) -> Result<Self> {
        // INVARIANT: All are empty.
        Ok(Self {
            domid,
            ops: Batch::new()?,
            whose: Batch::new()?,
            pages: PagePool::new(Origin::Memory, 0)?,
            in_use: 0,
        })
    }

    /// A page, which is given back by [`Copies::put`]; `None` if enough are in use, or there is no memory.
    /// May sleep.
    #[inline]
    pub(crate) fn page(&mut self) -> Option<NonNull<raw::page>> {
        if self.in_use >= MAX_PAGES {
            return None;
        }
        let page = self.pages.get().ok()?;
        self.in_use = self.in_use.wrapping_add(1);
        Some(page)
    }

    /// Takes a page back.
    ///
    /// # Safety
    ///
    /// The page comes from [`Copies::page`], and is given back once.
    #[inline]
    pub(crate) unsafe fn put(&mut self, page: NonNull<raw::page>) {
        self.in_use = self.in_use.wrapping_sub(1);
        // SAFETY: By the caller's guarantee.
        unsafe { self.pages.put(page) };
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

    /// Adds an operation, for which there must be room: from the guest for a write to the disk, to the
    /// guest for a read.
    ///
    /// # Safety
    ///
    /// `page` is from [`Copies::page`], and nobody uses it until [`Copies::flush`]; `offset` and `len` are
    /// within it.
    #[inline]
    pub(crate) unsafe fn add(
        &mut self,
        direction: Direction,
        gref: u32,
        page: NonNull<raw::page>,
        offset: u32,
        len: u32,
        slot: NonNull<Slot>,
    ) {
        let mut op = MaybeUninit::uninit();
        let to = op.as_mut_ptr();
        let page = page.as_ptr();
        // SAFETY: The operation is written as a whole, the page is valid.
        let op = unsafe {
            match direction {
                Direction::Write => {
                    raw::gnttab_set_copy_from(to, self.domid, gref, page, offset, len);
                }
                Direction::Read => {
                    raw::gnttab_set_copy_to(to, self.domid, gref, page, offset, len);
                }
            }
            op.assume_init()
        };
        self.ops.push(op);
        self.whose.push(slot);
    }

    /// Has all operations done; `then` is told of each with the error of the grant table, if there was one. May sleep.
    #[inline]
    pub(crate) fn flush(&mut self, mut then: impl FnMut(&mut NonNull<Slot>, Result<(), i16>)) {
        if self.ops.is_empty() {
            return;
        }
        // SAFETY: The array has `len` elements; what they name may be copied by the guarantees of `add`.
        unsafe { raw::gnttab_batch_copy(self.ops.as_mut_ptr(), self.ops.len() as u32) };
        for (whose, op) in self.whose.iter_mut().zip(self.ops.iter()) {
            then(
                whose,
                if op.status == raw::GNTST_okay as i16 {
                    Ok(())
                } else {
                    Err(op.status)
                },
            );
        }
        self.ops.clear();
        self.whose.clear();
    }

    /// Are there pages that are not in use?
    #[inline]
    pub(crate) fn has_spare(&self) -> bool {
        self.pages.has_spare()
    }

    /// Frees them. May sleep.
    pub(crate) fn trim(&mut self) {
        self.pages.trim();
    }
}
