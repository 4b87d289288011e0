// SPDX-License-Identifier: GPL-2.0

//! Every rule for discards at its boundaries, and a comparison with the rules spelled out again.

mod common;

use blkif::{
    abi::DISCARD_SECURE,
    parse,
    Discard,
    DiscardOffer,
    Disk,
    Reject,
    Request,
    Status, //
};
use proptest::prelude::*;

use common::{
    any_abi,
    any_disk,
    blocks_of,
    raw_slot,
    OnWire,
    WireDiscard,
    DISK,
    EMPTY,
    HUGE,
    READ_ONLY, //
};

const NOT_SECURE: Disk = Disk {
    discard: Some(DiscardOffer { secure: false }),
    ..DISK
};

const NOT_OFFERED: Disk = Disk {
    discard: None,
    ..DISK
};

#[track_caller]
fn accepted(disk: &Disk, request: &WireDiscard) -> Discard {
    match request.parse(disk) {
        Ok(parsed) => match parsed.command {
            Request::Discard(discard) => discard,
            command => panic!("taken for {command:?}"),
        },
        Err(rejected) => panic!("refused: {rejected}"),
    }
}

#[track_caller]
fn refused(disk: &Disk, request: &WireDiscard, why: Reject, status: Status) {
    let rejected = request.parse(disk).unwrap_err();
    assert_eq!(rejected.why, why);
    assert!(!rejected.indirect);
    assert_eq!(rejected.response().status, status);
}

#[test]
fn range_on_the_disk() {
    for (disk, sector, sectors, fits) in [
        (&DISK, 0, 1, true),
        (&DISK, 0, 1000, true),
        (&DISK, 0, 1001, false),
        (&DISK, 1, 1000, false),
        (&DISK, 999, 1, true),
        (&DISK, 999, 2, false),
        (&DISK, 1000, 1, false),
        (&DISK, u64::MAX, 1, false),
        (&DISK, 1, u64::MAX, false),
        (&DISK, 2, u64::MAX, false),
        (&DISK, u64::MAX, u64::MAX, false),
        (&DISK, 1 << 63, 1 << 63, false),
        // Each half of both fields counts.
        (&DISK, 0, 1 << 32, false),
        (&DISK, 1 << 32, 1, false),
        (&HUGE, 0, 1 << 32, true),
        (&HUGE, 7, (1 << 32) + 9, true),
        (&HUGE, 0, u64::MAX, true),
        (&HUGE, 1, u64::MAX - 1, true),
        (&HUGE, 1, u64::MAX, false),
        (&HUGE, u64::MAX - 1, 1, true),
        (&HUGE, u64::MAX, 1, false),
        (&EMPTY, 0, 1, false),
    ] {
        let request = WireDiscard::new(sector, sectors);
        if fits {
            let discard = accepted(disk, &request);
            assert_eq!((discard.sector(), discard.sectors()), (sector, sectors));
            assert!(!discard.secure());
        } else {
            let why = Reject::OutOfRange {
                sector,
                sectors,
                disk_sectors: disk.sectors,
            };
            refused(disk, &request, why, Status::Error);
        }
    }
}

/// No sectors: done, wherever they would be; but not on a disk that must not change.
#[test]
fn nothing_to_discard() {
    for disk in [DISK, EMPTY, HUGE, blocks_of(4096)] {
        for sector in [0, 1, 999, 1000, 1001, u64::MAX] {
            let discard = accepted(&disk, &WireDiscard::new(sector, 0));
            assert_eq!((discard.sector(), discard.sectors()), (0, 0));
        }
    }
    let request = WireDiscard::new(0, 0);
    refused(&READ_ONLY, &request, Reject::ReadOnly, Status::Error);
}

