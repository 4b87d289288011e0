// SPDX-License-Identifier: GPL-2.0

//! What several tests need: the offsets of all fields, shared memory, and a frontend.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use std::{
    cell::Cell,
    sync::atomic::{
        fence,
        AtomicU32,
        Ordering::*, //
    }, //
};

use blkif::{
    abi::{
        MAX_INDIRECT_PAGES,
        OP_DISCARD,
        OP_INDIRECT,
        REQ_EVENT_OFFSET,
        REQ_PROD_OFFSET,
        RING_HEADER_SIZE,
        RSP_EVENT_OFFSET,
        RSP_PROD_OFFSET, //
    },
    parse,
    Abi,
    BackRing,
    DiscardOffer,
    Disk,
    Parsed,
    RawSlot,
    Rejected,
    RingError,
    SharedRing, //
};
use proptest::prelude::*;

/// A disk of which everything is offered.
pub const DISK: Disk = Disk {
    sectors: 1000,
    logical_block_size: 512,
    readonly: false,
    flush: true,
    barrier: true,
    discard: Some(DiscardOffer { secure: true }),
    max_indirect_segments: 256,
};

/// The same, but nothing may change it.
pub const READ_ONLY: Disk = Disk {
    readonly: true,
    ..DISK
};

/// The largest disk.
pub const HUGE: Disk = Disk {
    sectors: u64::MAX,
    ..DISK
};

/// A disk without a single sector.
pub const EMPTY: Disk = Disk { sectors: 0, ..DISK };

/// A disk with other blocks.
pub const fn blocks_of(logical_block_size: u32) -> Disk {
    Disk {
        logical_block_size,
        ..DISK
    }
}

/// All layouts.
pub const ABIS: [Abi; 3] = [Abi::Native, Abi::X86_32, Abi::X86_64];

/// Byte offsets in requests and responses. `headers.rs` compares them with the Xen headers; all
/// other tests build requests by them.
pub struct Layout {
    pub operation: usize,
    pub nr_segments: usize,
    pub handle: usize,
    pub id: usize,
    pub sector_number: usize,
    pub seg: usize,
    pub seg_size: usize,
    pub seg_gref: usize,
    pub seg_first_sect: usize,
    pub seg_last_sect: usize,
    pub discard_flag: usize,
    pub discard_nr_sectors: usize,
    pub indirect_op: usize,
    pub indirect_nr_segments: usize,
    pub indirect_handle: usize,
    pub indirect_grefs: usize,
    pub rsp_id: usize,
    pub rsp_operation: usize,
    pub rsp_status: usize,
}

/// Returns the offsets for a layout.
pub fn layout(abi: Abi) -> Layout {
    let (id, sector_number, seg) = match abi {
        Abi::X86_32 => (4, 12, 20),
        Abi::Native | Abi::X86_64 => (8, 16, 24),
    };
    Layout {
        operation: 0,
        nr_segments: 1,
        handle: 2,
        id,
        sector_number,
        seg,
        seg_size: 8,
        seg_gref: 0,
        seg_first_sect: 4,
        seg_last_sect: 5,
        discard_flag: 1,
        discard_nr_sectors: seg,
        indirect_op: 1,
        indirect_nr_segments: 2,
        indirect_handle: seg,
        indirect_grefs: seg + 4,
        rsp_id: 0,
        rsp_operation: 8,
        rsp_status: 10,
    }
}

/// Something that a frontend could write into a slot, valid or not.
pub trait OnWire {
    /// Lays the request out. Bytes that are not part of any field get `filler`.
    fn bytes(&self, abi: Abi, filler: u8) -> Vec<u8>;

    /// `id` and `operation` of the response.
    fn answer(&self) -> (u64, u8);

