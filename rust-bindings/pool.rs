// SPDX-License-Identifier: GPL-2.0

//! Pages that grants are mapped into.
//!
//! C header: [`include/xen/grant_table.h`](srctree/include/xen/grant_table.h)

use core::ptr::NonNull;
use kernel::prelude::*;

use crate::{
    io::INLINE_SEGMENTS,
    params,
    raw, //
};

/// Pages that grants are mapped into: struct pages without memory of their own, where the kernel
/// has such (`CONFIG_XEN_UNPOPULATED_ALLOC`), else ballooned ones.
///
/// A pool holds back enough pages for one request without indirect segments, so that a ring whose
/// requests have all been answered can always serve one more, and keeps at most as many as the
/// parameter `max_buffer_pages` says, so that they need not be asked for again.
///
/// # Invariants
///
/// All pages come from `gnttab_alloc_pages()`, are not mapped, and are ours.
pub(crate) struct PagePool {
    pages: KVec<NonNull<raw::page>>,
}

// SAFETY: The pages are ours, and may be used and freed in any task.
unsafe impl Send for PagePool {}

/// Pages that a pool does not give up.
const RESERVE: usize = INLINE_SEGMENTS;

impl PagePool {
    /// Creates a pool with the pages of one request. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        let mut pool = Self {
            pages: KVec::with_capacity(RESERVE, GFP_KERNEL)?,
        };
        for _ in 0..RESERVE {
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

    /// Gives back a page that is not mapped any more. May sleep.
    pub(crate) fn put(&mut self, page: NonNull<raw::page>) {
        let len = self.pages.len();
        let keep = len < RESERVE || len < params::max_buffer_pages();
        if keep && len == self.pages.capacity() {
            // If this fails there is no room, and the page is freed.
            let _ = self.pages.reserve(len, GFP_KERNEL | __GFP_NOWARN);
        }
        if !keep || self.pages.push_within_capacity(page).is_err() {
            Self::free(page);
        }
    }

    /// Are there more pages than the pool has to hold back?
    pub(crate) fn has_spare(&self) -> bool {
        self.pages.len() > RESERVE
    }

    /// Frees the pages that the pool need not hold back. May sleep.
    pub(crate) fn trim(&mut self) {
        while self.has_spare() {
            if let Some(page) = self.pages.pop() {
                Self::free(page);
            }
        }
        // If this fails, the vector stays as long as it is.
        if let Ok(mut pages) = KVec::with_capacity(RESERVE, GFP_KERNEL | __GFP_NOWARN) {
            while let Some(page) = self.pages.pop() {
                let _ = pages.push_within_capacity(page);
            }
            self.pages = pages;
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
