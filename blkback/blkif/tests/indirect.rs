// SPDX-License-Identifier: GPL-2.0

//! Every rule for indirect requests at its boundaries, in the slot and in the pages of segments,
//! and a comparison with the rules spelled out again.

mod common;

use blkif::{
    abi::*,
    parse,
    Direction,
    Disk,
    Extent,
    Indirect,
    Reject,
    Rejected,
    Request,
    Segment,
    Status, //
};
use proptest::prelude::*;

use common::{
    any_abi,
    any_disk,
    blocks_of,
    raw_slot,
    OnWire,
    Wire,
    WireIndirect,
    DISK,
    EMPTY,
    HUGE,
    READ_ONLY, //
};

/// All 256 segments fit, in full.
const LARGE: Disk = Disk {
    sectors: 1 << 40,
    ..DISK
};

/// Grant reference, first sector, last sector.
type Piece = (u32, u8, u8);

/// One page in full, `n` times, with grant references from 100 on.
fn pages(n: u16) -> Vec<Piece> {
    (100..).take(n.into()).map(|gref| (gref, 0, 7)).collect()
}

/// The second word of a segment, with something in the padding.
fn word((_, first, last): Piece) -> u32 {
    u32::from_le_bytes([first, last, 0xab, 0xcd])
}

fn offers(max_indirect_segments: u16) -> Disk {
    Disk {
        max_indirect_segments,
        ..DISK
    }
}

#[track_caller]
fn accepted<'a>(disk: &'a Disk, request: &WireIndirect) -> Indirect<'a> {
    match request.parse(disk) {
        Ok(parsed) => match parsed.command {
            Request::Indirect(indirect) => indirect,
            command => panic!("taken for {command:?}"),
        },
        Err(rejected) => panic!("refused: {rejected}"),
    }
}

#[track_caller]
fn refused(disk: &Disk, request: &WireIndirect, why: Reject) -> Rejected {
    let rejected = request.parse(disk).unwrap_err();
    assert_eq!(rejected.why, why);
    assert!(rejected.indirect);
    rejected
}

/// What a backend does with the segments.
fn judge(indirect: &Indirect<'_>, seg: &[Piece]) -> Result<(Extent, Vec<Segment>), Reject> {
    let mut segments = indirect.segments();
    let mut decoded = Vec::new();
    for &piece in seg {
        decoded.push(segments.add(piece.0, word(piece))?);
    }
    Ok((segments.finish()?, decoded))
}

fn judge_read(disk: &Disk, sector: u64, seg: &[Piece]) -> Result<(Extent, Vec<Segment>), Reject> {
    let request = WireIndirect::new(OP_READ, sector, seg.len() as u16);
    judge(&accepted(disk, &request), seg)
}

#[track_caller]
fn good(disk: &Disk, sector: u64, seg: &[Piece]) {
    let (extent, decoded) = judge_read(disk, sector, seg).unwrap();
    let sectors: u32 = seg.iter().map(|s| u32::from(s.2 - s.1 + 1)).sum();
    assert_eq!((extent.sector(), extent.sectors()), (sector, sectors));
    assert_eq!(extent.bytes(), 512 * sectors);
    assert_eq!(decoded.len(), seg.len());
    for (segment, &(gref, first, last)) in decoded.iter().zip(seg) {
        assert_eq!(segment.gref(), gref);
        assert_eq!(segment.offset(), 512 * u32::from(first));
        assert_eq!(segment.sectors(), u32::from(last - first + 1));
    }
}

#[track_caller]
fn bad(disk: &Disk, sector: u64, seg: &[Piece], why: Reject) {
    assert_eq!(judge_read(disk, sector, seg), Err(why));
}

