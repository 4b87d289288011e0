// SPDX-License-Identifier: GPL-2.0

//! Segments: the pieces of guest memory that a request's data come from or go to.
//!
//! A segment is checked by itself, and all of a request's together: [`Transfer`] has those that
//! stand in the slot, [`Indirect`] says where the others are, and [`IndirectSegments`] checks them.

use crate::{
    abi::{
        indirect_pages,
        MAX_INDIRECT_PAGES,
        MAX_INDIRECT_SEGMENTS,
        SECTORS_PER_PAGE,
        SECTOR_SIZE, //
    },
    disk::{
        Direction,
        Disk, //
    },
    response::Reject, //
};

/// A piece of one granted page, in whole sectors (`struct blkif_request_segment`).
///
/// # Invariants
///
/// `first_sect <= last_sect < SECTORS_PER_PAGE`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    gref: u32,
    first_sect: u8,
    last_sect: u8,
}

impl Segment {
    /// Checks and decodes the two words of a segment.
    #[inline]
    fn decode(gref: u32, sectors: u32) -> Result<Segment, Reject> {
        let [first_sect, last_sect, ..] = sectors.to_le_bytes();
        if first_sect > last_sect || last_sect >= SECTORS_PER_PAGE {
            return Err(Reject::SegmentRange {
                first_sect,
                last_sect,
            });
        }
        // INVARIANT: Both relations have just been checked.
        Ok(Segment {
            gref,
            first_sect,
            last_sect,
        })
    }

    /// Grant reference of the page. Whether the frontend has really granted it, and as writable
    /// for a read, comes out when it is mapped.
    pub const fn gref(&self) -> u32 {
        self.gref
    }

    /// Where the data begin in the page, in bytes: a multiple of 512, at most 3584.
    pub const fn offset(&self) -> u32 {
        (self.first_sect as u32).wrapping_mul(SECTOR_SIZE)
    }

    /// Amount of data in bytes: a multiple of 512, from 512 to 4096 less the offset.
    pub const fn len(&self) -> u32 {
        self.sectors().wrapping_mul(SECTOR_SIZE)
    }

    /// Always false: a segment holds at least one sector.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Amount of data in sectors, 1 to 8.
    pub const fn sectors(&self) -> u32 {
        // By the invariant, this neither wraps nor exceeds 8.
        (self.last_sect as u32)
            .wrapping_sub(self.first_sect as u32)
            .wrapping_add(1)
    }
}

/// A range of sectors that exist on the disk, as long as the segments of a request.
///
/// # Invariants
///
/// - `sectors` is at least 1.
/// - `sector + sectors` does not exceed the size of the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    sector: u64,
    sectors: u32,
}

impl Extent {
    /// First sector on the disk, in units of [`SECTOR_SIZE`].
    pub const fn sector(&self) -> u64 {
        self.sector
    }

    /// Length in sectors, 1 to 2048: 8 times [`MAX_INDIRECT_SEGMENTS`].
    pub const fn sectors(&self) -> u32 {
        self.sectors
    }

    /// Length in bytes, a multiple of 512, 512 to 1048576.
    pub const fn bytes(&self) -> u32 {
        self.sectors.wrapping_mul(SECTOR_SIZE)
    }
}

/// Decodes the segments of one request, one after the other, and judges them as a whole.
///
/// # Invariants
///
/// - `sectors` is the sum of the lengths of all segments that [`Sum::add`] has returned.
/// - `misaligned` is the length, in sectors, of the first of them that is not, together with
///   `sector`, a matter of whole logical blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sum<'a> {
    disk: &'a Disk,
    sector: u64,
    sectors: u32,
    misaligned: Option<u32>,
}

impl<'a> Sum<'a> {
    /// Begins with no segment, at a sector of the disk.
    pub(crate) const fn new(disk: &'a Disk, sector: u64) -> Self {
        // INVARIANT: There is no segment yet.
        Sum {
            disk,
            sector,
            sectors: 0,
            misaligned: None,
        }
    }

    /// Decodes the next segment. At most [`MAX_INDIRECT_SEGMENTS`] times.
    #[inline]
    pub(crate) fn add(&mut self, gref: u32, range: u32) -> Result<Segment, Reject> {
        let segment = Segment::decode(gref, range)?;
        let sectors = segment.sectors();
        // INVARIANT: The sum does not wrap, being at most 256 times 8. Each segment counts for
        // itself, so a bit that is set below a block in either number shows up.
        self.sectors = self.sectors.wrapping_add(sectors);
        if self.misaligned.is_none() && !self.disk.is_aligned(self.sector | u64::from(sectors)) {
            self.misaligned = Some(sectors);
        }
        Ok(segment)
    }

