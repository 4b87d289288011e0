// SPDX-License-Identifier: GPL-2.0

//! A block device as a medium: it gets bios.
//!
//! Owns the device, and the claim of the file behind it if it is a loop device. Nothing is locked here.

#![forbid(unsafe_code)]

use core::ops::Deref;

use blkif::node::DiskMode;
use kernel::{
    fmt,
    prelude::*, //
};
use xen_bindings::{
    request::Mapped,
    storage::bdev::BlockDevice,
    work::OwnedQueue, //
};

use super::{
    access,
    claims::Backing,
    Properties, //
};
use crate::task::{
    Action,
    HasTask,
    Task, //
};

/// A block device.
pub(crate) struct DeviceMedium {
    device: BlockDevice,
    mode: DiskMode,
    /// The file behind it, if it is a loop device.
    _backing: Option<Backing>,
}

impl Deref for DeviceMedium {
    type Target = BlockDevice;

    fn deref(&self) -> &BlockDevice {
        &self.device
    }
}

impl DeviceMedium {
    /// Opens the block device with these numbers. May sleep.
    ///
    /// # Errors
    ///
    /// `EBUSY` if it is claimed in this domain, and those of opening a device.
    pub(crate) fn open(
        (major, minor): (u32, u32),
        mode: DiskMode,
        backing: Option<Backing>,
    ) -> Result<Self> {
        let device = BlockDevice::open(major, minor, access(mode))?;
        device.drop_page_cache()?;
        Ok(Self {
            device,
            mode,
            _backing: backing,
        })
    }

    pub(super) fn properties(&self) -> Properties {
        Properties {
            logical_block_size: self.device.logical_block_size(),
            physical_block_size: self.device.physical_block_size(),
            write_cache: self.device.has_write_cache(),
            cdrom: self.device.is_cdrom(),
            removable: self.device.is_removable(),
            discard: self.device.discard_limits(),
        }
    }

    pub(super) fn mode(&self) -> DiskMode {
        self.mode
    }

    /// Submits a request; what would wait for storage goes to `blocking`. Task context.
    pub(super) fn submit<T: HasTask>(&self, io: Mapped<T>, blocking: &OwnedQueue) {
        let &Task { action, sector, .. } = io.data().task();
        match action {
            Action::Read | Action::Write => self.device.submit(io, sector),
            Action::Flush => self.device.flush(io, sector),
            Action::Barrier => self.device.barrier(io, sector),
            Action::Discard(_) => io.defer(blocking),
        }
    }

    /// Does a request that has been deferred. Task context, may sleep.
    pub(super) fn run_one<T: HasTask>(&self, io: Mapped<T>) {
        let done = match io.data().task().action {
            Action::Discard(discard) => {
                self.device
                    .discard(discard.sector(), discard.sectors(), discard.secure())
            }
            // Bios are never deferred.
            _ => Err(EIO),
        };
        io.done(done);
    }

    /// What it is, and how its data are accessed.
    pub(super) fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.device.numbers();
        writeln!(f, "medium: block device {major:x}:{minor:x}\nI/O: bios")
    }
}
