// SPDX-License-Identifier: GPL-2.0

//! Every rule of validation at its boundaries, and what must hold for any bytes whatsoever.

mod common;

use blkif::{
    abi::*,
    parse,
    Abi,
    Direction,
    Disk,
    RawSlot,
    Reject,
    Rejected,
    Request,
    Response,
    Status,
    Transfer, //
};
use proptest::prelude::*;

use common::{
    any_abi,
    any_disk,
    blocks_of,
    raw_slot,
    response_of,
    OnWire,
    Wire,
    DISK,
    EMPTY,
    HUGE,
    READ_ONLY, //
};

const NO_FLUSH: Disk = Disk {
    flush: false,
    ..DISK
};

const NO_BARRIER: Disk = Disk {
    barrier: false,
    ..DISK
};

/// Operations that have their segments in the slot.
const TRANSFERS: [u8; 4] = [OP_READ, OP_WRITE, OP_FLUSH_DISKCACHE, OP_WRITE_BARRIER];

/// One page in full, `n` times, with grant references from 100 on.
fn pages(n: usize) -> Vec<(u32, u8, u8)> {
    (100..).take(n).map(|gref| (gref, 0, 7)).collect()
}

/// One segment.
const fn piece(first_sect: u8, last_sect: u8) -> [(u32, u8, u8); 1] {
    [(9, first_sect, last_sect)]
}

#[track_caller]
fn accepted(disk: &Disk, operation: u8, sector: u64, seg: &[(u32, u8, u8)]) {
    let parsed = match Wire::new(operation, sector, seg).parse(disk) {
        Ok(parsed) => parsed,
        Err(rejected) => panic!("refused: {rejected}"),
    };
    let transfer = match (operation, parsed.command) {
        (OP_READ, Request::Read(transfer)) => transfer,
        (OP_WRITE, Request::Write(transfer)) => transfer,
        (OP_FLUSH_DISKCACHE, Request::Flush(Some(transfer))) => transfer,
        (OP_FLUSH_DISKCACHE, Request::Flush(None)) => return assert!(seg.is_empty()),
        (OP_WRITE_BARRIER, Request::Barrier(Some(transfer))) => transfer,
        (OP_WRITE_BARRIER, Request::Barrier(None)) => return assert!(seg.is_empty()),
        (_, command) => panic!("taken for {command:?}"),
    };
    assert_eq!(transfer.sector(), sector);
    let sectors: u32 = seg.iter().map(|s| u32::from(s.2 - s.1 + 1)).sum();
    assert_eq!(transfer.sectors(), sectors);
    assert_eq!(transfer.bytes(), 512 * sectors);
    assert_eq!(transfer.count(), seg.len());
    assert_eq!(transfer.segments().count(), seg.len());
    for (segment, &(gref, first, last)) in transfer.segments().zip(seg) {
        assert_eq!(segment.gref(), gref);
        assert_eq!(segment.offset(), 512 * u32::from(first));
        assert_eq!(segment.sectors(), u32::from(last - first + 1));
        assert_eq!(segment.len(), 512 * u32::from(last - first + 1));
        assert!(!segment.is_empty());
    }
}

#[track_caller]
fn refused(disk: &Disk, operation: u8, sector: u64, seg: &[(u32, u8, u8)], why: Reject) {
    refused_wire(disk, &Wire::new(operation, sector, seg), why);
}

#[track_caller]
fn refused_wire(disk: &Disk, request: &Wire, why: Reject) {
    match request.parse(disk) {
        Ok(parsed) => panic!("accepted: {parsed:?}"),
        Err(rejected) => assert_eq!(rejected.why, why),
    }
}

fn out_of_range(sector: u64, sectors: u64, disk: &Disk) -> Reject {
    Reject::OutOfRange {
        sector,
        sectors,
        disk_sectors: disk.sectors,
    }
}

#[test]
fn operations() {
    for operation in TRANSFERS {
        accepted(&DISK, operation, 8, &pages(1));
    }
    for operation in 0..=255 {
        if !TRANSFERS.contains(&operation) && !matches!(operation, OP_DISCARD | OP_INDIRECT) {
            let why = Reject::UnsupportedOperation(operation);
            refused(&DISK, operation, 8, &pages(1), why);
            refused(&DISK, operation, 8, &[], why);
            // It is looked at first.
            refused(&READ_ONLY, operation, 5000, &piece(3, 2), why);
        }
    }
}