    /// Judges the whole.
    #[inline]
    pub(crate) fn finish(self) -> Result<Extent, Reject> {
        if self.sectors == 0 {
            return Err(Reject::NoSegments);
        }
        self.disk
            .check_range(self.sector, u64::from(self.sectors))?;
        if let Some(segment_sectors) = self.misaligned {
            return Err(Reject::Misaligned {
                sector: self.sector,
                segment_sectors,
                logical_block_size: self.disk.logical_block_size,
            });
        }
        // INVARIANT: Both have just been checked.
        Ok(Extent {
            sector: self.sector,
            sectors: self.sectors,
        })
    }
}

/// Data on their way between the disk and granted pages.
///
/// # Invariants
///
/// - `words` are those of 1 to [`MAX_SEGMENTS`](crate::abi::MAX_SEGMENTS) segments, all of them valid.
/// - `extent` is as long as all of them together.
#[derive(Clone, Copy, Debug)]
pub struct Transfer<'a> {
    extent: Extent,
    words: &'a [u32],
}

/// Half of the second word of a segment means nothing.
impl PartialEq for Transfer<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.extent == other.extent && self.segments().eq(other.segments())
    }
}

impl Eq for Transfer<'_> {}

impl<'a> Transfer<'a> {
    /// Checks the segments whose words these are, at most [`MAX_INDIRECT_SEGMENTS`].
    #[inline]
    pub(crate) fn new(disk: &Disk, sector: u64, words: &'a [u32]) -> Result<Self, Reject> {
        let mut sum = Sum::new(disk, sector);
        for pair in words.chunks_exact(2) {
            if let [gref, range] = pair {
                sum.add(*gref, *range)?;
            }
        }
        // INVARIANT: All of them have just been checked.
        Ok(Transfer {
            extent: sum.finish()?,
            words,
        })
    }

    /// First sector on the disk, in units of [`SECTOR_SIZE`].
    pub const fn sector(&self) -> u64 {
        self.extent.sector()
    }

    /// Total length in sectors, 1 to 88.
    pub const fn sectors(&self) -> u32 {
        self.extent.sectors()
    }

    /// Total length in bytes, 512 to 45056.
    pub const fn bytes(&self) -> u32 {
        self.extent.bytes()
    }

    /// Number of segments, 1 to 11.
    pub const fn count(&self) -> usize {
        self.words.len() / 2
    }

    /// The pieces of memory in the order of the sectors on the disk.
    #[inline]
    pub fn segments(&self) -> impl Iterator<Item = Segment> + 'a {
        // By the invariant, no segment is left out.
        self.words.chunks_exact(2).filter_map(|pair| match pair {
            [gref, range] => Segment::decode(*gref, *range).ok(),
            _ => None,
        })
    }
}

/// A read or a write whose segments stand in granted pages: what its slot says of it.
///
/// To get at the segments, the backend reads [`Indirect::pages`], to which the frontend need not
/// have given more than read access, and passes every segment to [`Indirect::segments`].
///
/// # Invariants
///
/// - `1 <= count <= MAX_INDIRECT_SEGMENTS`.
/// - The direction is not [`Direction::Write`] if the disk is read-only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Indirect<'a> {
    direction: Direction,
    count: u16,
    sector: u64,
    grefs: &'a [u32; MAX_INDIRECT_PAGES],
    disk: &'a Disk,
}

impl<'a> Indirect<'a> {
    /// Checks what the slot says: the direction, the number of segments and the grants of their pages.
    pub(crate) fn new(
        disk: &'a Disk,
        direction: Direction,
        sector: u64,
        count: u16,
        grefs: &'a [u32; MAX_INDIRECT_PAGES],
    ) -> Result<Self, Reject> {
        if disk.readonly && direction == Direction::Write {
            return Err(Reject::ReadOnly);
        }
        check_count(count, disk.max_indirect_segments.min(MAX_INDIRECT_SEGMENTS))?;
        // INVARIANT: All of them have just been checked.
        Ok(Indirect {
            direction,
            count,
            sector,
            grefs,
            disk,
        })
    }

