// SPDX-License-Identifier: GPL-2.0

//! Ring slots: any bytes, any disk, all layouts.

use blkif::abi::{
    OP_DISCARD, OP_FLUSH_DISKCACHE, OP_INDIRECT, OP_READ, OP_WRITE, OP_WRITE_BARRIER,
};
use blkif::{parse, Abi, Direction, Disk, Request, Status, Transfer};

use crate::input::Input;
use crate::wire::{self, offsets, on_disk, raw_slot, u32_at, u64_at, whole_blocks, ABIS, SLOT};

/// What a slot means, by the header file.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Meaning {
    /// Operation, first sector, and for each segment grant, first byte in the page, bytes.
    Data(u8, u64, Vec<(u32, u32, u32)>),
    /// A flush or a barrier alone.
    Nothing(u8),
    Discard(u64, u64, bool),
    /// Write, first sector, number of segments, pages.
    Indirect(bool, u64, u16, Vec<u32>),
    Refused(Status),
}

/// A disk, and a slot.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let disk = wire::disk(&mut input);
    let bytes = input.take();
    for abi in ABIS {
        check(abi, &bytes, &disk);
    }
    // The same fields at the places of the other layout mean the same.
    let (id, _, rest) = offsets(Abi::X86_64);
    let (other_id, _, other_rest) = offsets(Abi::X86_32);
    let mut moved = bytes;
    moved[other_id..other_id + 16].copy_from_slice(&bytes[id..id + 16]);
    moved[other_rest..SLOT - 4].copy_from_slice(&bytes[rest..SLOT]);
    let (slot, other) = (raw_slot(&bytes), raw_slot(&moved));
    assert_eq!(
        parse(Abi::X86_64, &slot, &disk),
        parse(Abi::X86_32, &other, &disk)
    );
}

/// Parses, and compares with what the header says.
fn check(abi: Abi, bytes: &[u8; SLOT], disk: &Disk) {
    let slot = raw_slot(bytes);
    let (id, operation) = (
        u64_at(bytes, offsets(abi).0),
        bytes[usize::from(bytes[0] == OP_INDIRECT)],
    );
    let (found, response) = match parse(abi, &slot, disk) {
        Ok(parsed) => {
            again(abi, &parsed.command, parsed.id, disk);
            (
                meaning(&parsed.command, disk),
                parsed.response(Status::Okay),
            )
        }
        Err(rejected) => {
            assert!(!rejected.to_string().is_empty());
            let response = rejected.response();
            (Meaning::Refused(response.status), response)
        }
    };
    assert_eq!(
        found,
        expected(abi, bytes, disk),
        "{abi:?} {bytes:?} on {disk:?}"
    );
    assert_eq!((response.id, response.operation), (id, operation));
    // Nothing but what is to be told is in the answer.
    let words = response.words();
    assert_eq!(u64::from(words[0]) | u64::from(words[1]) << 32, id);
    assert_eq!(
        words[2],
        u32::from(operation) | u32::from(response.status as i16 as u16) << 16
    );
}

/// What the crate has found, in our terms, with its promises checked.
fn meaning(request: &Request<'_>, disk: &Disk) -> Meaning {
    let data = |operation, transfer: &Transfer<'_>| {
        let segments: Vec<_> = transfer
            .segments()
            .map(|it| (it.gref(), it.offset(), it.len()))
            .collect();
        let mut total = 0;
        for &(_, offset, len) in &segments {
            assert!(len > 0 && len % 512 == 0 && offset % 512 == 0 && offset + len <= 4096);
            total += len;
        }
        assert!((1..=11).contains(&segments.len()) && segments.len() == transfer.count());
        assert_eq!((transfer.bytes(), transfer.sectors()), (total, total / 512));
        assert!(on_disk(disk, transfer.sector(), (total / 512).into()));
        Meaning::Data(operation, transfer.sector(), segments)
    };
    match request {
        Request::Read(transfer) => data(OP_READ, transfer),
        Request::Write(transfer) => data(OP_WRITE, transfer),
        Request::Flush(Some(transfer)) => data(OP_FLUSH_DISKCACHE, transfer),
        Request::Barrier(Some(transfer)) => data(OP_WRITE_BARRIER, transfer),
        Request::Flush(None) => Meaning::Nothing(OP_FLUSH_DISKCACHE),
        Request::Barrier(None) => Meaning::Nothing(OP_WRITE_BARRIER),
        Request::Discard(it) => Meaning::Discard(it.sector(), it.sectors(), it.secure()),
        Request::Indirect(it) => Meaning::Indirect(
            it.direction() == Direction::Write,
            it.sector(),
            it.count(),
            it.pages().to_vec(),
        ),
    }
}