#[test]
fn the_slot() {
    for (indirect_op, direction) in [(OP_READ, Direction::Read), (OP_WRITE, Direction::Write)] {
        for sector in [0, 8, 5000, 0x0123_4567_89ab_cdef, u64::MAX] {
            let request = WireIndirect::new(indirect_op, sector, 17);
            let indirect = accepted(&DISK, &request);
            assert_eq!(indirect.direction(), direction);
            assert_eq!(indirect.sector(), sector);
            assert_eq!(indirect.count(), 17);
            assert_eq!(indirect.pages(), &request.grefs[..1]);
        }
    }
}

/// Linux's frontend does not accept an answer that carries the code of the indirect request.
#[test]
fn answers_carry_the_inner_operation() {
    for indirect_op in 0..=255 {
        let request = WireIndirect::new(indirect_op, 0, 12);
        match request.parse(&DISK) {
            Ok(parsed) => {
                assert!(indirect_op < 2);
                let response = parsed.response(Status::Okay);
                assert_eq!(response.operation, indirect_op);
                // Refused for its segments.
                let rejected = parsed.reject(Reject::NoSegments);
                assert!(rejected.indirect);
                assert_eq!(rejected.response().operation, indirect_op);
                assert_eq!(rejected.response().id, request.id);
                assert_eq!(rejected.response().status, Status::Error);
            }
            Err(rejected) => assert_eq!(rejected.response().operation, indirect_op),
        }
        let why = Reject::UnsupportedOperation(OP_INDIRECT);
        let rejected = refused(&offers(0), &request, why);
        assert_eq!(rejected.response().operation, indirect_op);
        assert_eq!(rejected.response().status, Status::NotSupported);
    }
    let rejected = refused(
        &READ_ONLY,
        &WireIndirect::new(OP_WRITE, 0, 12),
        Reject::ReadOnly,
    );
    assert_eq!(
        rejected.to_string(),
        "indirect write: the disk is read-only"
    );
    // Other requests are not taken for indirect ones.
    let parsed = Wire::new(OP_READ, 0, &pages(1)).parse(&DISK).unwrap();
    assert!(!parsed.reject(Reject::NoSegments).indirect);
}

#[test]
fn inner_operation() {
    for indirect_op in 2..=255 {
        let why = Reject::IndirectOperation(indirect_op);
        let rejected = refused(&DISK, &WireIndirect::new(indirect_op, 0, 12), why);
        assert_eq!(rejected.response().status, Status::Error);
        refused(&READ_ONLY, &WireIndirect::new(indirect_op, 0, 0), why);
    }
}

#[test]
fn number_of_segments() {
    for limit in [1, 11, 12, 32, 255, 256, 257, 512, 4096, u16::MAX] {
        let disk = offers(limit);
        // However much a caller believes to have offered.
        let limit = limit.min(256);
        for count in [0, 1, 2, 11, 12, 31, 32, 33, 254, 255, 256, 257, 511, 512]
            .into_iter()
            .chain([513, 4095, 4096, 4097, 0x0100, 0x0c00, u16::MAX])
        {
            for indirect_op in [OP_READ, OP_WRITE] {
                let request = WireIndirect::new(indirect_op, 0, count);
                if count == 0 {
                    refused(&disk, &request, Reject::NoSegments);
                } else if count > limit {
                    let why = Reject::TooManySegments { count, limit };
                    refused(&disk, &request, why);
                } else {
                    let indirect = accepted(&disk, &request);
                    assert_eq!(indirect.count(), count);
                    assert_eq!(indirect.pages(), [0x1001_0203]);
                }
            }
        }
    }
}

#[test]
fn read_only_disk() {
    accepted(&READ_ONLY, &WireIndirect::new(OP_READ, 0, 1));
    for count in [0, 1, 256, 257] {
        let request = WireIndirect::new(OP_WRITE, 0, count);
        refused(&READ_ONLY, &request, Reject::ReadOnly);
    }
}