#[test]
fn alignment() {
    for (size, sector, sectors, aligned) in [
        (512, 1, 1, true),
        (1024, 2, 2, true),
        (1024, 1, 2, false),
        (1024, 2, 1, false),
        (2048, 4, 8, true),
        (2048, 2, 4, false),
        (4096, 8, 8, true),
        (4096, 992, 8, true),
        (4096, 7, 8, false),
        (4096, 9, 8, false),
        (4096, 12, 8, false),
        (4096, 8, 7, false),
        (4096, 8, 9, false),
        (4096, 8, 4, false),
        // Misaligned at both ends, aligned in between.
        (4096, 4, 12, false),
        (8192, 16, 16, true),
        (8192, 8, 16, false),
    ] {
        let disk = blocks_of(size);
        let request = WireDiscard::new(sector, sectors);
        if aligned {
            let discard = accepted(&disk, &request);
            assert_eq!((discard.sector(), discard.sectors()), (sector, sectors));
        } else {
            let why = Reject::MisalignedDiscard {
                sector,
                sectors,
                logical_block_size: size,
            };
            refused(&disk, &request, why, Status::Error);
        }
    }
    // What is beyond the disk is reported as such, aligned or not.
    let why = Reject::OutOfRange {
        sector: 1001,
        sectors: 1,
        disk_sectors: 1000,
    };
    let request = WireDiscard::new(1001, 1);
    refused(&blocks_of(4096), &request, why, Status::Error);
}

#[test]
fn offered_or_not() {
    let readonly = Disk {
        readonly: true,
        ..NOT_OFFERED
    };
    for (sector, sectors) in [(0, 8), (0, 0), (5000, 8), (1, u64::MAX)] {
        let request = WireDiscard::new(sector, sectors);
        let why = Reject::UnsupportedOperation(5);
        refused(&NOT_OFFERED, &request, why, Status::NotSupported);
        refused(&readonly, &request, why, Status::NotSupported);
        refused(&READ_ONLY, &request, Reject::ReadOnly, Status::Error);
    }
}

/// Only bit 0 means anything, and only if it was offered.
#[test]
fn flags() {
    for flag in 0..=255 {
        for sectors in [0, 8] {
            let mut request = WireDiscard::new(16, sectors);
            request.flag = flag;
            let secure = flag & DISCARD_SECURE != 0;
            assert_eq!(accepted(&DISK, &request).secure(), secure);
            assert!(!accepted(&NOT_SECURE, &request).secure());
        }
    }
}

/// A discard that is often valid, or nearly so.
fn likely_discard() -> impl Strategy<Value = WireDiscard> {
    let number = || {
        prop_oneof![
            (0..30u64).prop_map(|block| 8 * block),
            0..220u64,
            any::<u64>(),
            u64::MAX - 200..=u64::MAX
        ]
    };
    let flag = prop_oneof![0..2u8, any::<u8>()];
    (flag, any::<u16>(), any::<u64>(), number(), number()).prop_map(
        |(flag, handle, id, sector_number, nr_sectors)| WireDiscard {
            flag,
            handle,
            id,
            sector_number,
            nr_sectors,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// The rules, spelled out independently of the parser.
    #[test]
    fn as_the_model(request in likely_discard(), disk in any_disk()) {
        let (sector, sectors) = (request.sector_number, request.nr_sectors);
        let (first, last) = (u128::from(sector) * 512, u128::from(sectors) * 512);
        let block = u128::from(disk.logical_block_size);
        let valid = disk.discard.is_some()
            && !disk.readonly
            && (sectors == 0
                || first + last <= u128::from(disk.sectors) * 512
                    && first % block == 0
                    && last % block == 0);
        match request.parse(&disk) {
            Ok(parsed) => {
                prop_assert!(valid);
                let Request::Discard(discard) = parsed.command else { panic!("{parsed:?}") };
                prop_assert_eq!(discard.sectors(), sectors);
                prop_assert!(sectors == 0 || discard.sector() == sector);
                prop_assert!(discard.sector().checked_add(sectors).unwrap() <= disk.sectors);
                let offered = disk.discard.unwrap().secure;
                prop_assert_eq!(discard.secure(), offered && request.flag % 2 == 1);
                prop_assert_eq!(parsed.response(Status::Okay).id, request.id);
            }
            Err(rejected) => {
                prop_assert!(!valid);
                let not_supported = rejected.response().status == Status::NotSupported;
                prop_assert_eq!(not_supported, disk.discard.is_none());
            }
        }
    }

    /// No byte outside the fields has an influence.
    #[test]
    fn padding_is_ignored(
        request in likely_discard(),
        abi in any_abi(),
        disk in any_disk(),
        noise in prop::collection::vec(any::<u8>(), 112),
        handle: u16,
    ) {
        let expected = parse(abi, &request.slot(abi), &disk);
        let other = WireDiscard { handle, ..request };
        let bytes = other.noisy_bytes(abi, &noise);
        prop_assert_eq!(parse(abi, &raw_slot(&bytes), &disk), expected);
    }
}