    /// The request as a private copy.
    fn slot(&self, abi: Abi) -> &'static RawSlot {
        raw_slot(&self.bytes(abi, 0xff))
    }

    /// Parses in all layouts, which have to agree.
    fn parse<'a>(&self, disk: &'a Disk) -> Result<Parsed<'a>, Rejected> {
        let [native, x86_32, x86_64] = ABIS.map(|abi| parse(abi, &self.slot(abi), disk));
        assert_eq!(native, x86_32);
        assert_eq!(native, x86_64);
        let answer = match &native {
            Ok(parsed) => (parsed.id, parsed.operation),
            Err(rejected) => (rejected.id, rejected.operation),
        };
        assert_eq!(answer, self.answer());
        native
    }

    /// The same bytes, but for those that are not part of any field.
    fn noisy_bytes(&self, abi: Abi, noise: &[u8]) -> Vec<u8> {
        let mut bytes = self.bytes(abi, 0);
        let ones = self.bytes(abi, 0xff);
        for (i, byte) in bytes.iter_mut().enumerate() {
            if *byte != ones[i] {
                *byte = noise[i];
            }
        }
        bytes
    }
}

/// 112 bytes, all `filler` but for the fields.
fn fill<const N: usize>(filler: u8, fields: [(usize, &[u8]); N]) -> Vec<u8> {
    let mut bytes = vec![filler; 112];
    for (offset, value) in fields {
        bytes[offset..offset + value.len()].copy_from_slice(value);
    }
    bytes
}

/// A request that has its segments in the slot.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    pub operation: u8,
    pub nr_segments: u8,
    pub handle: u16,
    pub id: u64,
    pub sector_number: u64,
    /// Grant reference, first sector, last sector.
    pub seg: Vec<(u32, u8, u8)>,
}

impl Wire {
    /// A request with as many segments as given.
    pub fn new(operation: u8, sector_number: u64, seg: &[(u32, u8, u8)]) -> Wire {
        Wire {
            operation,
            nr_segments: seg.len() as u8,
            handle: 0xdead,
            id: 0x0123_4567_89ab_cdef,
            sector_number,
            seg: seg.to_vec(),
        }
    }
}

impl OnWire for Wire {
    fn bytes(&self, abi: Abi, filler: u8) -> Vec<u8> {
        let at = layout(abi);
        let mut bytes = fill(
            filler,
            [
                (at.operation, &[self.operation]),
                (at.nr_segments, &[self.nr_segments]),
                (at.handle, &self.handle.to_le_bytes()),
                (at.id, &self.id.to_le_bytes()),
                (at.sector_number, &self.sector_number.to_le_bytes()),
            ],
        );
        for (i, (gref, first, last)) in self.seg.iter().enumerate() {
            let seg = at.seg + i * at.seg_size;
            bytes[seg + at.seg_gref..][..4].copy_from_slice(&gref.to_le_bytes());
            bytes[seg + at.seg_first_sect] = *first;
            bytes[seg + at.seg_last_sect] = *last;
        }
        bytes
    }

    fn answer(&self) -> (u64, u8) {
        match self.operation {
            // Its `indirect_op` is where `nr_segments` is.
            OP_INDIRECT => (self.id, self.nr_segments),
            operation => (self.id, operation),
        }
    }
}

/// A discard.
#[derive(Clone, Debug)]
pub struct WireDiscard {
    pub flag: u8,
    pub handle: u16,
    pub id: u64,
    pub sector_number: u64,
    pub nr_sectors: u64,
}

impl WireDiscard {
    /// A discard that asks for nothing special.
    pub fn new(sector_number: u64, nr_sectors: u64) -> WireDiscard {
        WireDiscard {
            flag: 0,
            handle: 0xdead,
            id: 0x0123_4567_89ab_cdef,
            sector_number,
            nr_sectors,
        }
    }
}

impl OnWire for WireDiscard {
    fn bytes(&self, abi: Abi, filler: u8) -> Vec<u8> {
        let at = layout(abi);
        fill(
            filler,
            [
                (at.operation, &[OP_DISCARD]),
                (at.discard_flag, &[self.flag]),
                (at.handle, &self.handle.to_le_bytes()),
                (at.id, &self.id.to_le_bytes()),
                (at.sector_number, &self.sector_number.to_le_bytes()),
                (at.discard_nr_sectors, &self.nr_sectors.to_le_bytes()),
            ],
        )
    }

    fn answer(&self) -> (u64, u8) {
        (self.id, OP_DISCARD)
    }
}