#[test]
fn range_of_each_segment() {
    for first_sect in 0..=255 {
        for last_sect in 0..=255 {
            if first_sect <= last_sect && last_sect < 8 {
                good(&LARGE, 0, &[(9, first_sect, last_sect)]);
                continue;
            }
            let why = Reject::SegmentRange {
                first_sect,
                last_sect,
            };
            for place in [0, 1, 255] {
                let mut seg = pages(256);
                (seg[place].1, seg[place].2) = (first_sect, last_sect);
                bad(&LARGE, 0, &seg, why);
            }
        }
    }
    // A bad one in any place.
    for place in 0..256 {
        let mut seg = pages(256);
        seg[place].2 = 8;
        let why = Reject::SegmentRange {
            first_sect: 0,
            last_sect: 8,
        };
        bad(&LARGE, 0, &seg, why);
    }
}

#[test]
fn range_on_the_disk() {
    for (disk, sector, seg, fits) in [
        (&DISK, 992, pages(1), true),
        (&DISK, 993, pages(1), false),
        (&DISK, 0, pages(125), true),
        (&DISK, 0, pages(126), false),
        (&DISK, 1, pages(125), false),
        (&DISK, 999, vec![(1, 7, 7)], true),
        (&DISK, 999, vec![(1, 7, 7), (1, 0, 0)], false),
        (&DISK, 1000, vec![(1, 7, 7)], false),
        (&DISK, 1 << 32, pages(1), false),
        (&DISK, u64::MAX, pages(1), false),
        (&LARGE, (1 << 40) - 2048, pages(256), true),
        (&LARGE, (1 << 40) - 2047, pages(256), false),
        (&HUGE, u64::MAX - 2048, pages(256), true),
        (&HUGE, u64::MAX - 2047, pages(256), false),
        (&HUGE, u64::MAX - 2040, pages(255), true),
        (&HUGE, u64::MAX - 2039, pages(255), false),
        (&HUGE, u64::MAX, pages(256), false),
        (&EMPTY, 0, pages(1), false),
    ] {
        if fits {
            good(disk, sector, &seg);
        } else {
            let why = Reject::OutOfRange {
                sector,
                sectors: seg.iter().map(|s| u64::from(s.2 - s.1 + 1)).sum(),
                disk_sectors: disk.sectors,
            };
            bad(disk, sector, &seg, why);
        }
    }
}

#[test]
fn alignment() {
    let mut last_is_odd = pages(120);
    last_is_odd[119].2 = 6;
    for (size, sector, seg, sectors) in [
        // The disk's blocks, first sector, segments, sectors of the first one that is wrong.
        (512, 1, vec![(1, 3, 3)], None),
        (1024, 2, vec![(1, 1, 2)], None),
        (1024, 1, vec![(1, 1, 2)], Some(2)),
        (1024, 2, vec![(1, 1, 1)], Some(1)),
        (4096, 8, pages(120), None),
        (4096, 9, pages(120), Some(8)),
        (4096, 12, pages(1), Some(8)),
        (4096, 0, last_is_odd, Some(7)),
        // Whole blocks in total, but each counts for itself.
        (4096, 0, vec![(1, 0, 7), (2, 0, 1), (3, 0, 5)], Some(2)),
        (1024, 0, vec![(1, 0, 7), (2, 0, 1), (3, 0, 5)], None),
    ] {
        let disk = blocks_of(size);
        match sectors {
            None => good(&disk, sector, &seg),
            Some(segment_sectors) => {
                let why = Reject::Misaligned {
                    sector,
                    segment_sectors,
                    logical_block_size: size,
                };
                bad(&disk, sector, &seg, why);
            }
        }
    }
    // As for other requests: a wrong range in a page comes first, then one on the disk.
    let why = Reject::SegmentRange {
        first_sect: 1,
        last_sect: 0,
    };
    bad(&blocks_of(4096), 1, &[(1, 0, 0), (2, 1, 0)], why);
    let why = Reject::OutOfRange {
        sector: 1001,
        sectors: 1,
        disk_sectors: 1000,
    };
    bad(&blocks_of(4096), 1001, &[(1, 0, 0)], why);
}

