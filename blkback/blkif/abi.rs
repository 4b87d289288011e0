// SPDX-License-Identifier: GPL-2.0

//! Numbers and layouts that frontend and backend have agreed on.
//!
//! The values of the constants come from `xen/include/public/io/blkif.h` and
//! `xen/include/public/io/ring.h`. The Xen headers describe structures for the machine that
//! compiles them. A backend also has to understand frontends compiled for another machine, which
//! is what [`Abi`] is for; Linux has the same layouts in `drivers/block/xen-blkback/common.h`.

use core::fmt;

/// Size of the page that one grant reference stands for, in bytes (`XEN_PAGE_SIZE`).
///
/// It is 4 KiB for every Xen interface, whatever page size a guest uses internally.
pub const PAGE_SIZE: u32 = 4096;

/// Unit of every sector number and sector count of the protocol, in bytes.
///
/// It does not depend on the logical block size of the disk.
pub const SECTOR_SIZE: u32 = 512;

/// Number of sectors in one page; `first_sect` and `last_sect` of a segment stay below it.
pub const SECTORS_PER_PAGE: u8 = 8;

/// Size of a [`RawSlot`](crate::RawSlot) in 32-bit words: the largest request of all layouts.
pub const SLOT_WORDS: usize = 28;

/// Number of 32-bit words of a response that hold its fields, in every layout.
pub const RESPONSE_WORDS: usize = 3;

/// Bytes of a shared ring in front of its first slot (`offsetof(struct blkif_sring, ring)`).
///
/// They hold, as `u32` each, `req_prod`, `req_event`, `rsp_prod` and `rsp_event` in this order
/// (see [`REQ_PROD_OFFSET`] and the following constants), and then 48 bytes that are not ours.
pub const RING_HEADER_SIZE: usize = 64;

/// Byte offset of `req_prod` in the ring header; written by the frontend.
pub const REQ_PROD_OFFSET: usize = 0;

/// Byte offset of `req_event` in the ring header; written by the backend.
pub const REQ_EVENT_OFFSET: usize = 4;

/// Byte offset of `rsp_prod` in the ring header; written by the backend.
pub const RSP_PROD_OFFSET: usize = 8;

/// Byte offset of `rsp_event` in the ring header; written by the frontend.
pub const RSP_EVENT_OFFSET: usize = 12;

/// Most segments that a request carries in its own ring slot (`BLKIF_MAX_SEGMENTS_PER_REQUEST`).
pub const MAX_SEGMENTS: usize = 11;

/// Most segments that an indirect request may have with this backend, whatever is offered.
///
/// The protocol would allow [`MAX_INDIRECT_PAGES`] times [`SEGMENTS_PER_INDIRECT_PAGE`], that is
/// 4096. The C driver offers 256 (`MAX_INDIRECT_SEGMENTS` in
/// `drivers/block/xen-blkback/common.h`), which is 1 MiB of data.
pub const MAX_INDIRECT_SEGMENTS: u16 = 256;

/// Number of grant references for pages of segments in the slot of an indirect request
/// (`BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`).
pub const MAX_INDIRECT_PAGES: usize = 8;

/// Number of segments in one page of segments: [`PAGE_SIZE`] divided by the 8 bytes of
/// `struct blkif_request_segment`.
pub const SEGMENTS_PER_INDIRECT_PAGE: u16 = 512;

// The slot has room for the pages of every request that is accepted.
const _: () = assert!(indirect_pages(MAX_INDIRECT_SEGMENTS) <= MAX_INDIRECT_PAGES);

/// Number of pages that hold this many segments, rounded up; 0 to 128.
///
/// # Examples
///
/// ```
/// use blkif::abi::indirect_pages;
///
/// assert_eq!(indirect_pages(512), 1);
/// assert_eq!(indirect_pages(513), 2);
/// ```
#[must_use]
pub const fn indirect_pages(segments: u16) -> usize {
    segments.div_ceil(SEGMENTS_PER_INDIRECT_PAGE) as usize
}

/// Bit of the field `flag` of a discard: nothing may be able to recover the data afterwards
/// (`BLKIF_DISCARD_SECURE`).
///
/// Ignored where the backend has not written `discard-secure` as 1. The other bits have no
/// meaning.
pub const DISCARD_SECURE: u8 = 1 << 0;

/// Read sectors into the granted pages (`BLKIF_OP_READ`).
pub const OP_READ: u8 = 0;

/// Write sectors from the granted pages (`BLKIF_OP_WRITE`).
pub const OP_WRITE: u8 = 1;

/// Write that no other write may pass in either direction (`BLKIF_OP_WRITE_BARRIER`).
///
/// Only to be used where the backend has written `feature-barrier`.
pub const OP_WRITE_BARRIER: u8 = 2;

/// Make completed writes durable (`BLKIF_OP_FLUSH_DISKCACHE`).
///
/// Only to be used where the backend has written `feature-flush-cache`.
pub const OP_FLUSH_DISKCACHE: u8 = 3;

/// The contents of a range of sectors are no longer needed (`BLKIF_OP_DISCARD`).
///
/// Only to be used where the backend has written `feature-discard`.
pub const OP_DISCARD: u8 = 5;

/// Read or write whose segments stand in granted pages (`BLKIF_OP_INDIRECT`).
///
/// Only to be used where the backend has written `feature-max-indirect-segments`. The response
/// does not carry this code, see [`Parsed::operation`](crate::Parsed::operation).
pub const OP_INDIRECT: u8 = 6;

