// SPDX-License-Identifier: GPL-2.0

//! Requests: what a slot says, and whether the disk can do it.
//!
//! [`parse`] is the only way from bytes that a frontend controls to a [`Request`]. What it
//! accepts needs no further check against the disk: all sectors exist, every segment lies within
//! its page, nothing is written to a read-only disk. The rules are those of the C driver
//! (`dispatch_rw_block_io()`, `dispatch_discard_io()`, `xen_blkbk_parse_indirect()` and
//! `xen_vbd_translate()` in `drivers/block/xen-blkback/blkback.c`), apart from the differences
//! noted at [`parse`].
//!
//! The segments of an indirect request are not in its slot. What can be checked without them,
//! [`parse`] has checked; [`IndirectSegments`] checks the rest.

use core::fmt;

use crate::{
    abi::{
        indirect_pages,
        operation_name,
        Abi,
        DISCARD_SECURE,
        MAX_INDIRECT_PAGES,
        MAX_INDIRECT_SEGMENTS,
        MAX_SEGMENTS,
        OP_DISCARD,
        OP_FLUSH_DISKCACHE,
        OP_INDIRECT,
        OP_READ,
        OP_WRITE,
        OP_WRITE_BARRIER,
        SECTORS_PER_PAGE,
        SECTOR_SIZE, //
    },
    ring::{
        RawSlot,
        RESPONSE_WORDS,
        SLOT_WORDS, //
    }, //
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
    /// Whether a position or a length, in sectors, is a whole number of logical blocks.
    const fn is_aligned(&self, sectors: u64) -> bool {
        let block_sectors = (self.logical_block_size / SECTOR_SIZE) as u64;
        sectors & block_sectors.saturating_sub(1) == 0
    }

    /// Checks that a range of sectors exists.
    fn check_range(&self, sector: u64, sectors: u64) -> Result<(), Reject> {
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
    /// Stands in the unused places of a [`Transfer`].
    // INVARIANT: 0 <= 0 < 8.
    const UNUSED: Segment = Segment {
        gref: 0,
        first_sect: 0,
        last_sect: 0,
    };

    /// Checks and decodes the two words of a segment.
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
struct Sum {
    disk: Disk,
    sector: u64,
    sectors: u32,
    misaligned: Option<u32>,
}

impl Sum {
    /// Begins with no segment, at a sector of the disk.
    const fn new(disk: &Disk, sector: u64) -> Sum {
        // INVARIANT: There is no segment yet.
        Sum {
            disk: *disk,
            sector,
            sectors: 0,
            misaligned: None,
        }
    }

    /// Decodes the next segment. At most [`MAX_INDIRECT_SEGMENTS`] times.
    fn add(&mut self, gref: u32, range: u32) -> Result<Segment, Reject> {
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
    fn finish(self) -> Result<Extent, Reject> {
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
/// - The first `count` segments are in use; `1 <= count <= MAX_SEGMENTS`.
/// - `extent` is as long as all of them together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    extent: Extent,
    count: u8,
    segments: [Segment; MAX_SEGMENTS],
}

impl Transfer {
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

    /// The pieces of memory in the order of the sectors on the disk; 1 to 11 of them.
    pub fn segments(&self) -> &[Segment] {
        self.segments
            .get(..usize::from(self.count))
            .unwrap_or_default()
    }
}

/// Sectors whose contents are no longer needed.
///
/// # Invariants
///
/// - `sector + sectors` does not exceed the size of the disk.
/// - `sector` and `sectors` are whole numbers of logical blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Discard {
    sector: u64,
    sectors: u64,
    secure: bool,
}

impl Discard {
    /// First sector on the disk, in units of [`SECTOR_SIZE`]; 0 if there are none.
    pub const fn sector(&self) -> u64 {
        self.sector
    }

    /// Number of sectors. It may be 0: then there is nothing to do, and the request is done.
    ///
    /// Only the size of the disk limits it, so that a length in bytes needs more than 32 bits.
    pub const fn sectors(&self) -> u64 {
        self.sectors
    }

    /// No copy of the data may be recoverable when the request is answered. Only where
    /// [`DiscardOffer::secure`] was offered.
    pub const fn secure(&self) -> bool {
        self.secure
    }
}

/// Which way data go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the disk into the pages.
    Read,
    /// From the pages to the disk.
    Write,
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
pub struct Indirect {
    direction: Direction,
    count: u16,
    sector: u64,
    grefs: [u32; MAX_INDIRECT_PAGES],
    disk: Disk,
}

impl Indirect {
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
    pub fn pages(&self) -> &[u32] {
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
    ///     indirect: &Indirect,
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
    pub const fn segments(&self) -> IndirectSegments {
        // INVARIANT: There is no segment yet.
        IndirectSegments {
            sum: Sum::new(&self.disk, self.sector),
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
pub struct IndirectSegments {
    sum: Sum,
    count: u16,
    given: u16,
}

impl IndirectSegments {
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

/// A valid request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Read from the disk into the pages.
    Read(Transfer),
    /// Write from the pages to the disk.
    Write(Transfer),
    /// Make all writes durable that have been answered before; then write the data that come
    /// along, if any. Those data themselves are not covered by the flush.
    Flush(Option<Transfer>),
    /// As [`Request::Flush`], and a place that no other request passes: what came before it, in
    /// any ring of the disk, is done before the data are written, and what comes after it
    /// begins when they are.
    Barrier(Option<Transfer>),
    /// Forget the contents of some sectors.
    Discard(Discard),
    /// Read or write; the segments are still to be checked.
    Indirect(Indirect),
}

/// A valid request, together with what is needed to answer it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// Identifier chosen by the frontend, without meaning to the backend; not necessarily unique.
    pub id: u64,
    /// Operation code of the response: that of the request, or, if that is
    /// [`OP_INDIRECT`], the code of what it does indirectly (`indirect_op`).
    ///
    /// The Xen headers leave this open. The C driver answers so, and Linux's frontend takes any
    /// other answer to an indirect request for an attack, and gives the disk up.
    pub operation: u8,
    /// What to do.
    pub command: Request,
}

impl Parsed {
    /// Builds the response to this request.
    pub const fn response(&self, status: Status) -> Response {
        Response {
            id: self.id,
            operation: self.operation,
            status,
        }
    }

    /// Refuses this request after all, for what was found out about its indirect segments.
    pub const fn reject(&self, why: Reject) -> Rejected {
        Rejected {
            id: self.id,
            operation: self.operation,
            indirect: matches!(self.command, Request::Indirect(_)),
            why,
        }
    }
}

/// The result of a request as the frontend gets to see it (`BLKIF_RSP_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i16)]
pub enum Status {
    /// Done (`BLKIF_RSP_OKAY`).
    Okay = 0,
    /// Failed; the protocol knows no reasons (`BLKIF_RSP_ERROR`).
    Error = -1,
    /// The backend does not do such requests (`BLKIF_RSP_EOPNOTSUPP`).
    NotSupported = -2,
}

/// The answer to one request (`struct blkif_response`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Response {
    /// `id` of the request.
    pub id: u64,
    /// `operation` of the request; see [`Parsed::operation`] for indirect ones.
    pub operation: u8,
    /// Result.
    pub status: Status,
}

impl Response {
    /// Lays the response out for the ring: `id` in 8 bytes, `operation` in one, one of padding,
    /// `status` in two. The layout is the same for every [`Abi`].
    pub const fn words(&self) -> [u32; RESPONSE_WORDS] {
        let [id0, id1, id2, id3, id4, id5, id6, id7] = self.id.to_le_bytes();
        let [status0, status1] = (self.status as i16).to_le_bytes();
        [
            u32::from_le_bytes([id0, id1, id2, id3]),
            u32::from_le_bytes([id4, id5, id6, id7]),
            u32::from_le_bytes([self.operation, 0, status0, status1]),
        ]
    }
}

/// A request that was found invalid. It is answered by [`Rejected::response`] at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rejected {
    /// Identifier chosen by the frontend.
    pub id: u64,
    /// Operation code of the response, as [`Parsed::operation`].
    pub operation: u8,
    /// The operation code of the request was [`OP_INDIRECT`].
    pub indirect: bool,
    /// The rule that was violated.
    pub why: Reject,
}

impl Rejected {
    /// Builds the response to this request.
    pub const fn response(&self) -> Response {
        Response {
            id: self.id,
            operation: self.operation,
            status: self.why.status(),
        }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.indirect {
            f.write_str("indirect ")?;
        }
        write!(f, "{}: {}", operation_name(self.operation), self.why)
    }
}

/// The rule that a request has violated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reject {
    /// The operation is unknown, or was not offered to the frontend.
    UnsupportedOperation(u8),
    /// What an indirect request does is neither a read nor a write.
    IndirectOperation(u8),
    /// A read or a write without data.
    NoSegments,
    /// More segments than a slot has room for, or than were offered for an indirect request.
    TooManySegments {
        /// Number of segments of the request.
        count: u16,
        /// Largest number that it may have.
        limit: u16,
    },
    /// The backend has not passed as many indirect segments on as the request has: its own
    /// mistake.
    SegmentCount {
        /// Number of segments that were given.
        given: u16,
        /// Number of segments of the request.
        count: u16,
    },
    /// Not a range of sectors within one page.
    SegmentRange {
        /// First sector in the page.
        first_sect: u8,
        /// Last sector in the page.
        last_sect: u8,
    },
    /// A write to a read-only disk, or a discard there.
    ReadOnly,
    /// Some of the sectors do not exist.
    OutOfRange {
        /// First sector of the request.
        sector: u64,
        /// Number of sectors of the request.
        sectors: u64,
        /// Number of sectors of the disk.
        disk_sectors: u64,
    },
    /// The first sector, or the length of a segment, is not a multiple of the logical block
    /// size.
    Misaligned {
        /// First sector of the request.
        sector: u64,
        /// Number of sectors of the segment.
        segment_sectors: u32,
        /// Logical block size of the disk in bytes.
        logical_block_size: u32,
    },
    /// The range of a discard does not consist of whole logical blocks.
    MisalignedDiscard {
        /// First sector of the request.
        sector: u64,
        /// Number of sectors of the request.
        sectors: u64,
        /// Logical block size of the disk in bytes.
        logical_block_size: u32,
    },
}

impl Reject {
    /// The status that the frontend gets.
    pub const fn status(self) -> Status {
        match self {
            Reject::UnsupportedOperation(_) => Status::NotSupported,
            _ => Status::Error,
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Reject::UnsupportedOperation(operation) => {
                write!(f, "operation {operation} is not supported")
            }
            Reject::IndirectOperation(operation) => {
                write!(f, "operation {operation} is neither a read nor a write")
            }
            Reject::NoSegments => f.write_str("no segments"),
            Reject::TooManySegments { count, limit } => {
                write!(f, "{count} segments, more than {limit}")
            }
            Reject::SegmentCount { given, count } => {
                write!(f, "the backend has read {given} segments of {count}")
            }
            Reject::SegmentRange {
                first_sect,
                last_sect,
            } => write!(
                f,
                "segment from sector {first_sect} to {last_sect} of a page"
            ),
            Reject::ReadOnly => f.write_str("the disk is read-only"),
            Reject::OutOfRange {
                sector,
                sectors,
                disk_sectors,
            } => write!(
                f,
                "{sectors} sectors from {sector} on a disk of {disk_sectors}"
            ),
            Reject::Misaligned {
                sector,
                segment_sectors,
                logical_block_size,
            } => write!(
                f,
                "sector {sector}, segment of {segment_sectors} sectors, \
                 not in blocks of {logical_block_size} bytes"
            ),
            Reject::MisalignedDiscard {
                sector,
                sectors,
                logical_block_size,
            } => write!(
                f,
                "{sectors} sectors from {sector}, not in blocks of {logical_block_size} bytes"
            ),
        }
    }
}

/// Decodes the private copy of a request and checks it against the disk.
///
/// The field `handle`, the number of the disk, is ignored: a ring belongs to one disk.
///
/// # Differences from the C driver
///
/// - A flush, a barrier, a discard or an indirect request is refused as not supported if it was
///   not offered. The C driver tries it, and answers a discard that the disk does not do as done.
/// - A flush or a barrier without data is accepted on a read-only disk, where it changes nothing.
///   The C driver answers it with an error.
/// - The range of a discard must consist of whole logical blocks. The C driver leaves that to the
///   disk; a file would set parts of a block to zero.
///
/// Everything else is as there, this included: `sector_number` is not checked for a flush or a
/// barrier without data; each segment, not just the total, must be as long as a whole number of
/// logical blocks; where a segment begins in its page need not be aligned to logical blocks; a
/// discard of no sectors is accepted, wherever it is; [`DISCARD_SECURE`] is ignored if it was not
/// offered, as the Xen headers want it; an indirect request may have fewer segments than would
/// fit into a slot, and is answered as [`Parsed::operation`] says.
///
/// # Errors
///
/// [`Rejected`], which names the first rule that the request violates.
///
/// # Examples
///
/// A frontend asks for the sectors 2 and 3, to be stored from byte 1024 of the page with the
/// grant reference 8:
///
/// ```
/// use blkif::{parse, Abi, Disk, RawSlot, Request};
///
/// let disk = Disk {
///     sectors: 100,
///     logical_block_size: 512,
///     readonly: true,
///     flush: false,
///     barrier: false,
///     discard: None,
///     max_indirect_segments: 0,
/// };
/// let mut slot = RawSlot::new();
/// slot.words_mut()[..8].copy_from_slice(&[
///     0x0000_01_00, // operation 0, 1 segment
///     0,            // padding
///     77, 0,        // id
///     2, 0,         // sector_number
///     8,            // seg[0].gref
///     0x03_02,      // seg[0].first_sect, seg[0].last_sect
/// ]);
///
/// let parsed = parse(Abi::X86_64, &slot, &disk).unwrap();
/// assert_eq!(parsed.id, 77);
/// let Request::Read(transfer) = parsed.command else { panic!() };
/// assert_eq!((transfer.sector(), transfer.bytes()), (2, 1024));
/// let [segment] = transfer.segments() else { panic!() };
/// assert_eq!((segment.gref(), segment.offset(), segment.len()), (8, 1024, 1024));
///
/// // The same as a write is refused, because the disk is read-only.
/// slot.words_mut()[0] |= 1;
/// let rejected = parse(Abi::X86_64, &slot, &disk).unwrap_err();
/// assert_eq!(rejected.to_string(), "write: the disk is read-only");
/// ```
pub fn parse(abi: Abi, slot: &RawSlot, disk: &Disk) -> Result<Parsed, Rejected> {
    let fields = Fields::decode(abi, slot.words());
    let indirect = fields.operation() == OP_INDIRECT;
    let (id, operation) = (fields.id, fields.answered_operation());
    match fields.request(disk) {
        Ok(command) => Ok(Parsed {
            id,
            operation,
            command,
        }),
        Err(why) => Err(Rejected {
            id,
            operation,
            indirect,
            why,
        }),
    }
}

/// The fields of a request at their places, without any check.
///
/// They are those of `struct blkif_request`, `struct blkif_request_discard` and
/// `struct blkif_request_indirect` at the same time: in every layout, all three begin alike.
/// The meaning of all but the operation and `id` depends on the operation.
struct Fields {
    /// `operation`, and the three bytes behind it.
    head: [u8; 4],
    id: u64,
    sector_number: u64,
    /// What follows. For each segment the grant reference, then `first_sect` and `last_sect` in
    /// the two low bytes; or `nr_sectors`; or `handle` and then `indirect_grefs`.
    rest: [u32; 2 * MAX_SEGMENTS],
}

impl Fields {
    fn decode(abi: Abi, words: &[u32; SLOT_WORDS]) -> Fields {
        let (head, id, sector_number, rest) = match (abi, *words) {
            (Abi::X86_32, [head, id0, id1, sector0, sector1, rest @ .., _]) => {
                (head, [id0, id1], [sector0, sector1], rest)
            }
            (Abi::Native | Abi::X86_64, [head, _, id0, id1, sector0, sector1, rest @ ..]) => {
                (head, [id0, id1], [sector0, sector1], rest)
            }
        };
        Fields {
            head: head.to_le_bytes(),
            id: join(id),
            sector_number: join(sector_number),
            rest,
        }
    }

    fn operation(&self) -> u8 {
        let [operation, ..] = self.head;
        operation
    }

    /// `nr_segments` of a request that has its segments in the slot.
    fn nr_segments(&self) -> u8 {
        let [_, nr_segments, ..] = self.head;
        nr_segments
    }

    /// The operation code of the response.
    fn answered_operation(&self) -> u8 {
        match self.head {
            [OP_INDIRECT, indirect_op, ..] => indirect_op,
            [operation, ..] => operation,
        }
    }

    /// Checks what the operation needs.
    fn request(&self, disk: &Disk) -> Result<Request, Reject> {
        match (self.operation(), disk.discard) {
            (OP_READ, _) => Ok(Request::Read(self.transfer(disk)?)),
            (OP_WRITE, _) => Ok(Request::Write(self.write(disk)?)),
            (OP_FLUSH_DISKCACHE, _) if disk.flush => Ok(Request::Flush(self.write_if_any(disk)?)),
            (OP_WRITE_BARRIER, _) if disk.barrier => Ok(Request::Barrier(self.write_if_any(disk)?)),
            (OP_DISCARD, Some(offer)) => Ok(Request::Discard(self.discard(disk, offer)?)),
            (OP_INDIRECT, _) if disk.max_indirect_segments > 0 => {
                Ok(Request::Indirect(self.indirect(disk)?))
            }
            (operation, _) => Err(Reject::UnsupportedOperation(operation)),
        }
    }

    /// Checks a transfer that changes the disk, and that need not have any data.
    fn write_if_any(&self, disk: &Disk) -> Result<Option<Transfer>, Reject> {
        match self.nr_segments() {
            0 => Ok(None),
            _ => self.write(disk).map(Some),
        }
    }

    /// Checks a transfer that changes the disk.
    fn write(&self, disk: &Disk) -> Result<Transfer, Reject> {
        if disk.readonly {
            return Err(Reject::ReadOnly);
        }
        self.transfer(disk)
    }

    /// Checks a transfer in either direction.
    fn transfer(&self, disk: &Disk) -> Result<Transfer, Reject> {
        let count = self.nr_segments();
        check_count(u16::from(count), MAX_SEGMENTS as u16)?;

        let mut segments = [Segment::UNUSED; MAX_SEGMENTS];
        let mut sum = Sum::new(disk, self.sector_number);
        let mut words = self.rest.iter().copied();
        for segment in segments.iter_mut().take(usize::from(count)) {
            if let (Some(gref), Some(range)) = (words.next(), words.next()) {
                *segment = sum.add(gref, range)?;
            }
        }
        // INVARIANT: `count` is in its range, and `extent` is the sum of so many segments.
        Ok(Transfer {
            extent: sum.finish()?,
            count,
            segments,
        })
    }

    /// Checks a discard.
    fn discard(&self, disk: &Disk, offer: DiscardOffer) -> Result<Discard, Reject> {
        let [_, flag, ..] = self.head;
        let [sectors0, sectors1, ..] = self.rest;
        let (sector, sectors) = (self.sector_number, join([sectors0, sectors1]));
        let secure = offer.secure && flag & DISCARD_SECURE != 0;
        if disk.readonly {
            return Err(Reject::ReadOnly);
        }
        if sectors == 0 {
            // As in the C driver: there is no sector that could be a wrong one, and the block
            // layer does nothing, successfully.
            // INVARIANT: No range at sector 0 is within any disk, and aligned.
            return Ok(Discard {
                sector: 0,
                sectors,
                secure,
            });
        }
        disk.check_range(sector, sectors)?;
        if !disk.is_aligned(sector | sectors) {
            return Err(Reject::MisalignedDiscard {
                sector,
                sectors,
                logical_block_size: disk.logical_block_size,
            });
        }
        // INVARIANT: Both have just been checked.
        Ok(Discard {
            sector,
            sectors,
            secure,
        })
    }

    /// Checks as much of an indirect request as stands in the slot.
    fn indirect(&self, disk: &Disk) -> Result<Indirect, Reject> {
        let [_, indirect_op, count0, count1] = self.head;
        let [_, g0, g1, g2, g3, g4, g5, g6, g7, ..] = self.rest;
        let direction = match indirect_op {
            OP_READ => Direction::Read,
            OP_WRITE => Direction::Write,
            _ => return Err(Reject::IndirectOperation(indirect_op)),
        };
        if disk.readonly && direction == Direction::Write {
            return Err(Reject::ReadOnly);
        }
        let count = u16::from_le_bytes([count0, count1]);
        check_count(count, disk.max_indirect_segments.min(MAX_INDIRECT_SEGMENTS))?;
        // INVARIANT: All of them have just been checked.
        Ok(Indirect {
            direction,
            count,
            sector: self.sector_number,
            grefs: [g0, g1, g2, g3, g4, g5, g6, g7],
            disk: *disk,
        })
    }
}

/// Checks the number of segments of a request.
fn check_count(count: u16, limit: u16) -> Result<(), Reject> {
    match count {
        0 => Err(Reject::NoSegments),
        _ if count > limit => Err(Reject::TooManySegments { count, limit }),
        _ => Ok(()),
    }
}

/// Joins the halves of a 64-bit field, low half first.
fn join([low, high]: [u32; 2]) -> u64 {
    u64::from(low) | u64::from(high) << 32
}