/// A backend that does not pass on as many segments as there are gets errors.
#[test]
fn misuse() {
    for count in [1, 2, 255, 256] {
        let indirect = accepted(&LARGE, &WireIndirect::new(OP_READ, 0, count));
        let mut segments = indirect.segments();
        for given in 0..count {
            let why = Reject::SegmentCount { given, count };
            assert_eq!(segments.clone().finish(), Err(why));
            // A segment that is refused does not count.
            assert!(segments.add(1, 0x08_00).is_err());
            assert!(segments.add(1, 0x07_00).is_ok());
        }
        let complete = segments.clone();
        for _ in 0..3 {
            let why = Reject::SegmentCount {
                given: count + 1,
                count,
            };
            assert_eq!(segments.add(1, 0x07_00), Err(why));
            assert_eq!(why.status(), Status::Error);
        }
        assert_eq!(segments, complete);
        let extent = segments.finish().unwrap();
        assert_eq!(extent.sectors(), 8 * u32::from(count));
    }
}

/// Segments that are often valid, or nearly so.
fn likely_segments(most: usize) -> impl Strategy<Value = Vec<Piece>> {
    let exact = || (any::<u32>(), Just(0u8), Just(7u8));
    let segment = prop_oneof![
        60 => exact(),
        10 => (any::<u32>(), 0..4u8, 4..8u8),
        1 => (any::<u32>(), 0..10u8, 0..10u8),
    ];
    prop_oneof![
        prop::collection::vec(segment, 1..=most),
        prop::collection::vec(exact(), 1..=most),
    ]
}

fn likely_sector() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0..30u64).prop_map(|block| 8 * block),
        0..200u64,
        any::<u64>(),
        u64::MAX - 3000..=u64::MAX
    ]
}

