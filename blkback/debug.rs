// SPDX-License-Identifier: GPL-2.0

//! A disk's files in debugfs, for administrators: below `xen-blkback-rs/` in a directory with the
//! name of the device.
//!
//! Owns the files; they are gone before the disk is. Reading them waits for nothing that happens to the disk.

#![forbid(unsafe_code)]

use kernel::{
    debugfs::{
        Dir,
        File, //
    },
    fmt,
    prelude::*,
    sync::Arc, //
};

/// What the files of a disk have in them. Called when they are read; waits for nothing that takes its time.
pub(crate) trait Show: Send + Sync + 'static {
    /// What there is to know about it, a line each.
    fn state(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;

    /// How long its requests took.
    fn latency(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// The files of a disk.
pub(crate) struct Files<T: Show> {
    _state: Pin<KBox<File<Arc<T>>>>,
    _latency: Pin<KBox<File<Arc<T>>>>,
    // Removed after what is in it.
    _dir: Dir,
}

impl<T: Show> Files<T> {
    /// Makes them in a directory `name` below `parent`. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`. That debugfs is not there is no error.
    pub(crate) fn new(parent: &Dir, name: &CStr, disk: &Arc<T>) -> Result<Self> {
        let dir = parent.subdir(name);
        Ok(Self {
            _state: KBox::pin_init(
                dir.read_callback_file(c"state", disk.clone(), &|disk: &Arc<T>, f| disk.state(f)),
                GFP_KERNEL,
            )?,
            _latency: KBox::pin_init(
                dir.read_callback_file(c"latency", disk.clone(), &|disk: &Arc<T>, f| {
                    disk.latency(f)
                }),
                GFP_KERNEL,
            )?,
            _dir: dir,
        })
    }
}
