// SPDX-License-Identifier: GPL-2.0

//! Where the I/O of requests goes: block devices and files.

use kernel::prelude::*;

use crate::raw;

pub mod bdev;
pub mod file;
pub mod path;

/// How parts of a medium can be given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiscardLimits {
    /// Smallest unit that is really given up, in bytes.
    pub granularity: u32,
    /// Where the first such unit begins, in bytes.
    pub alignment: u32,
    /// The contents can be made unreadable.
    pub secure: bool,
}

/// Does the error say that the operation as such is not supported (`EOPNOTSUPP`)?
pub fn is_not_supported(err: Error) -> bool {
    err.to_errno() == -(raw::EOPNOTSUPP as i32)
}

/// How to open a device or a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// For reading; others may write.
    Read,
    /// For reading and writing. A block device is claimed: it must not be mounted, and cannot be. Several disks of ours
    /// may share one claim, as they do for a moment in a local migration. Who has a file is for the caller to know.
    Write,
    /// For reading and writing whatever others do with it (mode `w!`).
    WriteShared,
}

impl Access {
    /// As `open(2)` has it.
    pub(crate) fn flags(self) -> i32 {
        let access = match self {
            Access::Read => raw::O_RDONLY,
            Access::Write | Access::WriteShared => raw::O_RDWR,
        };
        (access | raw::O_LARGEFILE) as i32
    }
}
