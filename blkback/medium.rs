// SPDX-License-Identifier: GPL-2.0

//! Where a disk's data are, and what is done there for its requests: a file for each kind of medium.
//!
//! What requests come from is no affair of the media's: each brings what it wants as a [`Task`].

#![forbid(unsafe_code)]

pub(crate) mod claims;
mod device;
mod file;

use blkif::{
    abi::SECTOR_SIZE,
    node::DiskMode, //
};
use kernel::{
    fmt,
    prelude::*, //
};
use xen_bindings::{
    mem,
    request::{
        Joined,
        Mapped,
        Retry, //
    },
    storage::{
        bdev::BlockDevice,
        file::File,
        Access,
        DiscardLimits, //
    },
    work::OwnedQueue, //
};

use crate::task::{
    HasTask,
    Task,
    Way, //
};

pub(crate) use device::DeviceMedium;
pub(crate) use file::FileMedium;

/// What holds the data of a disk. With it goes the mode in which it was opened, and no other.
pub(crate) enum Medium {
    /// A block device.
    Block(DeviceMedium),
    /// A file.
    File(FileMedium),
    /// Nothing: the drive of a disk that has been taken out.
    Empty(DiskMode),
}

/// What a guest is told of a medium when its disk is connected.
pub(crate) struct Properties {
    /// Smallest unit of I/O that the guest may use, in bytes.
    pub(crate) logical_block_size: u32,
    /// Smallest unit of I/O that is done at full speed, in bytes.
    pub(crate) physical_block_size: u32,
    /// There is something to flush.
    pub(crate) write_cache: bool,
    pub(crate) cdrom: bool,
    pub(crate) removable: bool,
    /// How parts of it can be given up, if they can.
    pub(crate) discard: Option<DiscardLimits>,
}

impl Properties {
    /// Those of a drive without a medium.
    const NOTHING: Self = Self {
        logical_block_size: SECTOR_SIZE,
        physical_block_size: SECTOR_SIZE,
        write_cache: true,
        cdrom: false,
        removable: false,
        discard: None,
    };
}

/// How a medium is opened that a guest may use so.
pub(crate) fn access(mode: DiskMode) -> Access {
    match (mode.writable, mode.shared) {
        (false, _) => Access::Read,
        (true, false) => Access::Write,
        (true, true) => Access::WriteShared,
    }
}

impl Medium {
    /// How it was opened: what the guest may do with it.
    pub(crate) fn mode(&self) -> DiskMode {
        match self {
            Self::Block(medium) => medium.mode(),
            Self::File(medium) => medium.mode(),
            Self::Empty(mode) => *mode,
        }
    }

    /// The device that it is.
    pub(crate) fn device(&self) -> Option<&BlockDevice> {
        match self {
            Self::Block(medium) => Some(medium),
            Self::File(_) | Self::Empty(_) => None,
        }
    }

    /// The file that it is.
    pub(crate) fn file(&self) -> Option<&File> {
        match self {
            Self::File(medium) => Some(medium.file()),
            Self::Block(_) | Self::Empty(_) => None,
        }
    }

    /// Major and minor number; both 0 for a file, which has none.
    pub(crate) fn numbers(&self) -> (u32, u32) {
        self.device().map_or((0, 0), BlockDevice::numbers)
    }

    /// Size in sectors of 512 bytes, as of now.
    pub(crate) fn sectors(&self) -> u64 {
        match self {
            Self::Block(medium) => medium.sectors(),
            Self::File(medium) => medium.sectors(),
            Self::Empty(_) => 0,
        }
    }

    /// What the guest is told besides. May sleep.
    pub(crate) fn properties(&self) -> Properties {
        match self {
            Self::Block(medium) => medium.properties(),
            Self::File(medium) => medium.properties(),
            Self::Empty(_) => Properties::NOTHING,
        }
    }

    /// Submits a request from a ring's worker: what would wait for storage goes to `blocking`. Task
    /// context.
    ///
    /// If others come next the request may be left in `waiting` instead, for them to be joined to it;
    /// [`Medium::finish`] submits what is left in the end.
    pub(crate) fn submit<T: HasTask>(
        &self,
        io: Mapped<T>,
        waiting: Option<&mut Option<Joined<T>>>,
        blocking: &OwnedQueue,
    ) {
        match self {
            Self::Block(medium) => medium.submit(io, blocking),
            Self::File(medium) => medium.submit(io, waiting, blocking),
            Self::Empty(_) => io.done(Err(EIO)),
        }
    }

    /// Submits what [`Medium::submit`] has left waiting. Task context.
    pub(crate) fn finish<T: HasTask>(&self, waiting: Option<Joined<T>>) {
        if let (Self::File(medium), Some(io)) = (self, waiting) {
            medium.transfer(io, true);
        }
    }

    /// Does what has been deferred. Task context, may sleep.
    pub(crate) fn run<T: HasTask>(&self, io: Joined<T>) {
        mem::with_noio(|| match self {
            Self::File(medium) if io.is_joined() => medium.transfer(io, false),
            _ => io.part(|io| match self {
                Self::Block(medium) => medium.run_one(io),
                Self::File(medium) => medium.run_one(io),
                Self::Empty(_) => io.done(Err(EIO)),
            }),
        });
    }

    /// I/O has ended, for now at least, that was submitted. Any context.
    pub(crate) fn ended(&self, task: &mut Task) {
        if core::mem::take(&mut task.counted) {
            if let Self::File(medium) = self {
                medium.direct_io_ended();
            }
        }
    }

    /// Has what could not be done as it was submitted done by the queue for blocking requests. Any context.
    pub(crate) fn retry<T: HasTask>(&self, mut io: Joined<T>, why: Retry, blocking: &OwnedQueue) {
        self.ended(io.data_mut().task_mut());
        if why == Retry::NotDirect {
            io.data_mut().task_mut().way = Way::Buffered;
            if let Self::File(medium) = self {
                medium.note_buffered();
            }
        }
        io.defer(blocking);
    }

    /// What it is, and how its data are accessed.
    pub(crate) fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(medium) => medium.write(f),
            Self::File(medium) => medium.write(f),
            Self::Empty(_) => f.write_str("medium: none\n"),
        }
    }

    /// Identity of the file that it is ([`Path::identity`]).
    ///
    /// [`Path::identity`]: xen_bindings::storage::path::Path::identity
    pub(crate) fn identity(&self) -> Option<usize> {
        match self {
            Self::File(medium) => Some(medium.identity()),
            Self::Block(_) | Self::Empty(_) => None,
        }
    }

    /// Path of the file that it is.
    pub(crate) fn path(&self) -> Option<&CStr> {
        match self {
            Self::File(medium) => Some(medium.path()),
            Self::Block(_) | Self::Empty(_) => None,
        }
    }
}
