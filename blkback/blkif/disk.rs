// SPDX-License-Identifier: GPL-2.0

//! What a frontend has been told of its disk: what requests are judged by.

use crate::{
    abi::SECTOR_SIZE,
    response::Reject, //
};

/// The disk as it was offered to the frontend; requests are judged by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disk {
    /// Size in units of [`SECTOR_SIZE`] (node `sectors`).
    pub sectors: u64,
    /// Smallest unit of a transfer in bytes (node `sector-size`); a power of two, at least
    /// [`SECTOR_SIZE`].
    pub logical_block_size: u32,
    /// Nothing may change the contents (node `mode` without `w`).
    pub readonly: bool,
    /// Flushes are supported (node `feature-flush-cache`).
    pub flush: bool,
    /// Write barriers are supported (node `feature-barrier`).
    pub barrier: bool,
    /// Discards are supported (node `feature-discard`), and which ones.
    pub discard: Option<DiscardOffer>,
    /// Most segments of an indirect request (node `feature-max-indirect-segments`), at most
    /// [`MAX_INDIRECT_SEGMENTS`]; what is above counts as that. 0: there are no such requests.
    pub max_indirect_segments: u16,
}

impl Disk {
    /// Returns whether a position or a length, in sectors, is a whole number of logical blocks.
    pub(crate) const fn is_aligned(&self, sectors: u64) -> bool {
        let block_sectors = (self.logical_block_size / SECTOR_SIZE) as u64;
        sectors & block_sectors.saturating_sub(1) == 0
    }

    /// Checks that a range of sectors exists.
    #[inline]
    pub(crate) fn check_range(&self, sector: u64, sectors: u64) -> Result<(), Reject> {
        match sector.checked_add(sectors) {
            Some(end) if end <= self.sectors => Ok(()),
            _ => Err(Reject::OutOfRange {
                sector,
                sectors,
                disk_sectors: self.sectors,
            }),
        }
    }
}

/// The discards that were offered to the frontend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiscardOffer {
    /// Data can be discarded in such a way that nothing recovers them (node `discard-secure`).
    pub secure: bool,
}

/// Which way data go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the disk into the pages.
    Read,
    /// From the pages to the disk.
    Write,
}
