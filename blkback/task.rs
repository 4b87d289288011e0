// SPDX-License-Identifier: GPL-2.0

//! What a request wants of the storage.

#![forbid(unsafe_code)]

use blkif::Discard;
use xen_bindings::storage::{
    bdev::OnDevice,
    file::OnFile, //
};

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    Read,
    Write,
    /// Then write the data, if there are any.
    Flush,
    /// Flush, then write the data durably, if there are any; the ring sees to the order.
    Barrier,
    Discard(Discard),
}

/// How a file is accessed for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    Direct,
    Buffered,
}

/// A request, as the storage sees it.
pub(crate) struct Task {
    pub(crate) action: Action,
    /// First sector (of 512 bytes) of the data.
    pub(crate) sector: u64,
    /// Where the data are in the file that the disk is, in bytes. The medium says so when it gets the request.
    pub(crate) position: u64,
    pub(crate) way: Way,
    /// It is one of the medium's direct I/Os in flight that are counted.
    pub(crate) counted: bool,
    /// A flush that comes before the data is done.
    pub(crate) flushed: bool,
}

impl Task {
    pub(crate) fn new(action: Action, sector: u64) -> Self {
        Self {
            action,
            sector,
            position: 0,
            way: Way::Direct,
            counted: false,
            flushed: false,
        }
    }
}

/// Whoever has sent a request, and says with it what it wants.
pub(crate) trait HasTask: OnDevice + OnFile {
    fn task(&self) -> &Task;

    fn task_mut(&mut self) -> &mut Task;
}