/// What the header, and what was offered, make of the bytes.
fn expected(abi: Abi, bytes: &[u8; SLOT], disk: &Disk) -> Meaning {
    let (_, sector_at, rest) = offsets(abi);
    let (operation, count, sector) = (bytes[0], bytes[1], u64_at(bytes, sector_at));
    let refused = Meaning::Refused(Status::Error);
    let offered = match operation {
        OP_READ | OP_WRITE => true,
        OP_FLUSH_DISKCACHE => disk.flush,
        OP_WRITE_BARRIER => disk.barrier,
        OP_DISCARD => disk.discard.is_some(),
        OP_INDIRECT => disk.max_indirect_segments > 0,
        _ => false,
    };
    if !offered {
        return Meaning::Refused(Status::NotSupported);
    }
    match operation {
        OP_DISCARD => {
            let sectors = u64_at(bytes, rest);
            let secure = count & 1 != 0 && disk.discard.is_some_and(|offer| offer.secure);
            if disk.readonly {
                refused
            } else if sectors == 0 {
                Meaning::Discard(0, 0, secure)
            } else if on_disk(disk, sector, sectors.into())
                && whole_blocks(disk, sector)
                && whole_blocks(disk, sectors)
            {
                Meaning::Discard(sector, sectors, secure)
            } else {
                refused
            }
        }
        OP_INDIRECT => {
            let segments = u16::from_le_bytes([bytes[2], bytes[3]]);
            let most = disk.max_indirect_segments.min(256);
            let write = count == OP_WRITE;
            if count > OP_WRITE || (write && disk.readonly) || segments == 0 || segments > most {
                return refused;
            }
            let pages =
                (0..usize::from(segments).div_ceil(512)).map(|n| u32_at(bytes, rest + 4 + 4 * n));
            Meaning::Indirect(write, sector, segments, pages.collect())
        }
        _ => {
            if count == 0 && [OP_FLUSH_DISKCACHE, OP_WRITE_BARRIER].contains(&operation) {
                return Meaning::Nothing(operation);
            }
            if count == 0 || count > 11 || (disk.readonly && operation != OP_READ) {
                return refused;
            }
            let mut segments = Vec::new();
            let mut sectors = 0;
            for number in 0..usize::from(count) {
                let at = rest + 8 * number;
                let (first, last) = (bytes[at + 4], bytes[at + 5]);
                if first > last || last > 7 {
                    return refused;
                }
                let each = u64::from(last - first) + 1;
                if !whole_blocks(disk, each) || !whole_blocks(disk, sector) {
                    return refused;
                }
                segments.push((u32_at(bytes, at), u32::from(first) * 512, each as u32 * 512));
                sectors += u128::from(each);
            }
            if on_disk(disk, sector, sectors) {
                Meaning::Data(operation, sector, segments)
            } else {
                refused
            }
        }
    }
}

/// A request that was accepted, written anew, is the same request.
fn again(abi: Abi, request: &Request<'_>, id: u64, disk: &Disk) {
    let data = |operation, transfer: &Transfer<'_>| {
        let segments: Vec<_> = transfer
            .segments()
            .map(|it| {
                let first = it.offset() / 512;
                (it.gref(), first as u8, (first + it.sectors() - 1) as u8)
            })
            .collect();
        wire::request(abi, operation, id, transfer.sector(), &segments)
    };
    let bytes = match request {
        Request::Read(transfer) => data(OP_READ, transfer),
        Request::Write(transfer) => data(OP_WRITE, transfer),
        Request::Flush(Some(transfer)) => data(OP_FLUSH_DISKCACHE, transfer),
        Request::Barrier(Some(transfer)) => data(OP_WRITE_BARRIER, transfer),
        Request::Flush(None) => wire::request(abi, OP_FLUSH_DISKCACHE, id, 0, &[]),
        Request::Barrier(None) => wire::request(abi, OP_WRITE_BARRIER, id, 0, &[]),
        Request::Discard(it) => {
            wire::discard(abi, it.secure().into(), id, it.sector(), it.sectors())
        }
        Request::Indirect(it) => {
            let operation = if it.direction() == Direction::Write {
                OP_WRITE
            } else {
                OP_READ
            };
            wire::indirect(abi, operation, id, it.sector(), it.count(), it.pages())
        }
    };
    let slot = raw_slot(&bytes);
    let parsed = parse(abi, &slot, disk).expect("what was accepted is accepted again");
    assert_eq!(
        (parsed.id, meaning(&parsed.command, disk)),
        (id, meaning(request, disk))
    );
}

/// One of each operation.
pub fn seeds() -> Vec<Vec<u8>> {
    let abi = Abi::X86_64;
    let segments = [(8, 0, 7), (9, 2, 3), (10, 7, 7)];
    let mut slots = vec![
        wire::discard(abi, 1, 5, 8, 16),
        wire::indirect(abi, OP_READ, 6, 8, 40, &[100]),
        wire::indirect(abi, OP_WRITE, 7, 8, 256, &[101]),
        wire::request(abi, OP_FLUSH_DISKCACHE, 8, 0, &[]),
        wire::request(abi, 200, 9, 0, &[]),
    ];
    for operation in [OP_READ, OP_WRITE, OP_WRITE_BARRIER, OP_FLUSH_DISKCACHE] {
        slots.push(wire::request(abi, operation, 10, 8, &segments));
        slots.push(wire::request(
            Abi::X86_32,
            operation,
            11,
            990,
            &segments[..1],
        ));
    }
    slots
        .iter()
        .map(|slot| [&wire::GOOD_DISK[..], slot].concat())
        .collect()
}