/// What was not offered is refused, whatever else is right or wrong; each for itself.
#[test]
fn not_offered() {
    for (disk, operation) in [
        (NO_FLUSH, OP_FLUSH_DISKCACHE),
        (NO_BARRIER, OP_WRITE_BARRIER),
    ] {
        let why = Reject::UnsupportedOperation(operation);
        refused(&disk, operation, 8, &pages(1), why);
        refused(&disk, operation, 8, &[], why);
        refused(&disk, operation, 5000, &piece(3, 2), why);
        let readonly = Disk {
            readonly: true,
            ..disk
        };
        refused(&readonly, operation, 8, &pages(1), why);
        for other in TRANSFERS {
            if other != operation {
                accepted(&disk, other, 8, &pages(1));
            }
        }
    }
}

#[test]
fn number_of_segments() {
    for operation in TRANSFERS {
        for count in 1..=11 {
            accepted(&DISK, operation, 0, &pages(count));
        }
        for count in 12..=255 {
            let mut request = Wire::new(operation, 0, &pages(11));
            request.nr_segments = count;
            let why = Reject::TooManySegments {
                count: count.into(),
                limit: 11,
            };
            refused_wire(&DISK, &request, why);
        }
    }
    refused(&DISK, OP_READ, 0, &[], Reject::NoSegments);
    refused(&DISK, OP_WRITE, 0, &[], Reject::NoSegments);
    accepted(&DISK, OP_FLUSH_DISKCACHE, 0, &[]);
    accepted(&DISK, OP_WRITE_BARRIER, 0, &[]);
    // Segments behind the last one are not looked at.
    let mut request = Wire::new(OP_READ, 0, &[(1, 0, 7), (2, 5, 3), (3, 255, 255)]);
    request.nr_segments = 1;
    assert!(request.parse(&DISK).is_ok());
    request.nr_segments = 2;
    assert!(request.parse(&DISK).is_err());
}

#[test]
fn range_of_each_segment() {
    for first_sect in 0..=255 {
        for last_sect in 0..=255 {
            let seg = piece(first_sect, last_sect);
            if first_sect <= last_sect && last_sect < 8 {
                accepted(&DISK, OP_READ, 0, &seg);
            } else {
                let why = Reject::SegmentRange {
                    first_sect,
                    last_sect,
                };
                refused(&DISK, OP_READ, 0, &seg, why);
                // So for each of the eleven places.
                for place in 0..11 {
                    let mut seg = pages(11);
                    (seg[place].1, seg[place].2) = (first_sect, last_sect);
                    refused(&DISK, OP_WRITE, 0, &seg, why);
                }
            }
        }
    }
}

#[test]
fn range_on_the_disk() {
    for operation in TRANSFERS {
        for (disk, sector, seg, fits) in [
            (&DISK, 992, pages(1), true),
            (&DISK, 993, pages(1), false),
            (&DISK, 999, piece(7, 7).to_vec(), true),
            (&DISK, 999, piece(6, 7).to_vec(), false),
            (&DISK, 1000, piece(0, 0).to_vec(), false),
            (&DISK, 1001, piece(0, 0).to_vec(), false),
            (&DISK, 912, pages(11), true),
            (&DISK, 913, pages(11), false),
            (&DISK, 1 << 32, pages(1), false),
            (&DISK, (1 << 32) + 8, pages(1), false),
            (&DISK, u64::MAX, pages(1), false),
            (&DISK, u64::MAX - 7, pages(1), false),
            (&DISK, u64::MAX - 8, pages(1), false),
            (&HUGE, u64::MAX - 8, pages(1), true),
            (&HUGE, u64::MAX - 7, pages(1), false),
            (&HUGE, u64::MAX - 1, piece(0, 0).to_vec(), true),
            (&HUGE, u64::MAX, piece(0, 0).to_vec(), false),
            (&HUGE, 0xffff_ffff, pages(1), true),
            (&EMPTY, 0, piece(0, 0).to_vec(), false),
        ] {
            if fits {
                accepted(disk, operation, sector, &seg);
            } else {
                let sectors = seg.iter().map(|s| u64::from(s.2 - s.1 + 1)).sum();
                let why = out_of_range(sector, sectors, disk);
                refused(disk, operation, sector, &seg, why);
            }
        }
    }
}

