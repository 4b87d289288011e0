// SPDX-License-Identifier: GPL-2.0

//! Loop devices, and the files behind them.
//!
//! The kernel tells nobody in the kernel which inode a loop device is on. Its path is in sysfs, as it is at the moment;
//! that the file found under it is the one follows from what a loop device does to its file.

#![forbid(unsafe_code)]

use core::ops::Range;

use kernel::{
    fmt,
    page::PAGE_SIZE,
    prelude::*,
    str::CString, //
};
use xen_bindings::storage::{
    file::File,
    path::Path,
    Access, //
};

use blkif::abi::SECTOR_SIZE;

/// Major number of loop devices
/// ([`include/uapi/linux/major.h`](srctree/include/uapi/linux/major.h)).
const MAJOR: u32 = 7;

/// How many loop devices are looked at to find that of a file.
const LOOKED_AT: u32 = 256;

/// A loop device, or a partition of one.
pub(super) struct LoopDevice {
    /// Directory of its attributes.
    directory: CString,
    /// Major and minor number, those of the whole for a partition.
    pub(super) numbers: (u32, u32),
    /// It can be written.
    pub(super) writable: bool,
    /// What of the file is in it, in bytes.
    pub(super) part: Range<u64>,
    /// It is all of the file.
    pub(super) whole: bool,
}

impl LoopDevice {
    /// The block device with these numbers, if it is one. May sleep.
    pub(super) fn find(major: u32, minor: u32) -> Option<Self> {
        Self::at(fmt!("/sys/dev/block/{}:{}", major, minor), None).or_else(|| {
            let device = CString::try_from_fmt(fmt!("/sys/dev/block/{}:{}", major, minor)).ok()?;
            let start = number(&device, "start")?.checked_mul(SECTOR_SIZE.into())?;
            let len = number(&device, "size")?.checked_mul(SECTOR_SIZE.into())?;
            Self::at(
                fmt!("{}/..", &*device),
                Some(start..start.checked_add(len)?),
            )
        })
    }

    /// The first one with numbers that `wanted` takes which the file at `path` is behind. May sleep.
    pub(super) fn of(path: &Path, wanted: impl Fn((u32, u32)) -> bool) -> Option<Self> {
        if !path.may_be_behind_loop() {
            return None;
        }
        (0..LOOKED_AT)
            .filter(|minor| wanted((MAJOR, *minor)))
            .filter_map(|minor| Self::at(fmt!("/sys/dev/block/{}:{}", MAJOR, minor), None))
            .find(|it| it.path().is_some_and(|it| it.identity() == path.identity()))
    }

    fn at(directory: fmt::Arguments<'_>, partition: Option<Range<u64>>) -> Option<Self> {
        let directory = CString::try_from_fmt(directory).ok()?;
        attribute(&directory, "loop/backing_file")?;
        let device = attribute(&directory, "dev")?;
        let mut numbers = device
            .trim_ascii_end()
            .split(|byte| *byte == b':')
            .map(|part| blkif::node::number(part).ok());
        let numbers = (numbers.next()??, numbers.next()??);
        let writable = number(&directory, "ro")? == 0;
        let start = number(&directory, "loop/offset")?;
        let len = number(&directory, "size")?.checked_mul(SECTOR_SIZE.into())?;
        let whole = partition.is_none() && start == 0 && number(&directory, "loop/sizelimit")? == 0;
        let part = partition.unwrap_or(0..len);
        Some(Self {
            directory,
            numbers,
            writable,
            part: start.checked_add(part.start)?..start.checked_add(part.end)?,
            whole,
        })
    }

    /// The path of the file behind it, as its mount namespace has it.
    pub(super) fn name(&self) -> Option<CString> {
        let mut name = attribute(&self.directory, "loop/backing_file")?;
        *name.last_mut()? = 0; // a line feed
        CString::try_from(CStr::from_bytes_with_nul(&name).ok()?).ok()
    }

    /// The file behind it, if that can be told. May sleep.
    pub(super) fn path(&self) -> Option<Path> {
        let name = self.name()?;
        let path = Path::lookup(&name).ok()?;
        // The name is of a moment, and of a mount namespace that may not be ours.
        let is_it = path.is_regular()
            && path.may_be_behind_loop()
            && path.size() >= self.part.end
            && !(self.writable && path.writers() == 0)
            && self.name()?.to_bytes_with_nul() == name.to_bytes_with_nul();
        is_it.then_some(path)
    }
}

/// An attribute in sysfs, at most a page of it.
fn attribute(directory: &CStr, name: &str) -> Option<KVec<u8>> {
    let path = CString::try_from_fmt(fmt!("{}/{}", directory, name)).ok()?;
    let mut value = KVec::from_elem(0, PAGE_SIZE, GFP_KERNEL).ok()?;
    let len = File::open(&path, Access::Read)
        .ok()?
        .read(&mut value)
        .ok()?;
    value.truncate(len);
    Some(value)
}

/// An attribute that is a decimal number.
fn number(directory: &CStr, name: &str) -> Option<u64> {
    let value = attribute(directory, name)?;
    value
        .trim_ascii_end()
        .iter()
        .try_fold(0u64, |number, byte| {
            let digit = byte.checked_sub(b'0').filter(|digit| *digit <= 9)?;
            number.checked_mul(10)?.checked_add(digit.into())
        })
}