/// An indirect request; its segments are not a part of it.
#[derive(Clone, Debug)]
pub struct WireIndirect {
    pub indirect_op: u8,
    pub nr_segments: u16,
    pub id: u64,
    pub sector_number: u64,
    pub handle: u16,
    pub grefs: [u32; MAX_INDIRECT_PAGES],
}

impl WireIndirect {
    /// An indirect request whose eight pages have different grant references.
    pub fn new(indirect_op: u8, sector_number: u64, nr_segments: u16) -> WireIndirect {
        WireIndirect {
            indirect_op,
            nr_segments,
            id: 0x0123_4567_89ab_cdef,
            sector_number,
            handle: 0xdead,
            grefs: [0x1001_0203, 12, 13, 14, 15, 16, 17, 18],
        }
    }
}

impl OnWire for WireIndirect {
    fn bytes(&self, abi: Abi, filler: u8) -> Vec<u8> {
        let at = layout(abi);
        let grefs: Vec<u8> = self.grefs.iter().flat_map(|g| g.to_le_bytes()).collect();
        fill(
            filler,
            [
                (at.operation, &[OP_INDIRECT]),
                (at.indirect_op, &[self.indirect_op]),
                (at.indirect_nr_segments, &self.nr_segments.to_le_bytes()),
                (at.id, &self.id.to_le_bytes()),
                (at.sector_number, &self.sector_number.to_le_bytes()),
                (at.indirect_handle, &self.handle.to_le_bytes()),
                (at.indirect_grefs, &grefs),
            ],
        )
    }

    fn answer(&self) -> (u64, u8) {
        (self.id, self.indirect_op)
    }
}

/// Any layout.
pub fn any_abi() -> impl Strategy<Value = Abi> {
    prop::sample::select(&ABIS[..])
}

/// Any disk that can exist; most of them offer everything.
pub fn any_disk() -> impl Strategy<Value = Disk> {
    let sectors = prop_oneof![0..200u64, any::<u64>(), u64::MAX - 100..=u64::MAX];
    let offered = || prop::bool::weighted(0.8);
    let discard = prop::option::weighted(0.8, any::<bool>());
    (
        (sectors, 9..14u32, any::<bool>()),
        (offered(), offered(), discard),
        prop_oneof![Just(0), Just(256), 1..=256u16],
    )
        .prop_map(
            |((sectors, shift, readonly), (flush, barrier, discard), max_indirect_segments)| Disk {
                sectors,
                logical_block_size: 1 << shift,
                readonly,
                flush,
                barrier,
                discard: discard.map(|secure| DiscardOffer { secure }),
                max_indirect_segments,
            },
        )
}

/// Makes a private copy of bytes, as many as there are.
pub fn raw_slot(bytes: &[u8]) -> &'static RawSlot {
    let mut slot = RawSlot::new();
    for (word, bytes) in slot.words_mut().iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes(bytes.try_into().unwrap());
    }
    // Lives as long as what is parsed from it, so that tests need not keep it.
    Box::leak(Box::new(slot))
}

/// The response in a slot: `id`, `operation`, `status`.
pub fn response_of(bytes: &[u8]) -> (u64, u8, i16) {
    let at = layout(Abi::X86_64);
    let id = bytes[at.rsp_id..][..8].try_into().unwrap();
    let status = bytes[at.rsp_status..][..2].try_into().unwrap();
    (
        u64::from_le_bytes(id),
        bytes[at.rsp_operation],
        i16::from_le_bytes(status),
    )
}

/// Ring memory that both ends of a test use, and something behind it.
pub struct Memory {
    words: Vec<AtomicU32>,
    ring_bytes: usize,
    pub slot_reads: Cell<usize>,
    pub read_bytes: Cell<usize>,
    pub stores: Cell<usize>,
    pub barriers: Cell<usize>,
}

/// What the memory holds before anybody writes to it.
pub const FILLER: u8 = 0xa5;

