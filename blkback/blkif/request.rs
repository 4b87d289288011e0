// SPDX-License-Identifier: GPL-2.0

//! Requests: what a slot says, and whether the disk can do it.
//!
//! [`parse`] is the only way from bytes that a frontend controls to a [`Request`]. What it
//! accepts needs no further check against the disk: all sectors exist, every segment lies within
//! its page, nothing is written to a read-only disk. The rules are those of the C driver
//! (`dispatch_rw_block_io()` and `xen_vbd_translate()` in
//! `drivers/block/xen-blkback/blkback.c`), apart from the differences noted at [`parse`].

use core::fmt;

use crate::{
    abi::{
        operation_name,
        Abi,
        MAX_SEGMENTS,
        OP_FLUSH_DISKCACHE,
        OP_READ,
        OP_WRITE,
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

/// Data on their way between the disk and granted pages.
///
/// # Invariants
///
/// - The first `count` segments are in use; `1 <= count <= MAX_SEGMENTS`.
/// - `sectors` is the sum of their lengths.
/// - `sector + sectors` does not exceed the size of the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    sector: u64,
    sectors: u32,
    count: u8,
    segments: [Segment; MAX_SEGMENTS],
}

impl Transfer {
    /// First sector on the disk, in units of [`SECTOR_SIZE`].
    pub const fn sector(&self) -> u64 {
        self.sector
    }

    /// Total length in sectors, 1 to 88.
    pub const fn sectors(&self) -> u32 {
        self.sectors
    }

    /// Total length in bytes, 512 to 45056.
    pub const fn bytes(&self) -> u32 {
        self.sectors.wrapping_mul(SECTOR_SIZE)
    }

    /// The pieces of memory in the order of the sectors on the disk; 1 to 11 of them.
    pub fn segments(&self) -> &[Segment] {
        self.segments
            .get(..usize::from(self.count))
            .unwrap_or_default()
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
}

/// A valid request, together with what is needed to answer it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// Identifier chosen by the frontend, without meaning to the backend; not necessarily unique.
    pub id: u64,
    /// Operation code of the request.
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
    /// `operation` of the request.
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
    /// Operation code of the request.
    pub operation: u8,
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
        write!(f, "{}: {}", operation_name(self.operation), self.why)
    }
}

/// The rule that a request has violated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reject {
    /// The operation is unknown, or was not offered to the frontend.
    UnsupportedOperation(u8),
    /// A read or a write without data.
    NoSegments,
    /// More segments than a slot has room for.
    TooManySegments(u8),
    /// Not a range of sectors within one page.
    SegmentRange {
        /// First sector in the page.
        first_sect: u8,
        /// Last sector in the page.
        last_sect: u8,
    },
    /// A write to a read-only disk.
    ReadOnly,
    /// Some of the sectors do not exist.
    OutOfRange {
        /// First sector of the request.
        sector: u64,
        /// Number of sectors of the request.
        sectors: u32,
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
            Reject::NoSegments => f.write_str("no segments"),
            Reject::TooManySegments(count) => {
                write!(f, "{count} segments, more than {MAX_SEGMENTS}")
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
        }
    }
}

/// Decodes the private copy of a request and checks it against the disk.
///
/// The field `handle`, the number of the disk, is ignored: a ring belongs to one disk.
///
/// # Differences from the C driver
///
/// - A flush is refused as not supported if it was not offered. The C driver tries it.
/// - A flush without data is accepted on a read-only disk, where it changes nothing. The C driver
///   answers it with an error.
///
/// Everything else is as there, this included: `sector_number` is not checked for a flush without
/// data; each segment, not just the total, must be as long as a whole number of logical blocks;
/// where a segment begins in its page need not be aligned to logical blocks.
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
/// let disk = Disk { sectors: 100, logical_block_size: 512, readonly: true, flush: false };
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
    let Fields { id, operation, .. } = fields;
    match fields.request(disk) {
        Ok(command) => Ok(Parsed {
            id,
            operation,
            command,
        }),
        Err(why) => Err(Rejected { id, operation, why }),
    }
}

/// The fields of `struct blkif_request` at their places, without any check.
///
/// The meaning of all but `operation` and `id` depends on the operation.
struct Fields {
    operation: u8,
    nr_segments: u8,
    id: u64,
    sector_number: u64,
    /// For each segment the grant reference, then `first_sect` and `last_sect` in the two low
    /// bytes.
    segments: [u32; 2 * MAX_SEGMENTS],
}

impl Fields {
    fn decode(abi: Abi, words: &[u32; SLOT_WORDS]) -> Fields {
        let (head, id, sector_number, segments) = match (abi, *words) {
            (Abi::X86_32, [head, id0, id1, sector0, sector1, segments @ .., _]) => {
                (head, [id0, id1], [sector0, sector1], segments)
            }
            (Abi::Native | Abi::X86_64, [head, _, id0, id1, sector0, sector1, segments @ ..]) => {
                (head, [id0, id1], [sector0, sector1], segments)
            }
        };
        let [operation, nr_segments, ..] = head.to_le_bytes();
        Fields {
            operation,
            nr_segments,
            id: join(id),
            sector_number: join(sector_number),
            segments,
        }
    }

    /// Checks what the operation needs.
    fn request(&self, disk: &Disk) -> Result<Request, Reject> {
        match self.operation {
            OP_READ => Ok(Request::Read(self.transfer(disk)?)),
            OP_WRITE => Ok(Request::Write(self.write(disk)?)),
            OP_FLUSH_DISKCACHE if disk.flush => match self.nr_segments {
                0 => Ok(Request::Flush(None)),
                _ => Ok(Request::Flush(Some(self.write(disk)?))),
            },
            operation => Err(Reject::UnsupportedOperation(operation)),
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
        let sector = self.sector_number;
        let count = self.nr_segments;
        if count == 0 {
            return Err(Reject::NoSegments);
        }
        if usize::from(count) > MAX_SEGMENTS {
            return Err(Reject::TooManySegments(count));
        }

        let mut segments = [Segment::UNUSED; MAX_SEGMENTS];
        let mut sectors = 0u32;
        let mut words = self.segments.iter().copied();
        for segment in segments.iter_mut().take(usize::from(count)) {
            if let (Some(gref), Some(range)) = (words.next(), words.next()) {
                *segment = Segment::decode(gref, range)?;
                // At most 11 times 8.
                sectors = sectors.wrapping_add(segment.sectors());
            }
        }
        // INVARIANT: `count` is in its range, and `sectors` is the sum. The size of the disk is
        // checked below, before anybody else sees the value.
        let transfer = Transfer {
            sector,
            sectors,
            count,
            segments,
        };

        match sector.checked_add(u64::from(sectors)) {
            Some(end) if end <= disk.sectors => {}
            _ => {
                return Err(Reject::OutOfRange {
                    sector,
                    sectors,
                    disk_sectors: disk.sectors,
                })
            }
        }

        let block_mask = u64::from((disk.logical_block_size / SECTOR_SIZE).saturating_sub(1));
        for segment in transfer.segments() {
            let segment_sectors = segment.sectors();
            if (sector | u64::from(segment_sectors)) & block_mask != 0 {
                return Err(Reject::Misaligned {
                    sector,
                    segment_sectors,
                    logical_block_size: disk.logical_block_size,
                });
            }
        }
        Ok(transfer)
    }
}

/// Joins the halves of a 64-bit field, low half first.
fn join([low, high]: [u32; 2]) -> u64 {
    u64::from(low) | u64::from(high) << 32
}