fn likely_disk() -> impl Strategy<Value = Disk> {
    (any_disk(), prop_oneof![0..3000u64, Just(u64::MAX - 1)]).prop_map(|(disk, sectors)| Disk {
        sectors: disk.sectors.max(sectors),
        ..disk
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// The rules, spelled out independently of the parser.
    #[test]
    fn as_the_model(
        seg in likely_segments(256),
        announced in prop_oneof![4 => Just(None), 1 => prop_oneof![0..600u16, any::<u16>()].prop_map(Some)],
        indirect_op in prop_oneof![20 => 0..2u8, 1 => any::<u8>()],
        sector in likely_sector(),
        disk in likely_disk(),
    ) {
        let count = announced.unwrap_or(seg.len() as u16);
        let request = WireIndirect::new(indirect_op, sector, count);
        let slot_valid = indirect_op <= 1
            && (indirect_op == 0 || !disk.readonly)
            && 1 <= count
            && count <= disk.max_indirect_segments;
        let parsed = match request.parse(&disk) {
            Ok(parsed) => parsed,
            Err(rejected) => {
                prop_assert!(!slot_valid);
                let not_supported = rejected.response().status == Status::NotSupported;
                prop_assert_eq!(not_supported, disk.max_indirect_segments == 0);
                return Ok(());
            }
        };
        prop_assert!(slot_valid);
        let Request::Indirect(indirect) = parsed.command else { panic!("{parsed:?}") };
        prop_assert_eq!(indirect.direction() == Direction::Write, indirect_op == 1);
        prop_assert_eq!((indirect.sector(), indirect.count()), (sector, count));
        prop_assert_eq!(indirect.pages().len(), usize::from(count).div_ceil(512));

        let blocks = |n: u64| u128::from(n) * 512 % u128::from(disk.logical_block_size) == 0;
        let valid = seg.len() == usize::from(count)
            && seg.iter().all(|s| s.1 <= s.2 && s.2 <= 7)
            && {
                let lengths: Vec<u64> = seg.iter().map(|s| u64::from(s.2 - s.1) + 1).collect();
                let end = u128::from(sector) + u128::from(lengths.iter().sum::<u64>());
                end <= u128::from(disk.sectors)
                    && blocks(sector)
                    && lengths.iter().all(|&length| blocks(length))
            };
        match judge(&indirect, &seg) {
            Ok((extent, decoded)) => {
                prop_assert!(valid);
                prop_assert_eq!(extent.sector(), sector);
                let sum: u32 = decoded.iter().map(Segment::sectors).sum();
                prop_assert_eq!(extent.sectors(), sum);
                prop_assert!(sector.checked_add(sum.into()).unwrap() <= disk.sectors);
                for (segment, piece) in decoded.iter().zip(&seg) {
                    prop_assert_eq!(segment.gref(), piece.0);
                    prop_assert_eq!(segment.offset(), 512 * u32::from(piece.1));
                    prop_assert!(segment.offset() + segment.len() <= 4096);
                }
            }
            Err(why) => {
                prop_assert!(!valid);
                prop_assert_eq!(why.status(), Status::Error);
                prop_assert!(!why.to_string().is_empty());
            }
        }
    }

    /// The same segments in the slot: the same judgement, the same reason.
    #[test]
    fn as_in_the_slot(
        seg in likely_segments(11),
        operation in 0..2u8,
        sector in likely_sector(),
        disk in likely_disk(),
    ) {
        let disk = Disk { max_indirect_segments: 256, ..disk };
        let direct = Wire::new(operation, sector, &seg).parse(&disk);
        let indirect = WireIndirect::new(operation, sector, seg.len() as u16).parse(&disk);
        let indirect = indirect.map_err(|rejected| rejected.why).and_then(|parsed| {
            let Request::Indirect(indirect) = parsed.command else { panic!("{parsed:?}") };
            judge(&indirect, &seg)
        });
        match (direct.map(|parsed| parsed.command), indirect) {
            (Ok(Request::Read(transfer) | Request::Write(transfer)), Ok((extent, decoded))) => {
                prop_assert_eq!(transfer.sector(), extent.sector());
                prop_assert_eq!(transfer.bytes(), extent.bytes());
                prop_assert_eq!(transfer.segments().collect::<Vec<_>>(), decoded);
            }
            (Err(rejected), Err(why)) => prop_assert_eq!(rejected.why, why),
            (direct, indirect) => panic!("{direct:?}, but {indirect:?}"),
        }
    }

    /// Any words at all, as many as there may be, on any disk, even one that cannot exist.
    #[test]
    fn no_words_panic(
        words in prop::collection::vec((any::<u32>(), any::<u32>()), 0..300),
        mask in prop_oneof![Just(0x0707), any::<u32>()],
        count: u8,
        sector: u64,
        sectors: u64,
        logical_block_size: u32,
    ) {
        let disk = Disk { sectors, logical_block_size, max_indirect_segments: u16::MAX, ..DISK };
        let request = WireIndirect::new(OP_WRITE, sector, u16::from(count) + 1);
        let indirect = accepted(&disk, &request);
        let mut segments = indirect.segments();
        let mut good = 0;
        for &(gref, range) in &words {
            good += u16::from(segments.add(gref, range & mask).is_ok());
        }
        prop_assert!(good <= indirect.count());
        prop_assert!(good == indirect.count() || segments.finish().is_err());
    }

    /// No byte outside the fields has an influence.
    #[test]
    fn padding_is_ignored(
        indirect_op in 0..3u8,
        count in 0..300u16,
        sector in likely_sector(),
        abi in any_abi(),
        disk in any_disk(),
        noise in prop::collection::vec(any::<u8>(), 112),
        handle: u16,
    ) {
        let request = WireIndirect::new(indirect_op, sector, count);
        let expected = parse(abi, &request.slot(abi), &disk);
        let other = WireIndirect { handle, ..request };
        let bytes = other.noisy_bytes(abi, &noise);
        prop_assert_eq!(parse(abi, &raw_slot(&bytes), &disk), expected);
    }
}
