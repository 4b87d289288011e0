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
