// SPDX-License-Identifier: GPL-2.0

//! Pages that are used for one request after the other.
//!
//! C headers: [`include/xen/grant_table.h`](srctree/include/xen/grant_table.h),
//! [`include/linux/gfp.h`](srctree/include/linux/gfp.h)

use core::ptr::NonNull;
use kernel::{
    error::to_result,
    prelude::*, //
};

use crate::{
    mem,
    module::params,
    raw, //
};

/// Where the pages of a pool come from.
#[derive(Clone, Copy)]
pub(crate) enum Origin {
    /// Pages that grants are mapped into: struct pages without memory of their own, where the kernel
    /// has such (`CONFIG_XEN_UNPOPULATED_ALLOC`), else ballooned ones.
    ForGrants,
    /// Memory of this domain, zeroed when it is allocated: nothing that was in it before can get to a guest.
    Memory,
}

impl Origin {
    fn alloc(self) -> Result<NonNull<raw::page>> {
        let page = match self {
            Origin::ForGrants => {
                let mut page = core::ptr::null_mut();
                // SAFETY: `page` is room for one pointer.
                //
                // Without room for more of them the error is another one, but it means the same.
                to_result(unsafe { raw::gnttab_alloc_pages(1, &mut page) }).map_err(|_| ENOMEM)?;
                page
            }
            // SAFETY: May be called in this context.
            Origin::Memory => unsafe { raw::try_alloc_page_zeroed() },
        };
        NonNull::new(page).ok_or(ENOMEM)
    }

    /// # Safety
    ///
    /// The page comes from [`Origin::alloc`] of this source, is not mapped, and is the caller's.
    unsafe fn free(self, page: NonNull<raw::page>) {
        let mut page = page.as_ptr();
        match self {
            // SAFETY: By the caller's guarantee.
            Origin::ForGrants => unsafe { raw::gnttab_free_pages(1, &mut page) },
            // SAFETY: By the caller's guarantee there is a reference that is ours.
            Origin::Memory => unsafe { raw::put_page(page) },
        }
    }
}

/// Pages that are not in use, at most as many as the parameter `max_buffer_pages` says, so that they
/// need not be asked for again.
///
/// # Invariants
///
/// All pages come from `source`, are not mapped, and are ours; nobody else has a reference to them.
pub(crate) struct PagePool {
    source: Origin,
    /// Pages that the pool does not give up. (Few, so that the compiler sees that no size overflows.)
    reserve: u8,
    pages: KVec<NonNull<raw::page>>,
}

// SAFETY: The pages are ours, and may be used and freed in any task.
unsafe impl Send for PagePool {}

impl PagePool {
    /// Creates a pool that always holds back `reserve` pages. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(source: Origin, reserve: u8) -> Result<Self> {
        // INVARIANT: There is no page yet.
        let mut pool = Self {
            source,
            reserve,
            pages: KVec::with_capacity(reserve.into(), GFP_KERNEL)?,
        };
        for _ in 0..reserve {
            let page = source.alloc()?;
            // SAFETY: The page has just been allocated.
            unsafe { pool.put(page) };
        }
        Ok(pool)
    }

    /// Takes a page. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    #[inline]
    pub(crate) fn get(&mut self) -> Result<NonNull<raw::page>> {
        match self.pages.pop() {
            Some(page) => Ok(page),
            None => self.source.alloc(),
        }
    }

    /// Gives back a page. May sleep.
    ///
    /// # Safety
    ///
    /// The page comes from [`PagePool::get`] of this pool, is given back once, and is not mapped any more.
    #[inline]
    pub(crate) unsafe fn put(&mut self, page: NonNull<raw::page>) {
        let len = self.pages.len();
        // One that somebody still holds, as a network card that sends it again, is not used again.
        let keep =
            (len < self.reserve.into() || len < params::max_buffer_pages()) && !is_referenced(page);
        if keep && len < self.pages.capacity() {
            let _ = self.pages.push_within_capacity(page);
        } else {
            // SAFETY: By the caller's guarantee.
            unsafe { self.put_without_room(page, keep) };
        }
    }

    /// Makes room for a page that is to be kept, if that can be done, and gives back one that is not.
    ///
    /// # Safety
    ///
    /// As for [`PagePool::put`].
    #[cold]
    unsafe fn put_without_room(&mut self, page: NonNull<raw::page>, keep: bool) {
        if keep {
            // If this fails there is no room, and the page is freed.
            let more = self.pages.len().max(8);
            let _ = mem::try_reserve(&mut self.pages, more);
        }
        if !keep || self.pages.push_within_capacity(page).is_err() {
            // SAFETY: By the caller's guarantee.
            unsafe { self.source.free(page) };
        }
    }

    /// Are there more pages than the pool has to hold back?
    #[inline]
    pub(crate) fn has_spare(&self) -> bool {
        self.pages.len() > self.reserve.into()
    }

    /// Frees the pages that the pool need not hold back. May sleep.
    pub(crate) fn trim(&mut self) {
        self.shrink(self.reserve.into());
        // If this fails, the vector stays as long as it is.
        if let Ok(mut pages) = mem::try_vec(self.reserve.into()) {
            while let Some(page) = self.pages.pop() {
                let _ = pages.push_within_capacity(page);
            }
            self.pages = pages;
        }
    }

    /// Frees all pages but `left`.
    fn shrink(&mut self, left: usize) {
        while self.pages.len() > left {
            if let Some(page) = self.pages.pop() {
                // SAFETY: By the type invariant, which no longer covers this page.
                unsafe { self.source.free(page) };
            }
        }
    }
}

impl Drop for PagePool {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

/// Does somebody besides us hold a reference to a page of a pool?
#[inline]
pub(crate) fn is_referenced(page: NonNull<raw::page>) -> bool {
    // SAFETY: Pages of pools are valid, in use or not.
    unsafe { raw::page_count(page.as_ptr()) > 1 }
}
