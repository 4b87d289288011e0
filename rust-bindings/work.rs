// SPDX-License-Identifier: GPL-2.0

//! Workqueues owned by a module, which the `kernel` crate cannot create or flush yet.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use core::{
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    sync::Arc,
    workqueue, //
};

use crate::raw;

/// An unbound workqueue that makes progress under memory pressure (`WQ_UNBOUND`,
/// `WQ_MEM_RECLAIM`). Dropping it waits for all queued items; must not happen in one of them.
///
/// # Invariants
///
/// The pointer is a workqueue that we own, valid until `drop`.
pub struct OwnedQueue(NonNull<raw::workqueue_struct>);

// SAFETY: A `workqueue_struct` may be used and destroyed in any task.
unsafe impl Send for OwnedQueue {}
// SAFETY: All operations on a workqueue take its own locks.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Creates a workqueue, `max_active` items of which run at a time at most; 0 stands for the default of
    /// 1024 (`WQ_DFL_ACTIVE`). May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if memory or the rescuer thread could not be had.
    pub fn new(name: &CStr, max_active: u32) -> Result<Self> {
        // SAFETY: `name` is NUL-terminated, and the callee copies it.
        let wq =
            unsafe { raw::alloc_workqueue(name.as_char_ptr(), raw::WQ_DISK, max_active as i32) };
        // INVARIANT: A workqueue just created is ours.
        Ok(Self(NonNull::new(wq).ok_or(ENOMEM)?))
    }

    /// Waits until every item queued so far has finished. May sleep.
    pub fn flush(&self) {
        // SAFETY: The workqueue is valid by the type invariant.
        unsafe { raw::__flush_workqueue(self.0.as_ptr()) }
    }

    pub(crate) fn as_ptr(&self) -> *mut raw::workqueue_struct {
        self.0.as_ptr()
    }
}

impl Deref for OwnedQueue {
    type Target = workqueue::Queue;

    fn deref(&self) -> &workqueue::Queue {
        // SAFETY: The workqueue is valid by the type invariant for as long as `self` is borrowed.
        unsafe { workqueue::Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: We own the workqueue, and nobody can queue to it any more.
        unsafe { raw::destroy_workqueue(self.0.as_ptr()) }
    }
}

/// Takes a delayed work item back that waits for its time, and waits until it has finished if it
/// runs. It must not be queued again meanwhile. May sleep.
///
/// Must not be called from the work item itself: it would wait for itself.
pub fn cancel_delayed_work<T, const ID: u64>(item: &Arc<T>)
where
    T: workqueue::HasDelayedWork<T, ID> + workqueue::WorkItem<ID, Pointer = Arc<T>>,
{
    let ptr = Arc::as_ptr(item).cast_mut();
    // SAFETY: `ptr` is valid, and so is its field, which by the contract of `HasDelayedWork` is the
    // first of a `delayed_work`.
    let waited = unsafe {
        let work = workqueue::Work::raw_get(T::raw_get_work(ptr));
        raw::cancel_delayed_work_sync(kernel::container_of!(work, raw::delayed_work, work))
    };
    if waited {
        // SAFETY: The item was queued as `Arc<T>`, whose reference its run would have taken over.
        // It does not run, so the reference is ours.
        drop(unsafe { Arc::from_raw(ptr.cast_const()) });
    }
}
