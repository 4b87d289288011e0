// SPDX-License-Identifier: GPL-2.0

//! The memory of a ring, mapped from the frontend's grants.
//!
//! C headers: [`include/xen/interface/io/ring.h`](srctree/include/xen/interface/io/ring.h),
//! [`include/xen/xenbus.h`](srctree/include/xen/xenbus.h)

use blkif::{
    abi::{
        self,
        RESPONSE_WORDS,
        SLOT_WORDS, //
    },
    SharedRing, //
};
use core::{
    ptr::NonNull,
    sync::atomic::{
        fence,
        AtomicU32,
        Ordering, //
    },
};
use kernel::{
    error::to_result,
    prelude::*, //
};

use crate::{
    raw,
    xen::device::Device, //
};

/// Largest number of pages of a ring (`XENBUS_MAX_RING_GRANTS`).
pub const MAX_RING_PAGES: usize = raw::XENBUS_MAX_RING_GRANTS as usize;

/// Its binary logarithm (`XENBUS_MAX_RING_GRANT_ORDER`).
pub const MAX_RING_ORDER: u32 = raw::XENBUS_MAX_RING_GRANT_ORDER;

const _: () = assert!(1 << MAX_RING_ORDER == MAX_RING_PAGES);

/// The pages of one ring. Dropping it unmaps them.
///
/// The other end writes to the memory whenever it likes. It is only accessed by atomic and
/// volatile loads and stores, each of which is one access of the machine.
///
/// # Invariants
///
/// `base` is a mapping of `bytes` bytes, page aligned, made by `xenbus_map_ring_valloc()` for `dev`.
pub struct RingMemory {
    dev: Device,
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: The mapping belongs to the kernel's address space, not to a task.
unsafe impl Send for RingMemory {}
// SAFETY: All accesses are atomic or volatile.
unsafe impl Sync for RingMemory {}

impl RingMemory {
    /// Maps the pages behind `grefs`, at most [`MAX_RING_PAGES`]. May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL` for too many pages or a grant that cannot be mapped (which is also reported in the
    /// device's error node), `ENOMEM`.
    pub fn map(dev: &Device, grefs: &mut [u32]) -> Result<Self> {
        let pages = u32::try_from(grefs.len())?;
        let bytes = grefs
            .len()
            .checked_mul(abi::PAGE_SIZE as usize)
            .ok_or(EINVAL)?;
        if grefs.is_empty() || grefs.len() > MAX_RING_PAGES {
            return Err(EINVAL);
        }
        let mut base = core::ptr::null_mut();
        // SAFETY: The device is valid, `grefs` has `pages` elements, `base` may be written.
        to_result(unsafe {
            raw::xenbus_map_ring_valloc(dev.as_ptr(), grefs.as_mut_ptr(), pages, &mut base)
        })?;
        // INVARIANT: Mapped just now.
        Ok(Self {
            dev: dev.clone(),
            base: NonNull::new(base.cast()).ok_or(ENOMEM)?,
            bytes,
        })
    }

    /// Size of the ring in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// An index of the ring's header. The kernel's own memory model does not cover another domain;
    /// what is needed are the processor's guarantees for single aligned words, which are those of
    /// Rust's atomics, without a call for each access.
    #[inline]
    fn index(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(offset < abi::RING_HEADER_SIZE);
        // SAFETY: The header lies within the mapping, the offsets of its indices are multiples of
        // four, and nobody in this kernel accesses them otherwise.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Pointer to `words` words at `byte_offset` from the first slot, if they are in the mapping.
    #[inline]
    fn slot(&self, byte_offset: usize, words: usize) -> Option<*mut u32> {
        let start = byte_offset.checked_add(abi::RING_HEADER_SIZE)?;
        let end = start.checked_add(words.checked_mul(4)?)?;
        if end > self.bytes || start % 4 != 0 {
            return None;
        }
        // SAFETY: `start` is within the mapping.
        Some(unsafe { self.base.as_ptr().add(start).cast() })
    }
}

impl SharedRing for RingMemory {
    #[inline]
    fn req_prod(&self) -> u32 {
        self.index(abi::REQ_PROD_OFFSET).load(Ordering::Acquire)
    }

    #[inline]
    fn set_req_event(&self, index: u32) {
        self.index(abi::REQ_EVENT_OFFSET)
            .store(index, Ordering::Relaxed);
    }

    #[inline]
    fn rsp_prod(&self) -> u32 {
        self.index(abi::RSP_PROD_OFFSET).load(Ordering::Relaxed)
    }

    #[inline]
    fn set_rsp_prod(&self, index: u32) {
        self.index(abi::RSP_PROD_OFFSET)
            .store(index, Ordering::Release);
    }

    #[inline]
    fn rsp_event(&self) -> u32 {
        self.index(abi::RSP_EVENT_OFFSET).load(Ordering::Relaxed)
    }

    #[inline]
    fn full_barrier(&self) {
        fence(Ordering::SeqCst);
    }

    #[inline]
    fn read_slot(&self, byte_offset: usize, words: &mut [u32]) {
        let Some(mut slot) = self.slot(byte_offset, words.len()) else {
            return;
        };
        if let (Ok(words), true) = (
            <&mut [u32; SLOT_WORDS]>::try_from(&mut *words),
            slot.cast::<u64>().is_aligned(),
        ) {
            // The slots of a 64-bit layout: half as many loads, and a number of them that the compiler knows.
            for pair in words.chunks_exact_mut(2) {
                if let [low, high] = pair {
                    // SAFETY: `slot()` has checked that all words are in the mapping; here two of
                    // them are aligned as one.
                    let both = unsafe {
                        let both = slot.cast::<u64>().read_volatile();
                        slot = slot.add(2);
                        both
                    };
                    *low = both as u32;
                    *high = (both >> 32) as u32;
                }
            }
            return;
        }
        for word in words {
            // SAFETY: `slot()` has checked that all words are in the mapping, and aligned.
            unsafe {
                *word = slot.read_volatile();
                slot = slot.add(1);
            }
        }
    }

    #[inline]
    fn write_slot(&self, byte_offset: usize, words: &[u32; RESPONSE_WORDS]) {
        let Some(mut slot) = self.slot(byte_offset, words.len()) else {
            return;
        };
        for word in words {
            // SAFETY: `slot()` has checked that all words are in the mapping, and aligned.
            unsafe {
                slot.write_volatile(*word);
                slot = slot.add(1);
            }
        }
    }
}

impl Drop for RingMemory {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this is a mapping made for `dev`.
        let ret =
            unsafe { raw::xenbus_unmap_ring_vfree(self.dev.as_ptr(), self.base.as_ptr().cast()) };
        if ret != 0 {
            pr_err!("unmapping a ring failed: {}\n", ret);
        }
    }
}