#[test]
fn alignment() {
    let seg_2_6 = [(1, 0, 1), (2, 0, 5)];
    for (size, sector, seg, sectors) in [
        // The disk's blocks, first sector, segments, sectors of the first one that is wrong.
        (512, 1, piece(3, 3).to_vec(), None),
        (1024, 2, piece(0, 1).to_vec(), None),
        (1024, 1, piece(0, 1).to_vec(), Some(2)),
        (1024, 2, piece(0, 0).to_vec(), Some(1)),
        (2048, 4, piece(0, 3).to_vec(), None),
        (2048, 2, piece(0, 3).to_vec(), Some(4)),
        (4096, 8, pages(1), None),
        (4096, 8, pages(11), None),
        (4096, 9, pages(1), Some(8)),
        (4096, 12, pages(1), Some(8)),
        (4096, 7, pages(1), Some(8)),
        (4096, 8, piece(0, 3).to_vec(), Some(4)),
        // A whole block, but in two segments: as the C driver, each for itself.
        (4096, 8, seg_2_6.to_vec(), Some(2)),
        (1024, 8, seg_2_6.to_vec(), None),
        (4096, 8, vec![(1, 0, 7), (2, 0, 6), (3, 0, 0)], Some(7)),
        // Where the data begin in the page does not matter.
        (1024, 2, piece(1, 2).to_vec(), None),
        (2048, 4, piece(3, 6).to_vec(), None),
        // No segment is as long as such a block.
        (8192, 16, pages(2), Some(8)),
        // High bits of the sector count as well.
        (4096, 1 << 9, pages(1), None),
    ] {
        for operation in TRANSFERS {
            let disk = blocks_of(size);
            match sectors {
                None => accepted(&disk, operation, sector, &seg),
                Some(segment_sectors) => {
                    let why = Reject::Misaligned {
                        sector,
                        segment_sectors,
                        logical_block_size: size,
                    };
                    refused(&disk, operation, sector, &seg, why);
                }
            }
        }
    }
    // What is beyond the disk is reported as such, aligned or not.
    let why = out_of_range(1001, 1, &DISK);
    refused(&blocks_of(4096), OP_READ, 1001, &piece(0, 0), why);
}

#[test]
fn read_only_disk() {
    accepted(&READ_ONLY, OP_READ, 0, &pages(1));
    for operation in [OP_WRITE, OP_FLUSH_DISKCACHE, OP_WRITE_BARRIER] {
        refused(&READ_ONLY, operation, 0, &pages(1), Reject::ReadOnly);
        // It is looked at before the segments.
        refused(&READ_ONLY, operation, 5000, &piece(3, 2), Reject::ReadOnly);
    }
}

/// A flush or a barrier without data has no place on the disk, and changes nothing.
#[test]
fn without_data() {
    for disk in [DISK, READ_ONLY, EMPTY, HUGE, blocks_of(4096)] {
        for sector in [0, 1, 999, 1000, u64::MAX] {
            accepted(&disk, OP_FLUSH_DISKCACHE, sector, &[]);
            accepted(&disk, OP_WRITE_BARRIER, sector, &[]);
        }
    }
}