    /// Which way the data go.
    pub const fn direction(&self) -> Direction {
        self.direction
    }

    /// First sector on the disk, in units of [`SECTOR_SIZE`]. It need not exist:
    /// [`IndirectSegments::finish`] finds that out.
    pub const fn sector(&self) -> u64 {
        self.sector
    }

    /// Number of segments, 1 to [`MAX_INDIRECT_SEGMENTS`].
    pub const fn count(&self) -> u16 {
        self.count
    }

    /// Grant references of the pages that hold the segments, exactly as many as are needed.
    ///
    /// Each page holds [`SEGMENTS_PER_INDIRECT_PAGE`](crate::abi::SEGMENTS_PER_INDIRECT_PAGE)
    /// segments of 8 bytes, the last one what is left.
    pub fn pages(&self) -> &'a [u32] {
        self.grefs
            .get(..indirect_pages(self.count))
            .unwrap_or_default()
    }

    /// Begins to check the segments, by the disk that the request was parsed with.
    ///
    /// # Examples
    ///
    /// ```
    /// use blkif::{Extent, Indirect, Reject, Segment};
    ///
    /// /// Decodes a private copy of the pages, in words, into memory of the caller.
    /// fn decode(
    ///     indirect: &Indirect<'_>,
    ///     words: &[u32],
    ///     decoded: &mut Vec<Segment>,
    /// ) -> Result<Extent, Reject> {
    ///     let mut segments = indirect.segments();
    ///     for segment in words.chunks_exact(2).take(indirect.count().into()) {
    ///         decoded.push(segments.add(segment[0], segment[1])?);
    ///     }
    ///     segments.finish()
    /// }
    /// ```
    #[inline]
    pub const fn segments(&self) -> IndirectSegments<'a> {
        // INVARIANT: There is no segment yet.
        IndirectSegments {
            sum: Sum::new(self.disk, self.sector),
            count: self.count,
            given: 0,
        }
    }
}

/// Checks the segments of an [`Indirect`] request, one after the other. It does not store them.
///
/// # Invariants
///
/// `given` is the number of segments that [`IndirectSegments::add`] has returned;
/// `given <= count <= MAX_INDIRECT_SEGMENTS`.
#[must_use = "the request is valid only if `finish` says so"]
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndirectSegments<'a> {
    sum: Sum<'a>,
    count: u16,
    given: u16,
}

impl IndirectSegments<'_> {
    /// Checks and decodes the next segment by its two words, which the caller has read from the
    /// page once each: the grant reference, then `first_sect` and `last_sect` in the two low
    /// bytes; the others do not matter.
    ///
    /// What is returned stays within its page, but is not to be used before
    /// [`IndirectSegments::finish`] has judged the whole. A segment that is refused does not
    /// count, so that the request as a whole cannot be accepted without it.
    ///
    /// # Errors
    ///
    /// - [`Reject::SegmentRange`] if it is not a range of sectors within one page.
    /// - [`Reject::SegmentCount`] if all segments have been given already.
    #[inline]
    pub fn add(&mut self, gref: u32, sectors: u32) -> Result<Segment, Reject> {
        let given = self.given.saturating_add(1);
        if given > self.count {
            return Err(Reject::SegmentCount {
                given,
                count: self.count,
            });
        }
        let segment = self.sum.add(gref, sectors)?;
        // INVARIANT: This is one segment more, and not more than `count`.
        self.given = given;
        Ok(segment)
    }

    /// Judges the whole, when all segments have been given, and returns their place on the disk.
    ///
    /// # Errors
    ///
    /// - [`Reject::SegmentCount`] if there were fewer segments than the request has.
    /// - [`Reject::OutOfRange`] if some of the sectors do not exist.
    /// - [`Reject::Misaligned`] if the first sector, or the length of any segment, is not a whole
    ///   number of logical blocks.
    #[inline]
    pub fn finish(self) -> Result<Extent, Reject> {
        if self.given < self.count {
            return Err(Reject::SegmentCount {
                given: self.given,
                count: self.count,
            });
        }
        self.sum.finish()
    }
}

/// Checks the number of segments of a request.
#[inline]
pub(crate) fn check_count(count: u16, limit: u16) -> Result<(), Reject> {
    match count {
        0 => Err(Reject::NoSegments),
        _ if count > limit => Err(Reject::TooManySegments { count, limit }),
        _ => Ok(()),
    }
}
