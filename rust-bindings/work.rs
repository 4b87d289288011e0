// SPDX-License-Identifier: GPL-2.0

//! Workqueues owned by a module, which the `kernel` crate cannot create or flush yet.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::Arc,
    time::Jiffies,
    workqueue::{
        self,
        HasDelayedWork,
        Queue,
        RawWorkItem,
        WorkItem, //
    },
};

use crate::raw;

/// An unbound workqueue that makes progress under memory pressure (`WQ_UNBOUND`,
/// `WQ_MEM_RECLAIM`). It is not frozen when the system is suspended: an item that waits for storage, or for a
/// frozen file system, would make that fail. Dropping it waits for all queued items; must not happen in one of them,
/// which would wait for itself. Items whose time has not come are not waited for; they keep the workqueue by
/// themselves ([`enqueue_delayed`]).
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

    /// Queues a work item. What it returns says whether it was queued before, as with
    /// [`Queue::enqueue`]. Any context.
    pub fn enqueue<W, const ID: u64>(&self, item: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        // SAFETY: The workqueue is valid by the type invariant. The reference is used for this call only; the
        // item is queued when it is over, and `drop` waits for it.
        unsafe { Queue::from_raw(self.as_ptr()) }.enqueue(item)
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

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: We own the workqueue, and nobody can queue to it any more: not by a reference, and by a
        // timer not because its item would have one.
        unsafe { raw::destroy_workqueue(self.0.as_ptr()) }
    }
}

/// Something with a delayed work item, which keeps the workqueue that this goes to.
pub trait OnQueue {
    /// The workqueue. Any context.
    fn queue(&self) -> &OwnedQueue;
}

/// Queues a delayed work item to its workqueue when `delay` has passed. Any context.
///
/// # Errors
///
/// Gives it back if it is queued already, or waits for its time.
pub fn enqueue_delayed<T, const ID: u64>(item: Arc<T>, delay: Jiffies) -> Result<(), Arc<T>>
where
    T: OnQueue + HasDelayedWork<T, ID> + WorkItem<ID, Pointer = Arc<T>> + Send + Sync + 'static,
{
    // SAFETY: The workqueue is valid as long as `item` is, from which we have the reference: from here until
    // the item runs, or until `cancel_delayed_work` has stopped the timer, there is this reference to the
    // item, which nobody else can drop.
    let queue = unsafe { Queue::from_raw(item.queue().as_ptr()) };
    queue.enqueue_delayed(item, delay)
}

/// The kernel's queue for what is not bound to a processor. All of the kernel uses it: its items must not wait.
pub fn shared() -> &'static workqueue::Queue {
    // SAFETY: A queue of the kernel that is always there, once it has been set up at boot.
    unsafe { workqueue::Queue::from_raw(raw::system_dfl_wq) }
}

/// Takes a delayed work item back that waits for its time, and waits until it has finished if it
/// runs. It must not be queued again meanwhile. May sleep.
///
/// Must not be called from the work item itself: it would wait for itself.
pub fn cancel_delayed_work<T, const ID: u64>(item: &Arc<T>)
where
    T: HasDelayedWork<T, ID> + WorkItem<ID, Pointer = Arc<T>>,
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