#[test]
fn answers() {
    let request = Wire::new(OP_WRITE, 0, &pages(1));
    let parsed = request.parse(&DISK).unwrap();
    for (status, value) in [
        (Status::Okay, 0),
        (Status::Error, -1),
        (Status::NotSupported, -2),
    ] {
        let bytes: Vec<u8> = parsed
            .response(status)
            .words()
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect();
        assert_eq!(response_of(&bytes), (request.id, OP_WRITE, value));
        assert_eq!(bytes[9], 0, "padding");
    }

    for (why, status, text) in [
        (
            Reject::UnsupportedOperation(9),
            Status::NotSupported,
            "operation 9 is not supported",
        ),
        (Reject::NoSegments, Status::Error, "no segments"),
        (
            Reject::TooManySegments {
                count: 12,
                limit: 11,
            },
            Status::Error,
            "12 segments, more than 11",
        ),
        (
            Reject::IndirectOperation(3),
            Status::Error,
            "operation 3 is neither a read nor a write",
        ),
        (
            Reject::SegmentCount {
                given: 11,
                count: 12,
            },
            Status::Error,
            "the backend has read 11 segments of 12",
        ),
        (
            Reject::MisalignedDiscard {
                sector: 8,
                sectors: 1,
                logical_block_size: 4096,
            },
            Status::Error,
            "1 sectors from 8, not in blocks of 4096 bytes",
        ),
        (
            Reject::SegmentRange {
                first_sect: 3,
                last_sect: 8,
            },
            Status::Error,
            "segment from sector 3 to 8 of a page",
        ),
        (Reject::ReadOnly, Status::Error, "the disk is read-only"),
        (
            out_of_range(999, 8, &DISK),
            Status::Error,
            "8 sectors from 999 on a disk of 1000",
        ),
        (
            Reject::Misaligned {
                sector: 1,
                segment_sectors: 8,
                logical_block_size: 4096,
            },
            Status::Error,
            "sector 1, segment of 8 sectors, not in blocks of 4096 bytes",
        ),
    ] {
        assert_eq!(why.to_string(), text);
        let mut rejected = Rejected {
            id: 5,
            operation: OP_DISCARD,
            indirect: false,
            why,
        };
        assert_eq!(rejected.to_string(), format!("discard: {text}"));
        rejected.indirect = true;
        assert_eq!(rejected.to_string(), format!("indirect discard: {text}"));
        let response = Response {
            id: 5,
            operation: OP_DISCARD,
            status,
        };
        assert_eq!(rejected.response(), response);
    }
}

/// The last word of an x86_32 copy is not part of the request.
#[test]
fn only_the_request_counts() {
    let clean = Wire::new(OP_READ, 0, &pages(11)).slot(Abi::X86_32);
    let parsed = parse(Abi::X86_32, clean, &DISK);
    let mut slot = *clean;
    slot.words_mut()[27] = 0x1234_5678;
    assert_eq!(parse(Abi::X86_32, &slot, &DISK), parsed);
    assert_eq!(slot.words()[27], 0x1234_5678);
    assert_eq!(RawSlot::new(), RawSlot::default());
}

/// Bytes of a request that is often valid, or nearly so.
fn likely_request() -> impl Strategy<Value = Wire> {
    let segment = prop_oneof![
        4 => (any::<u32>(), Just(0u8), Just(7u8)),
        2 => (any::<u32>(), 0..4u8, 4..8u8),
        1 => (any::<u32>(), 0..10u8, 0..10u8),
    ];
    let sector = prop_oneof![
        (0..30u64).prop_map(|block| 8 * block),
        0..200u64,
        any::<u64>(),
        u64::MAX - 100..=u64::MAX
    ];
    (
        prop_oneof![4 => prop::sample::select(&TRANSFERS[..]), 1 => 0..8u8],
        prop_oneof![0..12u8, 0..14u8],
        any::<u16>(),
        any::<u64>(),
        sector,
        prop::collection::vec(segment, 11),
    )
        .prop_map(
            |(operation, nr_segments, handle, id, sector_number, seg)| Wire {
                operation,
                nr_segments,
                handle,
                id,
                sector_number,
                seg,
            },
        )
}

/// What the driver relies on.
fn assert_valid(transfer: &Transfer<'_>, disk: &Disk) {
    let end = transfer.sector().checked_add(transfer.sectors().into());
    assert!(end.unwrap() <= disk.sectors);
    assert!((1..=11).contains(&transfer.count()));
    let mut bytes = 0;
    for segment in transfer.segments() {
        assert!(segment.offset() % 512 == 0 && segment.len() % 512 == 0);
        assert!(segment.len() >= 512);
        assert!(segment.offset() + segment.len() <= 4096);
        assert_eq!(segment.len() % disk.logical_block_size, 0);
        bytes += segment.len();
    }
    assert_eq!(transfer.bytes(), bytes);
    assert_eq!(transfer.sectors() * 512, bytes);
    assert_eq!(
        u128::from(transfer.sector()) * 512 % u128::from(disk.logical_block_size),
        0
    );
}

