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
    prelude::*,
    sync::Arc, //
};

use crate::vbd::Vbd;

/// The files of a disk.
pub(crate) struct Files {
    _state: Pin<KBox<File<Arc<Vbd>>>>,
    _latency: Pin<KBox<File<Arc<Vbd>>>>,
    // Removed after what is in it.
    _dir: Dir,
}

impl Files {
    /// Makes them in a directory `name` below `parent`. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`. That debugfs is not there is no error.
    pub(crate) fn new(parent: &Dir, name: &CStr, vbd: &Arc<Vbd>) -> Result<Self> {
        let dir = parent.subdir(name);
        Ok(Self {
            _state: KBox::pin_init(
                dir.read_callback_file(c"state", vbd.clone(), &|vbd: &Arc<Vbd>, f| vbd.write(f)),
                GFP_KERNEL,
            )?,
            _latency: KBox::pin_init(
                dir.read_callback_file(c"latency", vbd.clone(), &|vbd: &Arc<Vbd>, f| {
                    vbd.stats().latency.write(f)
                }),
                GFP_KERNEL,
            )?,
            _dir: dir,
        })
    }
}
