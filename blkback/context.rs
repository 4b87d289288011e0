// SPDX-License-Identifier: GPL-2.0

//! What all disks share.
//!
//! Owns the control workqueue, the register of files in use, the list of guests and the driver's directory in debugfs.
//! Nothing is locked here.

#![forbid(unsafe_code)]

use core::ops::Deref;

use kernel::{
    debugfs::Dir,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};
use xen_bindings::{
    thread::wait_for_tasks,
    work::OwnedQueue, //
};

use crate::{
    guest::Guests,
    medium::claims::FilesInUse, //
};

/// Pause between two looks whether all disks are gone, when the module is unloaded.
const EXIT_PAUSE: Delta = Delta::from_millis(10);

/// What all disks share.
pub(crate) struct Context {
    /// The life of disks: opening, connecting, closing. May wait for storage.
    pub(crate) control: OwnedQueue,
    /// Files that disks are on.
    pub(crate) files: Arc<FilesInUse>,
    /// Guests that have disks.
    pub(crate) guests: Arc<Guests>,
    /// Of all disks' files for administrators.
    pub(crate) debugfs: Dir,
    /// Disks that there are, those whose driver has been unbound included.
    disks: Atomic<usize>,
}

impl Context {
    /// That of no disks; `name` is the driver's. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(name: &CStr) -> Result<Arc<Self>> {
        let context = Self {
            control: OwnedQueue::new(c"xen-blkback", 0)?,
            files: FilesInUse::new()?,
            guests: Guests::new()?,
            debugfs: Dir::new(name),
            disks: Atomic::new(0),
        };
        Ok(Arc::new(context, GFP_KERNEL)?)
    }
}

/// One of the disks that [`Context`] counts, until it is dropped.
pub(crate) struct Counted(Arc<Context>);

impl Counted {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        context.disks.fetch_add(1, Relaxed);
        Self(context)
    }
}

impl Deref for Counted {
    type Target = Arc<Context>;

    fn deref(&self) -> &Arc<Context> {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.disks.fetch_sub(1, Release);
    }
}

/// The context, dropped only when no work item is left that could hold a reference: the last one
/// destroys the workqueue, which no item of it can do.
pub(crate) struct Flushed(Arc<Context>);

impl Flushed {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self(context)
    }
}

impl Drop for Flushed {
    fn drop(&mut self) {
        // A disk whose storage hangs can take long, for which nobody shall be reported as a task that hangs.
        while self.0.disks.load(Acquire) > 0 {
            fsleep(EXIT_PAUSE);
        }
        self.0.control.flush();
        // A completion of a request may have been preempted on its last instructions, which are going away.
        wait_for_tasks();
    }
}