/// Parses, and checks whatever comes out; returns whether the request was accepted.
fn assert_consistent(abi: Abi, slot: &RawSlot, disk: &Disk) -> bool {
    match parse(abi, slot, disk) {
        Ok(parsed) => {
            match &parsed.command {
                Request::Read(transfer) => assert_valid(transfer, disk),
                Request::Write(transfer) | Request::Flush(Some(transfer)) => {
                    assert!(!disk.readonly);
                    assert_valid(transfer, disk);
                }
                Request::Barrier(Some(transfer)) => {
                    assert!(disk.barrier && !disk.readonly);
                    assert_valid(transfer, disk);
                }
                Request::Flush(None) => assert!(disk.flush),
                Request::Barrier(None) => assert!(disk.barrier),
                Request::Discard(discard) => {
                    assert!(disk.discard.is_some() && !disk.readonly);
                    let end = discard.sector().checked_add(discard.sectors());
                    assert!(end.unwrap() <= disk.sectors);
                }
                Request::Indirect(indirect) => {
                    assert!(!disk.readonly || indirect.direction() == Direction::Read);
                    assert!((1..=disk.max_indirect_segments).contains(&indirect.count()));
                }
            }
            true
        }
        Err(rejected) => {
            assert_ne!(rejected.response().status, Status::Okay);
            assert!(!rejected.to_string().is_empty());
            false
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Any bytes at all, and any disk, even one that cannot exist.
    #[test]
    fn no_bytes_panic(
        bytes in prop::collection::vec(any::<u8>(), 112),
        abi in any_abi(),
        sectors in any::<u64>(),
        logical_block_size in any::<u32>(),
        offered in any_disk(),
        max_indirect_segments: u16,
    ) {
        let disk = Disk { sectors, logical_block_size, max_indirect_segments, ..offered };
        let result = parse(abi, &raw_slot(&bytes), &disk);
        assert!(!format!("{result:?}").is_empty());
    }

    /// What is accepted is valid, whatever the frontend sends.
    #[test]
    fn accepted_is_valid(request in likely_request(), abi in any_abi(), disk in any_disk()) {
        assert_consistent(abi, &request.slot(abi), &disk);
    }

    /// What is valid by the rules, spelled out independently of the parser, is accepted.
    #[test]
    fn valid_is_accepted(request in likely_request(), abi in any_abi(), disk in any_disk()) {
        // These have other fields; discard.rs and indirect.rs do the same for them.
        prop_assume!(!matches!(request.operation, OP_DISCARD | OP_INDIRECT));
        let used: Vec<_> = request.seg.iter().take(request.nr_segments.into()).collect();
        let blocks = |n: u64| u128::from(n) * 512 % u128::from(disk.logical_block_size) == 0;
        let data_valid = !used.is_empty()
            && request.nr_segments <= 11
            && used.iter().all(|s| s.1 <= s.2 && s.2 <= 7)
            && {
                let lengths: Vec<u64> = used.iter().map(|s| u64::from(s.2 - s.1) + 1).collect();
                let end = u128::from(request.sector_number)
                    + u128::from(lengths.iter().sum::<u64>());
                end <= u128::from(disk.sectors)
                    && blocks(request.sector_number)
                    && lengths.iter().all(|&length| blocks(length))
            };
        let valid = match request.operation {
            OP_READ => data_valid,
            OP_WRITE => data_valid && !disk.readonly,
            OP_FLUSH_DISKCACHE => {
                disk.flush && (request.nr_segments == 0 || data_valid && !disk.readonly)
            }
            OP_WRITE_BARRIER => {
                disk.barrier && (request.nr_segments == 0 || data_valid && !disk.readonly)
            }
            _ => false,
        };
        prop_assert_eq!(assert_consistent(abi, &request.slot(abi), &disk), valid);
    }

    /// Layouts differ in nothing but offsets.
    #[test]
    fn layouts_agree(request in likely_request(), disk in any_disk()) {
        let _ = request.parse(&disk);
    }

    /// No byte outside the fields has an influence.
    #[test]
    fn padding_is_ignored(
        request in likely_request(),
        abi in any_abi(),
        disk in any_disk(),
        noise in prop::collection::vec(any::<u8>(), 112),
        handle: u16,
    ) {
        prop_assume!(!matches!(request.operation, OP_DISCARD | OP_INDIRECT));
        let expected = parse(abi, &request.slot(abi), &disk);
        let other = Wire { handle, ..request };
        let bytes = other.noisy_bytes(abi, &noise);
        prop_assert_eq!(parse(abi, &raw_slot(&bytes), &disk), expected);
    }
}
