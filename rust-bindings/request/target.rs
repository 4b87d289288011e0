// SPDX-License-Identifier: GPL-2.0

//! The part of a request's memory that belongs to whoever does its I/O, as that wants to have it.

use core::mem::ManuallyDrop;

use crate::raw;

/// How to do a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mode {
    /// Past the page cache.
    pub direct: bool,
    /// Rather give the request back than wait.
    pub nowait: bool,
    /// What is written is durable when the request is done.
    pub durable: bool,
}

/// The part of a request's memory that file I/O uses.
pub(crate) struct FileOp {
    pub(crate) iocb: raw::kiocb,
    pub(crate) iter: raw::iov_iter,
    pub(crate) mode: Mode,
}

/// What does the I/O. Which one is in use is known to the module that submitted it.
#[repr(C)]
pub(crate) union Target {
    pub(crate) bio: ManuallyDrop<raw::bio>,
    pub(crate) file: ManuallyDrop<FileOp>,
}

// A union field needs no drop: a bio is given back by bio_uninit().
const _: () = assert!(!core::mem::needs_drop::<Target>());
