// SPDX-License-Identifier: GPL-2.0

//! Responses, and the reasons for which a request is refused.

use core::fmt;

use crate::abi::{
    operation_name,
    RESPONSE_WORDS, //
};

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
    #[inline]
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
