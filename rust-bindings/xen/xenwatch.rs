// SPDX-License-Identifier: GPL-2.0

//! The xenwatch thread: watches of nodes in xenstore, and other work that has to be done there.
//!
//! The thread is one for all Xen devices of the machine. What it does should take no time, and must not wait for
//! anybody who waits for it: `unregister_xenbus_watch` waits for the callback that runs at the moment, whichever it is.
//!
//! C header: [`include/xen/xenbus.h`](srctree/include/xen/xenbus.h)

use core::{
    cell::UnsafeCell,
    ptr::NonNull, //
};
use kernel::{
    error::to_result,
    new_mutex,
    prelude::*,
    str::CString,
    sync::{
        Arc,
        Mutex, //
    }, //
};

use crate::{
    completion::Completion,
    raw, //
};

/// A node that every domain has, and that does not change: a watch of it fires once.
const CONSTANT_NODE: &CStr = c"domid";

/// Proof that the current code runs in the xenwatch thread, inside of a callback.
pub struct InXenwatch(());

/// Something that wants to know of changes in xenstore.
pub trait Watcher: Send + Sync + 'static {
    /// The node `path` (without a final NUL) has changed. Runs in the xenwatch thread.
    fn changed(this: Arc<Self>, path: &[u8], ctx: &InXenwatch);
}

#[repr(C)]
struct WatchInner<T> {
    // First, so that the callback finds the rest.
    watch: UnsafeCell<raw::xenbus_watch>,
    watcher: Arc<T>,
    node: CString,
}

/// A watch of a node and everything below it. Dropping it waits for a running callback, unless it
/// is dropped by the callback.
///
/// # Invariants
///
/// The pointer comes from a `KBox<WatchInner<T>>` whose watch is registered.
pub struct Watch<T: Watcher>(NonNull<WatchInner<T>>);

// SAFETY: The watcher is `Send + Sync`; a watch may be removed in any task.
unsafe impl<T: Watcher> Send for Watch<T> {}
// SAFETY: There is nothing that could be done with a shared reference.
unsafe impl<T: Watcher> Sync for Watch<T> {}

impl<T: Watcher> Watch<T> {
    /// Watches `node`. The watch fires once immediately. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or the error that xenstore answers with.
    pub fn new(node: &CStr, watcher: Arc<T>) -> Result<Self> {
        let mut inner = KBox::new(
            WatchInner {
                watch: UnsafeCell::new(pin_init::zeroed()),
                watcher,
                node: CString::try_from(node)?,
            },
            GFP_KERNEL,
        )?;
        let path = inner.node.as_char_ptr();
        let watch = inner.watch.get_mut();
        watch.node = path;
        watch.callback = Some(Self::callback);
        let ptr = KBox::into_raw(inner);
        // SAFETY: The structure is filled in, and stays where it is until `drop`.
        let ret = to_result(unsafe { raw::register_xenbus_watch((*ptr).watch.get()) });
        if let Err(err) = ret {
            // SAFETY: `ptr` comes from `KBox::into_raw`, and the registration failed.
            drop(unsafe { KBox::from_raw(ptr) });
            return Err(err);
        }
        // INVARIANT: Registered just now.
        Ok(Self(NonNull::new(ptr).ok_or(ENOMEM)?))
    }

    /// # Safety
    ///
    /// Called by the xenwatch thread only, with a watch that [`Watch::new`] registered.
    unsafe extern "C" fn callback(
        watch: *mut raw::xenbus_watch,
        path: *const kernel::ffi::c_char,
        _token: *const kernel::ffi::c_char,
    ) {
        let inner = watch.cast::<WatchInner<T>>();
        // SAFETY: `watch` is the first field of a `WatchInner`. It is valid until the watch is
        // unregistered, which waits for this callback or is done by it; hence the clone.
        let watcher = unsafe { (*inner).watcher.clone() };
        // SAFETY: The xenwatch thread passes a NUL-terminated string.
        let path = unsafe { core::slice::from_raw_parts(path.cast::<u8>(), raw::strlen(path)) };
        T::changed(watcher, path, &InXenwatch(()));
    }
}

impl<T: Watcher> Drop for Watch<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the watch is registered and the box is ours; after it has
        // been unregistered no callback runs, but for one that we are called from, which does not
        // use it any more.
        unsafe {
            raw::unregister_xenbus_watch((*self.0.as_ptr()).watch.get());
            drop(KBox::from_raw(self.0.as_ptr()));
        }
    }
}

/// Work for the xenwatch thread, and what comes of it.
#[pin_data]
struct Job<F, R> {
    #[pin]
    work: Mutex<Option<F>>,
    #[pin]
    result: Mutex<Option<R>>,
    #[pin]
    done: Completion,
}

impl<F, R> Watcher for Job<F, R>
where
    F: FnOnce(&InXenwatch) -> R + Send + Unpin + 'static,
    R: Send + Unpin + 'static,
{
    fn changed(this: Arc<Self>, _path: &[u8], ctx: &InXenwatch) {
        let work = this.work.lock().take();
        if let Some(work) = work {
            let result = work(ctx);
            *this.result.lock() = Some(result);
            this.done.complete_all();
        }
    }
}

/// Has the xenwatch thread do `work`, and waits for it. Must not be called in that thread, nor with a lock that it may
/// want. May sleep.
///
/// # Errors
///
/// Those of [`Watch::new`]: the work has not been done.
pub(crate) fn run<F, R>(work: F) -> Result<R>
where
    F: FnOnce(&InXenwatch) -> R + Send + Unpin + 'static,
    R: Send + Unpin + 'static,
{
    let job = Arc::pin_init(
        pin_init!(Job {
            work <- new_mutex!(Some(work)),
            result <- new_mutex!(None),
            done <- Completion::new(),
        }),
        GFP_KERNEL,
    )?;
    let _watch = Watch::new(CONSTANT_NODE, job.clone())?;
    job.done.wait();
    let result = job.result.lock().take();
    result.ok_or(EIO)
}
