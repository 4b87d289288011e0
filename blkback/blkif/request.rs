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
//! [`parse`] has checked; [`IndirectSegments`](crate::IndirectSegments) checks the rest.

use crate::{
    abi::{
        Abi,
        DISCARD_SECURE,
        MAX_INDIRECT_PAGES,
        MAX_SEGMENTS,
        OP_DISCARD,
        OP_FLUSH_DISKCACHE,
        OP_INDIRECT,
        OP_READ,
        OP_WRITE,
        OP_WRITE_BARRIER,
        SLOT_WORDS, //
    },
    disk::{
        Direction,
        DiscardOffer,
        Disk, //
    },
    response::{
        Reject,
        Rejected,
        Response,
        Status, //
    },
    ring::RawSlot,
    segment::{
        check_count,
        Indirect,
        Transfer, //
    }, //
};

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

/// A valid request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// Read from the disk into the pages.
    Read(Transfer<'a>),
    /// Write from the pages to the disk.
    Write(Transfer<'a>),
    /// Make all writes durable that have been answered before; then write the data that come
    /// along, if any. Those data themselves are not covered by the flush.
    Flush(Option<Transfer<'a>>),
    /// As [`Request::Flush`], and a place that no other request passes: what came before it, in
    /// any ring of the disk, is done before the data are written, and what comes after it
    /// begins when they are.
    Barrier(Option<Transfer<'a>>),
    /// Forget the contents of some sectors.
    Discard(Discard),
    /// Read or write; the segments are still to be checked.
    Indirect(Indirect<'a>),
}

/// A valid request, together with what is needed to answer it. It lives no longer than its slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed<'a> {
    /// Identifier chosen by the frontend, without meaning to the backend; not necessarily unique.
    pub id: u64,
    /// Operation code of the response: that of the request, or, if that is
    /// [`OP_INDIRECT`], the code of what it does indirectly (`indirect_op`).
    ///
    /// The Xen headers leave this open. The C driver answers so, and Linux's frontend takes any
    /// other answer to an indirect request for an attack, and gives the disk up.
    pub operation: u8,
    /// What to do.
    pub command: Request<'a>,
}

impl Parsed<'_> {
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
/// let segment = transfer.segments().next().unwrap();
/// assert_eq!((segment.gref(), segment.offset(), segment.len()), (8, 1024, 1024));
///
/// // The same as a write is refused, because the disk is read-only.
/// slot.words_mut()[0] |= 1;
/// let rejected = parse(Abi::X86_64, &slot, &disk).unwrap_err();
/// assert_eq!(rejected.to_string(), "write: the disk is read-only");
/// ```
#[inline]
pub fn parse<'a>(abi: Abi, slot: &'a RawSlot, disk: &'a Disk) -> Result<Parsed<'a>, Rejected> {
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
struct Fields<'a> {
    /// `operation`, and the three bytes behind it.
    head: [u8; 4],
    id: u64,
    sector_number: u64,
    /// What follows. For each segment the grant reference, then `first_sect` and `last_sect` in
    /// the two low bytes; or `nr_sectors`; or `handle` and then `indirect_grefs`.
    rest: &'a [u32; 2 * MAX_SEGMENTS],
}

impl<'a> Fields<'a> {
    #[inline]
    fn decode(abi: Abi, words: &'a [u32; SLOT_WORDS]) -> Self {
        let (head, id, sector_number, rest) = match (abi, words) {
            (Abi::X86_32, [head, id0, id1, sector0, sector1, rest @ .., _]) => {
                (head, [*id0, *id1], [*sector0, *sector1], rest)
            }
            (Abi::Native | Abi::X86_64, [head, _, id0, id1, sector0, sector1, rest @ ..]) => {
                (head, [*id0, *id1], [*sector0, *sector1], rest)
            }
        };
        Fields {
            head: head.to_le_bytes(),
            id: join(id),
            sector_number: join(sector_number),
            rest,
        }
    }

    #[inline]
    fn operation(&self) -> u8 {
        let [operation, ..] = self.head;
        operation
    }

    /// `nr_segments` of a request that has its segments in the slot.
    #[inline]
    fn nr_segments(&self) -> u8 {
        let [_, nr_segments, ..] = self.head;
        nr_segments
    }

    /// The operation code of the response.
    #[inline]
    fn answered_operation(&self) -> u8 {
        match self.head {
            [OP_INDIRECT, indirect_op, ..] => indirect_op,
            [operation, ..] => operation,
        }
    }

    /// Checks what the operation needs.
    #[inline]
    fn request(&self, disk: &'a Disk) -> Result<Request<'a>, Reject> {
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
    #[inline]
    fn write_if_any(&self, disk: &Disk) -> Result<Option<Transfer<'a>>, Reject> {
        match self.nr_segments() {
            0 => Ok(None),
            _ => self.write(disk).map(Some),
        }
    }

    /// Checks a transfer that changes the disk.
    #[inline]
    fn write(&self, disk: &Disk) -> Result<Transfer<'a>, Reject> {
        if disk.readonly {
            return Err(Reject::ReadOnly);
        }
        self.transfer(disk)
    }

    /// Checks a transfer in either direction.
    #[inline]
    fn transfer(&self, disk: &Disk) -> Result<Transfer<'a>, Reject> {
        let count = self.nr_segments();
        check_count(u16::from(count), MAX_SEGMENTS as u16)?;

        let words = self.rest.get(..usize::from(count).wrapping_mul(2));
        Transfer::new(disk, self.sector_number, words.unwrap_or_default())
    }

    /// Checks a discard.
    fn discard(&self, disk: &Disk, offer: DiscardOffer) -> Result<Discard, Reject> {
        let [_, flag, ..] = self.head;
        let [sectors0, sectors1, ..] = *self.rest;
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
    fn indirect(&self, disk: &'a Disk) -> Result<Indirect<'a>, Reject> {
        let [_, indirect_op, count0, count1] = self.head;
        let direction = match indirect_op {
            OP_READ => Direction::Read,
            OP_WRITE => Direction::Write,
            _ => return Err(Reject::IndirectOperation(indirect_op)),
        };
        let Some((_, rest)) = self.rest.split_first() else {
            return Err(Reject::NoSegments);
        };
        let Some(grefs) = rest.first_chunk::<MAX_INDIRECT_PAGES>() else {
            return Err(Reject::NoSegments);
        };
        let count = u16::from_le_bytes([count0, count1]);
        Indirect::new(disk, direction, self.sector_number, count, grefs)
    }
}

/// Joins the halves of a 64-bit field, low half first.
fn join([low, high]: [u32; 2]) -> u64 {
    u64::from(low) | u64::from(high) << 32
}
