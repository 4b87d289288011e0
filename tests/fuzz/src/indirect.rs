// SPDX-License-Identifier: GPL-2.0

//! Pages of segments: what stands in them, how many segments the backend reads of them.

use blkif::abi::{OP_READ, OP_WRITE};
use blkif::{parse, Reject, Request};

use crate::input::Input;
use crate::wire::{self, on_disk, raw_slot, whole_blocks};

/// A disk; layout, direction, first sector and number of segments of an indirect request; how many segments are given
/// more or fewer; their words.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut disk = wire::disk(&mut input);
    disk.max_indirect_segments = disk.max_indirect_segments.max(1);
    let [abi, direction, extra] = input.take();
    let (sector, count) = (input.u64(), input.u16() % 300);
    let abi = wire::abi(abi);
    let grefs: Vec<u32> = (1..=8).collect();
    let bytes = wire::indirect(
        abi,
        [OP_READ, OP_WRITE][usize::from(direction % 2)],
        1,
        sector,
        count,
        &grefs,
    );
    let slot = raw_slot(&bytes);
    let Ok(parsed) = parse(abi, &slot, &disk) else {
        return;
    };
    let Request::Indirect(indirect) = parsed.command else {
        panic!("another request: {parsed:?}");
    };
    assert_eq!((indirect.count(), indirect.sector()), (count, sector));
    assert_eq!(indirect.pages().len(), usize::from(count).div_ceil(512));

    // Mostly as many as there are.
    let give = match extra {
        0..=0xef => count,
        0xf0..=0xf7 => count - 1,
        _ => count + 1,
    };
    let mut segments = indirect.segments();
    let (mut sectors, mut good, mut aligned) = (0u128, 0, true);
    for _ in 0..give {
        let (gref, range) = (input.u32(), input.u32());
        let [first, last, ..] = range.to_le_bytes();
        let valid = first <= last && last < 8;
        match segments.add(gref, range) {
            Ok(segment) => {
                assert!(valid && good < count);
                assert_eq!(
                    (segment.gref(), segment.offset()),
                    (gref, u32::from(first) * 512)
                );
                assert_eq!(segment.len(), u32::from(last - first + 1) * 512);
                assert!(segment.offset() + segment.len() <= 4096 && !segment.is_empty());
                good += 1;
                sectors += u128::from(segment.sectors());
                aligned &= whole_blocks(&disk, segment.sectors().into());
            }
            Err(why) => {
                assert!(!valid || good == count);
                assert!(matches!(
                    why,
                    Reject::SegmentRange { .. } | Reject::SegmentCount { .. }
                ));
            }
        }
    }
    let expected =
        good == count && on_disk(&disk, sector, sectors) && aligned && whole_blocks(&disk, sector);
    match segments.finish() {
        Ok(extent) => {
            assert!(
                expected,
                "accepted: {disk:?} {indirect:?}, {good} good segments, {sectors} sectors"
            );
            assert_eq!(
                (extent.sector(), u128::from(extent.sectors())),
                (sector, sectors)
            );
            assert_eq!(u128::from(extent.bytes()), sectors * 512);
            assert!(extent.bytes() <= 1 << 20);
        }
        Err(why) => {
            assert!(!expected, "{why:?}: {disk:?} {indirect:?}");
            // It can be told why, and the frontend gets an error.
            let rejected = parsed.reject(why);
            assert!(rejected.indirect && !rejected.to_string().is_empty());
        }
    }
}

/// Good requests of several lengths, one with a wrong segment.
pub fn seeds() -> Vec<Vec<u8>> {
    let seed = |count: u16, extra: u8, last: u8| {
        let mut bytes = [
            &wire::GOOD_DISK[..],
            &[2, 0, extra],
            &8u64.to_le_bytes(),
            &count.to_le_bytes(),
        ]
        .concat();
        for number in 0..count {
            bytes.extend(u32::from(number).to_le_bytes());
            bytes.extend([0, if number + 1 == count { last } else { 1 }, 0, 0]);
        }
        bytes
    };
    vec![
        seed(1, 0, 7),
        seed(12, 0, 0),
        seed(12, 0xf0, 7),
        seed(12, 0xff, 7),
        seed(3, 0, 8),
        seed(255, 0, 3),
        seed(256, 0, 1),
    ]
}
