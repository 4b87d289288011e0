// SPDX-License-Identifier: GPL-2.0

//! Requests as they lie in a ring slot, in every layout, valid or not.
//!
//! What the layouts have in common is laid out once: behind the first word, `x86_64` has four bytes of padding that
//! `x86_32` has not, and everything else follows in the same order.

use blkif::abi::{Abi, MAX_SEGMENTS, OP_DISCARD, OP_INDIRECT};
use blkif::RawSlot;

/// Most pages of segments that an indirect request names (`BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`).
pub const MAX_INDIRECT_PAGES: usize = 8;
/// Bytes of a segment, in a slot and in a page of segments.
pub const SEGMENT_SIZE: usize = 8;
/// Segments in a page of segments.
pub const SEGMENTS_PER_INDIRECT_PAGE: usize = crate::sys::PAGE / SEGMENT_SIZE;

/// A segment as the frontend writes it; nothing about it has to make sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Grant reference of the page.
    pub gref: u32,
    /// First sector in the page.
    pub first: u8,
    /// Last sector in the page.
    pub last: u8,
}

impl Segment {
    /// The two words of the segment.
    pub fn words(self) -> [u32; 2] {
        [
            self.gref,
            u32::from(self.first) | (u32::from(self.last) << 8),
        ]
    }

    /// The eight bytes of the segment, for a page of segments.
    pub fn bytes(self) -> [u8; SEGMENT_SIZE] {
        let [gref, range] = self.words();
        (u64::from(gref) | (u64::from(range) << 32)).to_le_bytes()
    }
}

/// What all requests have.
#[derive(Clone, Copy, Debug)]
pub struct Common {
    /// Repeated in the response.
    pub id: u64,
    /// First sector on the disk.
    pub sector: u64,
    /// Number of the disk, which backends ignore.
    pub handle: u16,
}

/// Index of the first word of `id`.
fn id_word(abi: Abi) -> usize {
    match abi {
        Abi::X86_32 => 1,
        Abi::Native | Abi::X86_64 => 2,
    }
}

fn put64(words: &mut [u32], at: usize, value: u64) {
    words[at] = value as u32;
    words[at + 1] = (value >> 32) as u32;
}

/// Begins a request in a slot of which every byte is `filler`, so that stray bytes can be told apart later.
fn begin(abi: Abi, filler: u8, head: u32, common: Common) -> RawSlot {
    let mut slot = RawSlot::new();
    let words = slot.words_mut();
    words.fill(u32::from_le_bytes([filler; 4]));
    words[0] = head;
    put64(words, id_word(abi), common.id);
    put64(words, id_word(abi) + 2, common.sector);
    slot
}

/// A request with its segments in the slot. `count` is what it claims, whatever is in `segments`.
pub fn direct(
    abi: Abi,
    filler: u8,
    operation: u8,
    count: u8,
    common: Common,
    segments: &[Segment],
) -> RawSlot {
    let head = u32::from_le_bytes([
        operation,
        count,
        common.handle as u8,
        (common.handle >> 8) as u8,
    ]);
    let mut slot = begin(abi, filler, head, common);
    let first = id_word(abi) + 4;
    for (number, segment) in segments.iter().take(MAX_SEGMENTS).enumerate() {
        slot.words_mut()[first + 2 * number..][..2].copy_from_slice(&segment.words());
    }
    slot
}

/// A read or write of one whole page.
pub fn page(abi: Abi, filler: u8, operation: u8, common: Common, gref: u32) -> RawSlot {
    let segment = Segment {
        gref,
        first: 0,
        last: 7,
    };
    direct(abi, filler, operation, 1, common, &[segment])
}

/// A request whose `count` segments lie in the pages `grefs`.
pub fn indirect(
    abi: Abi,
    filler: u8,
    operation: u8,
    count: u16,
    common: Common,
    grefs: &[u32],
) -> RawSlot {
    let [low, high] = count.to_le_bytes();
    let mut slot = begin(
        abi,
        filler,
        u32::from_le_bytes([OP_INDIRECT, operation, low, high]),
        common,
    );
    let first = id_word(abi) + 4;
    slot.words_mut()[first] = u32::from(common.handle);
    for (number, gref) in grefs.iter().take(MAX_INDIRECT_PAGES).enumerate() {
        slot.words_mut()[first + 1 + number] = *gref;
    }
    slot
}

/// A discard of `sectors` sectors.
pub fn discard(abi: Abi, filler: u8, flag: u8, common: Common, sectors: u64) -> RawSlot {
    let mut slot = begin(
        abi,
        filler,
        u32::from_le_bytes([OP_DISCARD, flag, 0, 0]),
        common,
    );
    put64(slot.words_mut(), id_word(abi) + 4, sectors);
    slot
}

#[cfg(test)]
mod tests {
    use super::*;
    use blkif::{parse, Disk, Request};

    #[test]
    fn the_backend_reads_what_was_written() {
        let disk = Disk {
            sectors: 1000,
            logical_block_size: 512,
            readonly: false,
            flush: true,
            barrier: false,
            discard: None,
            max_indirect_segments: 0,
        };
        let segments: Vec<Segment> = (0..11)
            .map(|n| Segment {
                gref: 100 + n,
                first: 1,
                last: 5,
            })
            .collect();
        for abi in [Abi::Native, Abi::X86_32, Abi::X86_64] {
            let common = Common {
                id: 0x0123_4567_89ab_cdef,
                sector: 77,
                handle: 0xffff,
            };
            let slot = direct(abi, 0xa5, blkif::abi::OP_WRITE, 11, common, &segments);
            let parsed = parse(abi, &slot, &disk).expect("a valid request");
            assert_eq!(parsed.id, common.id);
            let Request::Write(transfer) = parsed.command else {
                panic!("not a write")
            };
            assert_eq!(transfer.sector(), 77);
            let got: Vec<u32> = transfer.segments().map(|segment| segment.gref()).collect();
            assert_eq!(got, (100..111).collect::<Vec<u32>>());
            assert!(transfer
                .segments()
                .all(|segment| segment.offset() == 512 && segment.len() == 2560));
        }
    }

    #[test]
    fn indirect_and_discard_have_the_offsets_of_the_headers() {
        let common = Common {
            id: 1,
            sector: 2,
            handle: 0x1234,
        };
        for (abi, handle, grefs) in [(Abi::X86_64, 6, 7), (Abi::X86_32, 5, 6)] {
            let slot = indirect(abi, 0, 1, 0x0201, common, &[11, 12]);
            assert_eq!(slot.words()[0].to_le_bytes(), [6, 1, 1, 2]);
            assert_eq!(slot.words()[handle], 0x1234);
            assert_eq!(slot.words()[grefs..grefs + 3], [11, 12, 0]);
            let slot = discard(abi, 0, 1, common, 1 << 32);
            assert_eq!(slot.words()[0].to_le_bytes(), [5, 1, 0, 0]);
            assert_eq!(slot.words()[handle..handle + 2], [0, 1]);
        }
    }
}