impl Memory {
    /// Memory of a ring whose indices start at `start`.
    pub fn new(ring_bytes: usize, start: u32) -> Memory {
        let filler = u32::from_le_bytes([FILLER; 4]);
        let memory = Memory {
            words: (0..ring_bytes / 4 + 64)
                .map(|_| AtomicU32::new(filler))
                .collect(),
            ring_bytes,
            slot_reads: Cell::new(0),
            read_bytes: Cell::new(0),
            stores: Cell::new(0),
            barriers: Cell::new(0),
        };
        memory.set(REQ_PROD_OFFSET, start);
        memory.set(RSP_PROD_OFFSET, start);
        memory.set(REQ_EVENT_OFFSET, start.wrapping_add(1));
        memory.set(RSP_EVENT_OFFSET, start.wrapping_add(1));
        memory
    }

    pub fn get(&self, byte_offset: usize) -> u32 {
        self.words[byte_offset / 4].load(SeqCst)
    }

    pub fn set(&self, byte_offset: usize, value: u32) {
        self.words[byte_offset / 4].store(value, SeqCst);
    }

    /// Bytes of the slot with the number `slot`, as the frontend sees it.
    pub fn slot_bytes(&self, abi: Abi, slot: usize) -> Vec<u8> {
        let start = RING_HEADER_SIZE + slot * abi.slot_size();
        (0..abi.slot_size() / 4)
            .flat_map(|i| self.get(start + 4 * i).to_le_bytes())
            .collect()
    }

    /// Writes a request into the slot with the number `slot`.
    pub fn write_request(&self, abi: Abi, slot: usize, request: &Wire) {
        let start = RING_HEADER_SIZE + slot * abi.slot_size();
        let bytes = request.bytes(abi, FILLER);
        for (i, word) in bytes[..abi.request_size()].chunks_exact(4).enumerate() {
            let word = u32::from_le_bytes(word.try_into().unwrap());
            self.set(start + 4 * i, word);
        }
    }

    /// Panics if anything behind the slots, or in the unused part of the header, has changed.
    pub fn assert_surroundings(&self, abi: Abi) {
        let slots = abi.ring_entries(self.ring_bytes) as usize;
        let end = RING_HEADER_SIZE + slots * abi.slot_size();
        let filler = u32::from_le_bytes([FILLER; 4]);
        for offset in (16..RING_HEADER_SIZE)
            .chain(end..4 * self.words.len())
            .step_by(4)
        {
            assert_eq!(self.get(offset), filler, "byte {offset} was overwritten");
        }
    }
}

fn count(cell: &Cell<usize>, by: usize) {
    cell.set(cell.get() + by);
}

impl SharedRing for Memory {
    fn req_prod(&self) -> u32 {
        self.words[REQ_PROD_OFFSET / 4].load(Acquire)
    }

    fn set_req_event(&self, index: u32) {
        count(&self.stores, 1);
        self.words[REQ_EVENT_OFFSET / 4].store(index, Relaxed);
    }

    fn rsp_prod(&self) -> u32 {
        self.words[RSP_PROD_OFFSET / 4].load(Relaxed)
    }

    fn set_rsp_prod(&self, index: u32) {
        count(&self.stores, 1);
        self.words[RSP_PROD_OFFSET / 4].store(index, Release);
    }

    fn rsp_event(&self) -> u32 {
        self.words[RSP_EVENT_OFFSET / 4].load(Relaxed)
    }

    fn full_barrier(&self) {
        count(&self.barriers, 1);
        fence(SeqCst);
    }

    fn read_slot(&self, byte_offset: usize, words: &mut [u32]) {
        assert_eq!(byte_offset % 4, 0);
        count(&self.slot_reads, 1);
        count(&self.read_bytes, 4 * words.len());
        let start = (RING_HEADER_SIZE + byte_offset) / 4;
        for (i, word) in words.iter_mut().enumerate() {
            *word = self.words[start + i].load(Relaxed);
        }
    }

    fn write_slot(&self, byte_offset: usize, words: &[u32; 3]) {
        assert_eq!(byte_offset % 4, 0);
        count(&self.stores, 1);
        let start = (RING_HEADER_SIZE + byte_offset) / 4;
        for (i, word) in words.iter().enumerate() {
            self.words[start + i].store(*word, Relaxed);
        }
    }
}

/// The next request of a ring.
pub fn next(ring: &mut BackRing, shared: &impl SharedRing) -> Result<Option<RawSlot>, RingError> {
    let mut slot = RawSlot::new();
    Ok(ring.next_request(shared, &mut slot)?.then_some(slot))
}
