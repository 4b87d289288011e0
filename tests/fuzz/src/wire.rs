// SPDX-License-Identifier: GPL-2.0

//! Requests as `xen/include/public/io/blkif.h` lays them out, byte by byte, and disks.

use blkif::{Abi, DiscardOffer, Disk, RawSlot};

use crate::input::Input;

/// All layouts.
pub const ABIS: [Abi; 3] = [Abi::Native, Abi::X86_32, Abi::X86_64];

/// Bytes of the largest request.
pub const SLOT: usize = 112;

/// Offsets of `id`, `sector_number` and of what follows that.
pub fn offsets(abi: Abi) -> (usize, usize, usize) {
    match abi {
        Abi::X86_32 => (4, 12, 20),
        Abi::Native | Abi::X86_64 => (8, 16, 24),
    }
}

/// A layout by number.
pub fn abi(number: u8) -> Abi {
    ABIS[usize::from(number) % ABIS.len()]
}

/// A disk, with any size and any offers. Takes 12 bytes.
pub fn disk(input: &mut Input<'_>) -> Disk {
    let [offers, block, segments] = input.take();
    let size = input.u64();
    Disk {
        sectors: if input.u8() % 2 == 0 {
            size % 4096
        } else {
            size
        },
        logical_block_size: 512 << (block % 6),
        readonly: offers & 1 != 0,
        flush: offers & 2 != 0,
        barrier: offers & 4 != 0,
        discard: (offers & 8 != 0).then_some(DiscardOffer {
            secure: offers & 16 != 0,
        }),
        // Above 256, too, which counts as 256.
        max_indirect_segments: if offers & 32 != 0 {
            u16::from(segments) * 2
        } else {
            0
        },
    }
}

/// The bytes of a disk that offers everything and can be written, of 1000 sectors.
pub const GOOD_DISK: [u8; 12] = [0b11_1110, 0, 128, 0xe8, 3, 0, 0, 0, 0, 0, 0, 0];

/// A private copy of a request.
pub fn raw_slot(bytes: &[u8; SLOT]) -> RawSlot {
    let mut slot = RawSlot::new();
    for (word, bytes) in slot.words_mut().iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    slot
}

/// Four bytes at an offset.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Eight bytes at an offset.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// A request with segments in its slot.
pub fn request(
    abi: Abi,
    operation: u8,
    id: u64,
    sector: u64,
    segments: &[(u32, u8, u8)],
) -> [u8; SLOT] {
    let (id_at, sector_at, rest) = offsets(abi);
    let mut bytes = [0; SLOT];
    bytes[0] = operation;
    bytes[1] = segments.len() as u8;
    bytes[id_at..id_at + 8].copy_from_slice(&id.to_le_bytes());
    bytes[sector_at..sector_at + 8].copy_from_slice(&sector.to_le_bytes());
    for (number, (gref, first, last)) in segments.iter().enumerate() {
        let at = rest + 8 * number;
        bytes[at..at + 4].copy_from_slice(&gref.to_le_bytes());
        bytes[at + 4] = *first;
        bytes[at + 5] = *last;
    }
    bytes
}

/// A discard.
pub fn discard(abi: Abi, flag: u8, id: u64, sector: u64, sectors: u64) -> [u8; SLOT] {
    let mut bytes = request(abi, blkif::abi::OP_DISCARD, id, sector, &[]);
    let (.., rest) = offsets(abi);
    bytes[1] = flag;
    bytes[rest..rest + 8].copy_from_slice(&sectors.to_le_bytes());
    bytes
}

/// An indirect request.
pub fn indirect(
    abi: Abi,
    indirect_op: u8,
    id: u64,
    sector: u64,
    count: u16,
    grefs: &[u32],
) -> [u8; SLOT] {
    let mut bytes = request(abi, blkif::abi::OP_INDIRECT, id, sector, &[]);
    let (.., rest) = offsets(abi);
    bytes[1] = indirect_op;
    bytes[2..4].copy_from_slice(&count.to_le_bytes());
    for (number, gref) in grefs.iter().enumerate() {
        let at = rest + 4 + 4 * number;
        bytes[at..at + 4].copy_from_slice(&gref.to_le_bytes());
    }
    bytes
}

/// Whether a range of sectors is on the disk, and whole blocks of it.
pub fn on_disk(disk: &Disk, sector: u64, sectors: u128) -> bool {
    u128::from(sector) + sectors <= u128::from(disk.sectors)
}

/// Whether a number of sectors is a number of whole blocks.
pub fn whole_blocks(disk: &Disk, sectors: u64) -> bool {
    sectors % u64::from(disk.logical_block_size / 512) == 0
}