/// Name of an operation for log messages.
pub const fn operation_name(operation: u8) -> &'static str {
    match operation {
        OP_READ => "read",
        OP_WRITE => "write",
        OP_WRITE_BARRIER => "write barrier",
        OP_FLUSH_DISKCACHE => "flush",
        OP_DISCARD => "discard",
        OP_INDIRECT => "indirect",
        _ => "unknown",
    }
}

/// The layout that a frontend uses on its rings.
///
/// There are only two: i386 aligns 64-bit integers to 4 bytes, so that `id` of a request follows
/// the first four bytes directly, and everything behind it moves up; 64-bit machines align them
/// to 8 bytes. See the table in the [crate documentation](crate).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Abi {
    /// The frontend uses the layout that the backend itself was compiled for.
    ///
    /// The driver exists for x86_64 only, so this is the layout of [`Abi::X86_64`].
    Native,
    /// The frontend was compiled for i386.
    X86_32,
    /// The frontend was compiled for x86_64.
    X86_64,
}

impl Abi {
    /// Chooses the layout by the value of the frontend's xenstore node `protocol`.
    ///
    /// `None` stands for a missing node. As in the C driver, a missing or empty node means
    /// [`Abi::X86_32`] (`BLKIF_PROTOCOL_DEFAULT`): frontends older than the node were compiled
    /// for i386. `x86_64-abi` gives [`Abi::Native`], again as there.
    ///
    /// The C driver reads the node with the format `%63s`, hence white space before the name is
    /// skipped, and the name ends at the next white space, at a NUL, or after 63 bytes. This
    /// function does the same.
    ///
    /// # Errors
    ///
    /// [`UnknownProtocol`] if the node names any other layout, or holds nothing but white space.
    ///
    /// # Examples
    ///
    /// ```
    /// use blkif::abi::{Abi, UnknownProtocol};
    ///
    /// assert_eq!(Abi::from_node(None), Ok(Abi::X86_32));
    /// assert_eq!(Abi::from_node(Some(b"x86_64-abi\n")), Ok(Abi::Native));
    /// assert_eq!(Abi::from_node(Some(b"arm-abi")), Err(UnknownProtocol));
    /// ```
    pub fn from_node(protocol: Option<&[u8]>) -> Result<Abi, UnknownProtocol> {
        let mut value = protocol
            .unwrap_or_default()
            .split(|&byte| byte == 0)
            .next()
            .unwrap_or_default();
        if value.is_empty() {
            return Ok(Abi::X86_32);
        }
        while let [first, rest @ ..] = value {
            if !is_space(*first) {
                break;
            }
            value = rest;
        }
        let name = value
            .split(|&byte| is_space(byte))
            .next()
            .unwrap_or_default();
        [Abi::Native, Abi::X86_32]
            .into_iter()
            .find(|abi| abi.name().as_bytes() == name)
            .ok_or(UnknownProtocol)
    }

    /// Value of the xenstore node `protocol` that stands for this layout
    /// (`XEN_IO_PROTO_ABI_*` in `xen/include/public/io/protocols.h`).
    pub const fn name(self) -> &'static str {
        match self {
            Abi::X86_32 => "x86_32-abi",
            Abi::Native | Abi::X86_64 => "x86_64-abi",
        }
    }

    /// Size of `struct blkif_request`, in bytes.
    pub const fn request_size(self) -> usize {
        match self {
            Abi::X86_32 => 108,
            Abi::Native | Abi::X86_64 => 112,
        }
    }

    /// Size of `struct blkif_response`, in bytes.
    ///
    /// The fields take 12 bytes in every layout; 64-bit machines add 4 bytes of padding.
    pub const fn response_size(self) -> usize {
        match self {
            Abi::X86_32 => 12,
            Abi::Native | Abi::X86_64 => 16,
        }
    }

    /// Distance from one ring slot to the next, in bytes (`union blkif_sring_entry`).
    ///
    /// A slot holds first a request and later a response, so that it is as large as the larger
    /// of both, which is the request.
    pub const fn slot_size(self) -> usize {
        self.request_size()
    }

    /// Number of slots of a ring that occupies `ring_bytes` bytes, header included.
    ///
    /// This is `__RING_SIZE` of `ring.h`: as many slots as fit, rounded down to a power of two.
    /// The result is 0 if not even one slot fits.
    ///
    /// # Examples
    ///
    /// ```
    /// use blkif::abi::Abi;
    ///
    /// assert_eq!(Abi::X86_64.ring_entries(4096), 32);
    /// assert_eq!(Abi::X86_64.ring_entries(4096 << 4), 512);
    /// ```
    pub const fn ring_entries(self, ring_bytes: usize) -> u32 {
        let space = ring_bytes.saturating_sub(RING_HEADER_SIZE);
        // Each divisor is a constant on purpose: dividing by a variable comes with a panic.
        let fit = match self {
            Abi::X86_32 => space / Abi::X86_32.slot_size(),
            Abi::Native | Abi::X86_64 => space / Abi::X86_64.slot_size(),
        };
        match fit.checked_ilog2() {
            // Far beyond any ring: keep the count of slots, and twice that, in 32 bits.
            Some(30..) => 1 << 30,
            Some(log2) => 1u32.wrapping_shl(log2),
            None => 0,
        }
    }
}

/// What the kernel's `isspace()` takes for white space: ASCII's six, and Latin-1's no-break space.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0xa0)
}

/// The frontend's `protocol` node names a layout that this backend does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownProtocol;

impl fmt::Display for UnknownProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "unknown protocol (known are {} and {})",
            Abi::X86_32.name(),
            Abi::X86_64.name()
        )
    }
}
