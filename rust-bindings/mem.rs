// SPDX-License-Identifier: GPL-2.0

//! Allocation in the path that writes dirty memory out.

use core::{
    mem::{
        align_of,
        size_of,
        MaybeUninit, //
    },
    ptr::NonNull, //
};
use kernel::{
    alloc::AllocError,
    prelude::*, //
};

use crate::raw;

/// Runs `f` with every allocation of the current task treated as `GFP_NOIO`.
///
/// A backend is below the page cache of its guests and of dom0 itself: an allocation here that
/// waits for I/O could wait for its own disk. The scope also covers what file systems and the
/// block layer allocate on our behalf.
///
/// May be called in any task context; `f` may sleep.
pub fn with_noio<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: Changes flags of the current task only; the matching restore is below.
    let flags = unsafe { raw::memalloc_noio_save() };
    let ret = f();
    // SAFETY: `flags` is what the matching save returned, and scopes nest since `f` is a closure.
    unsafe { raw::memalloc_noio_restore(flags) };
    ret
}

/// Gives other tasks the processor if it is their turn. May sleep.
#[inline]
pub fn cond_resched() {
    // SAFETY: No requirement but a context that may sleep, which the documentation demands; in a
    // context that may not, the scheduler complains but memory stays safe.
    unsafe { raw::cond_resched() }
}

/// Memory from kmalloc() for `count` elements, if it can be had without much ado.
///
/// In a scope of [`with_noio`] the allocator would go on trying to find memory for anything that is not large,
/// for ever, where nothing but I/O could bring some: what has been held back for such a time would never
/// be used.
fn try_kmalloc<T>(count: usize) -> Result<NonNull<T>, AllocError> {
    const {
        // kmalloc() aligns to eight bytes, and a size that is a power of two to itself.
        assert!(size_of::<T>() > 0);
        assert!(align_of::<T>() <= 8 || size_of::<T>().is_power_of_two());
    }
    let bytes = size_of::<T>().checked_mul(count).ok_or(AllocError)?;
    // SAFETY: May be called in a context that may sleep, which the callers' documentation demands.
    let memory = unsafe { raw::try_kmalloc(bytes) };
    NonNull::new(memory.cast()).ok_or(AllocError)
}

/// A box, unless memory is short. May sleep.
///
/// # Errors
///
/// `ENOMEM`. The caller must be able to go on without.
pub(crate) fn try_box<T>() -> Result<KBox<MaybeUninit<T>>, AllocError> {
    let memory = try_kmalloc::<MaybeUninit<T>>(1)?;
    // SAFETY: `Kmalloc`, the allocator of a `KBox`, is kmalloc(), and so is this, with enough memory for the type,
    // as it has to be aligned; it may be uninitialised.
    Ok(unsafe { KBox::from_raw(memory.as_ptr()) })
}

/// An empty vector with room for `capacity` elements, at least one, unless memory is short. May sleep.
///
/// # Errors
///
/// As [`try_box`].
pub(crate) fn try_vec<T>(capacity: usize) -> Result<KVec<T>, AllocError> {
    if capacity == 0 {
        return Ok(KVec::new());
    }
    let memory = try_kmalloc::<T>(capacity)?;
    // SAFETY: As for the box; there is room for as many elements, none of which is initialised.
    Ok(unsafe { KVec::from_raw_parts(memory.as_ptr(), 0, capacity) })
}

/// Makes room for `more` elements in a full vector, unless memory is short. May sleep.
///
/// # Errors
///
/// As [`try_box`]; the vector stays as it is.
pub(crate) fn try_reserve<T>(vec: &mut KVec<T>, more: usize) -> Result<(), AllocError> {
    let mut longer = try_vec(vec.len().saturating_add(more))?;
    for element in core::mem::take(vec) {
        let _ = longer.push_within_capacity(element);
    }
    *vec = longer;
    Ok(())
}
