// SPDX-License-Identifier: GPL-2.0

//! The table: single requests, and the status that each must get.
//!
//! A status is what the public header and the in-tree backend agree on. Where a backend answers otherwise and may, the
//! row has an exception for it with the reason.

use blkif::abi::{
    operation_name, MAX_SEGMENTS, OP_DISCARD, OP_FLUSH_DISKCACHE, OP_INDIRECT, OP_READ, OP_WRITE,
    OP_WRITE_BARRIER,
};
use blkif::Status;

use crate::args::Peer;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// An operation code, with segments in the slot.
    Direct(u8),
    /// The operation inside of an indirect request.
    Indirect(u8),
    /// A discard with these flags and of so many sectors.
    Discard(u8, u64),
}

impl Operation {
    /// The operation that the response has to name. For an indirect request that is the inner one: Linux's frontend
    /// gives the disk up when it is not.
    pub fn answered(self) -> u8 {
        match self {
            Operation::Direct(operation) | Operation::Indirect(operation) => operation,
            Operation::Discard(..) => OP_DISCARD,
        }
    }

    /// Whether it moves data from the pages to the disk.
    pub fn writes(self) -> bool {
        matches!(
            self.answered(),
            OP_WRITE | OP_WRITE_BARRIER | OP_FLUSH_DISKCACHE
        )
    }
}

/// Where on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Counted from the start.
    Sector(u64),
    /// Counted back from the end.
    BeforeEnd(u64),
}

/// What is wrong with one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `first_sect` and `last_sect`.
    Range(u8, u8),
    /// A grant reference that was never given.
    NeverGranted,
    /// A grant reference of a page whose grant has ended.
    Revoked,
    /// A page that the backend may only read.
    ReadOnly,
    /// The page of segments that an indirect request names was never granted.
    Descriptor,
}

/// Which segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Whole pages.
    Pages(u16),
    /// As many whole pages as the backend offers for an indirect request, and so many more.
    Offered(u16),
    /// One piece each of different pages: first and last sector.
    Pieces(&'static [(u8, u8)]),
    /// Pieces of one page.
    OnePage(&'static [(u8, u8)]),
    /// Whole pages, but one of them at fault.
    Faulty(u16, u16, Fault),
}

/// What the backend has to offer for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// `feature-flush-cache`
    Flush,
    /// `feature-barrier`
    Barrier,
    /// `feature-discard`
    Discard,
    /// `feature-max-indirect-segments` of at least this
    Indirect(u32),
}

/// When an exception holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// On every disk.
    Always,
    /// On a disk that must not be written.
    ReadOnly,
    /// With persistent grants.
    Persistent,
}

/// Another answer that one backend gives, and may.
#[derive(Clone, Copy, Debug)]
pub struct Exception {
    /// Which backend.
    pub peer: Peer,
    /// When.
    pub when: When,
    /// Its answer.
    pub expect: Status,
    /// Why that is no error.
    pub why: &'static str,
}

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// Operation and circumstance.
    pub name: String,
    /// What is asked.
    pub operation: Operation,
    /// Where.
    pub at: At,
    /// With which segments.
    pub layout: Layout,
    /// The number of segments that the request claims, if that is not the number of segments.
    pub claim: Option<u16>,
    /// The field `handle`.
    pub handle: u16,
    /// The field `id`; otherwise a random one.
    pub id: Option<u64>,
    /// What has to be offered.
    pub need: Need,
    /// Whether to send it although it is not offered; it has to be answered as not supported then.
    pub without_offer: bool,
    /// The status that it must get.
    pub expect: Status,
    /// Backends with other answers.
    pub exceptions: Vec<Exception>,
}

impl Row {
    fn new(name: impl Into<String>, operation: Operation, layout: Layout, expect: Status) -> Row {
        Row {
            name: name.into(),
            operation,
            at: At::Sector(64),
            layout,
            claim: None,
            handle: 0,
            id: None,
            need: Need::Nothing,
            without_offer: false,
            expect,
            exceptions: Vec::new(),
        }
    }

    fn at(mut self, at: At) -> Row {
        self.at = at;
        self
    }

    fn claim(mut self, count: u16) -> Row {
        self.claim = Some(count);
        self
    }

    fn need(mut self, need: Need) -> Row {
        self.need = need;
        self
    }

    fn even_without_offer(mut self) -> Row {
        self.without_offer = true;
        self
    }

    fn but(mut self, peer: Peer, when: When, expect: Status, why: &'static str) -> Row {
        self.exceptions.push(Exception {
            peer,
            when,
            expect,
            why,
        });
        self
    }

    /// Whether an accepted request of this row changes the disk.
    pub fn changes_disk(&self) -> bool {
        let has_data = self.layout != Layout::Pages(0) && self.claim != Some(0);
        match self.operation {
            Operation::Discard(..) => true,
            operation => operation.writes() && has_data,
        }
    }
}

use Layout::{Faulty, Offered, OnePage, Pages, Pieces};
use Status::{Error, NotSupported, Okay};

const SECTOR: Layout = Pieces(&[(0, 0)]);
const ODD: Layout = Pieces(&[
    (0, 0),
    (7, 7),
    (3, 5),
    (0, 7),
    (1, 6),
    (2, 2),
    (0, 3),
    (4, 7),
    (6, 7),
    (0, 6),
    (5, 5),
]);

/// All rows, in the order in which they are sent.
pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    rows.extend(transfers("read", Operation::Direct(OP_READ)));
    rows.extend(transfers("write", Operation::Direct(OP_WRITE)));
    rows.extend(flushes());
    rows.extend(barriers());
    rows.extend(discards());
    rows.extend(indirect("indirect read", Operation::Indirect(OP_READ)));
    rows.extend(indirect("indirect write", Operation::Indirect(OP_WRITE)));
    rows.extend(wrong_inside_indirect());
    for operation in [4, 7, 0x80, 0xff] {
        let row = Row::new(
            format!("unknown operation {operation}"),
            Operation::Direct(operation),
            Pages(1),
            NotSupported,
        );
        rows.push(row.but(
            Peer::Qdisk,
            When::Always,
            Error,
            "qemu answers every request that it cannot parse so",
        ));
    }
    rows
}

const QEMU_WRAPS: &str =
    "a fault of qemu 10.0: it multiplies by 512 in 64 bits, and takes sector 0 for this one";

/// Whoever keeps grants mapped maps them for both directions, whatever the request is.
fn persistent_is_writable(row: Row) -> Row {
    let why = "a persistent grant is mapped for writing whatever the request is";
    row.but(Peer::Loop, When::Persistent, Error, why)
        .but(Peer::Rs, When::Persistent, Error, why)
}

/// What holds for reads and writes alike.
fn transfers(what: &str, operation: Operation) -> Vec<Row> {
    let new =
        |name: &str, layout, expect| Row::new(format!("{what}: {name}"), operation, layout, expect);
    let read_only_page = if operation.writes() { Okay } else { Error };
    let far = |name: &str, sector| new(name, Pages(1), Error).at(At::Sector(sector));
    let mut rows = vec![
        new("1 page", Pages(1), Okay),
        new("11 pages", Pages(MAX_SEGMENTS as u16), Okay),
        new("1 sector", SECTOR, Okay),
        new("the last sector of a page", Pieces(&[(7, 7)]), Okay),
        new("sectors 3 to 5 of a page", Pieces(&[(3, 5)]), Okay),
        new("11 pieces of odd sizes", ODD, Okay),
        new("two pieces of one page", OnePage(&[(0, 3), (4, 7)]), Okay),
        new("the first sector of the disk", SECTOR, Okay).at(At::Sector(0)),
        new("the last sector of the disk", SECTOR, Okay).at(At::BeforeEnd(1)),
        new("11 pages up to the end of the disk", Pages(11), Okay).at(At::BeforeEnd(88)),
        new("one sector beyond the end", SECTOR, Error).at(At::BeforeEnd(0)),
        new("across the end", Pages(2), Error).at(At::BeforeEnd(8)),
        far("sector 2^40", 1 << 40),
        far("sector 2^55, whose bytes do not fit 64 bits", 1 << 55).but(
            Peer::Qdisk,
            When::Always,
            Okay,
            QEMU_WRAPS,
        ),
        far("sector 2^63", 1 << 63).but(Peer::Qdisk, When::Always, Okay, QEMU_WRAPS),
        far("sector 2^64-1", u64::MAX),
        far("sector 2^64-8, so that the end is 0", u64::MAX - 7),
        new("no segment", Pages(0), Error).but(
            Peer::Qdisk,
            When::Always,
            Okay,
            "nothing to do is done",
        ),
        new("12 segments", Pages(11), Error).claim(12),
        new("255 segments", Pages(11), Error).claim(255),
        new("first_sect after last_sect", Pieces(&[(5, 3)]), Error),
        new("last_sect 8", Pieces(&[(0, 8)]), Error),
        new("first_sect and last_sect 8", Pieces(&[(8, 8)]), Error),
        new("last_sect 255", Pieces(&[(0, 255)]), Error),
        new("first_sect 255, last_sect 0", Pieces(&[(255, 0)]), Error),
        new(
            "the last of 11 segments out of its page",
            Faulty(11, 10, Fault::Range(7, 8)),
            Error,
        ),
        new(
            "a page never granted",
            Faulty(1, 0, Fault::NeverGranted),
            Error,
        ),
        new(
            "the last of 11 pages never granted",
            Faulty(11, 10, Fault::NeverGranted),
            Error,
        ),
        new(
            "the first of 11 pages never granted",
            Faulty(11, 0, Fault::NeverGranted),
            Error,
        ),
        new(
            "a page no longer granted",
            Faulty(1, 0, Fault::Revoked),
            Error,
        ),
        persistent_is_writable(new(
            "a page granted for reading only",
            Faulty(1, 0, Fault::ReadOnly),
            read_only_page,
        )),
    ];
    rows.push(Row {
        handle: 0xffff,
        ..new("a handle of no disk", Pages(1), Okay)
    });
    rows.push(Row {
        id: Some(0),
        ..new("id 0", Pages(1), Okay)
    });
    rows.push(Row {
        id: Some(u64::MAX),
        ..new("id 2^64-1", Pages(1), Okay)
    });
    if operation.writes() {
        for row in &mut rows {
            if row.name.ends_with("no segment") {
                let why = "a write to a read-only disk is refused first";
                row.exceptions.insert(
                    0,
                    Exception {
                        peer: Peer::Qdisk,
                        when: When::ReadOnly,
                        expect: Error,
                        why,
                    },
                );
            }
        }
    }
    rows
}

const REFUSED_AS_WRITE: &str = "a flush without data is refused like a write";

fn flushes() -> Vec<Row> {
    let new = |name: &str, layout, expect| {
        Row::new(
            format!("flush: {name}"),
            Operation::Direct(OP_FLUSH_DISKCACHE),
            layout,
            expect,
        )
        .need(Need::Flush)
    };
    vec![
        new("without data", Pages(0), Okay)
            .even_without_offer()
            .but(Peer::Loop, When::ReadOnly, Error, REFUSED_AS_WRITE),
        new("without data, at sector 2^64-1", Pages(0), Okay)
            .at(At::Sector(u64::MAX))
            .but(Peer::Loop, When::ReadOnly, Error, REFUSED_AS_WRITE),
        new("with a page to write", Pages(1), Okay),
        new("with 11 pages to write", Pages(11), Okay),
        new("with 12 segments", Pages(11), Error).claim(12),
        new("with a page beyond the end", Pages(1), Error).at(At::BeforeEnd(0)),
        new(
            "with a page never granted",
            Faulty(1, 0, Fault::NeverGranted),
            Error,
        ),
        new("first_sect after last_sect", Pieces(&[(5, 3)]), Error),
    ]
}

fn barriers() -> Vec<Row> {
    let new = |name: &str, layout, expect| {
        Row::new(
            format!("barrier: {name}"),
            Operation::Direct(OP_WRITE_BARRIER),
            layout,
            expect,
        )
        .need(Need::Barrier)
    };
    vec![
        new("with a page to write", Pages(1), Okay).even_without_offer(),
        new("with 11 pieces of odd sizes", ODD, Okay),
        new("without data", Pages(0), Okay).but(
            Peer::Loop,
            When::ReadOnly,
            Error,
            REFUSED_AS_WRITE,
        ),
        new("with 12 segments", Pages(11), Error).claim(12),
        new("with a page beyond the end", Pages(1), Error).at(At::BeforeEnd(0)),
        new(
            "with a page never granted",
            Faulty(1, 0, Fault::NeverGranted),
            Error,
        ),
        new("last_sect 8", Pieces(&[(0, 8)]), Error),
    ]
}

/// `BLKIF_DISCARD_SECURE`
const SECURE: u8 = 1;

fn discards() -> Vec<Row> {
    let new = |name: &str, flag, sectors, expect| {
        let operation = Operation::Discard(flag, sectors);
        Row::new(format!("discard: {name}"), operation, Pages(0), expect).need(Need::Discard)
    };
    vec![
        new("8 sectors", 0, 8, Okay).even_without_offer(),
        new("1024 sectors", 0, 1024, Okay).at(At::Sector(2048)),
        new("the last 8 sectors of the disk", 0, 8, Okay).at(At::BeforeEnd(8)),
        new("with a flag for which there is no support", SECURE, 8, Okay),
        new("9 sectors of which 8 exist", 0, 9, Error).at(At::BeforeEnd(8)),
        new("one sector beyond the end", 0, 8, Error).at(At::BeforeEnd(0)),
        new("2^64-1 sectors", 0, u64::MAX, Error),
        new("sectors that end at 2^64", 0, u64::MAX - 63, Error),
        new(
            "2^55 sectors, whose bytes do not fit 64 bits",
            0,
            1 << 55,
            Error,
        ),
        new("sector 2^64-1", 0, 8, Error).at(At::Sector(u64::MAX)),
    ]
}

/// What holds for indirect reads and writes alike.
fn indirect(what: &str, operation: Operation) -> Vec<Row> {
    let new = |name: &str, layout, expect| {
        Row::new(format!("{what}: {name}"), operation, layout, expect).need(Need::Indirect(1))
    };
    let many = |row: Row| row.need(Need::Indirect(64));
    let read_only_page = if operation.writes() { Okay } else { Error };
    vec![
        new("1 page", Pages(1), Okay).even_without_offer(),
        new("11 pieces of odd sizes", ODD, Okay).need(Need::Indirect(11)),
        new("12 pages", Pages(12), Okay).need(Need::Indirect(12)),
        many(new("64 pages up to the end of the disk", Pages(64), Okay)).at(At::BeforeEnd(512)),
        new("as many pages as are offered", Offered(0), Okay),
        new("one page more than is offered", Offered(1), Error),
        new("65535 segments", Pages(11), Error).claim(0xffff),
        new("no segment", Pages(0), Error),
        new("one sector beyond the end", SECTOR, Error).at(At::BeforeEnd(0)),
        many(new("64 pages across the end", Pages(64), Error)).at(At::BeforeEnd(504)),
        new("sector 2^64-1", Pages(1), Error).at(At::Sector(u64::MAX)),
        new("first_sect after last_sect", Pieces(&[(5, 3)]), Error),
        new("last_sect 8", Pieces(&[(0, 8)]), Error),
        many(new(
            "the 64th segment out of its page",
            Faulty(64, 63, Fault::Range(0, 8)),
            Error,
        )),
        many(new(
            "the first of 64 pages never granted",
            Faulty(64, 0, Fault::NeverGranted),
            Error,
        )),
        many(new(
            "the 12th of 64 pages never granted",
            Faulty(64, 11, Fault::NeverGranted),
            Error,
        )),
        many(new(
            "the last of 64 pages never granted",
            Faulty(64, 63, Fault::NeverGranted),
            Error,
        )),
        new(
            "the page of segments never granted",
            Faulty(1, 0, Fault::Descriptor),
            Error,
        ),
        persistent_is_writable(new(
            "a page granted for reading only",
            Faulty(1, 0, Fault::ReadOnly),
            read_only_page,
        )),
    ]
}

fn wrong_inside_indirect() -> Vec<Row> {
    [
        OP_WRITE_BARRIER,
        OP_FLUSH_DISKCACHE,
        OP_DISCARD,
        OP_INDIRECT,
        0xff,
    ]
    .into_iter()
    .map(|operation| {
        let name = format!(
            "indirect: {} ({operation}) inside",
            operation_name(operation)
        );
        Row::new(name, Operation::Indirect(operation), Pages(1), Error).need(Need::Indirect(1))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<String> = rows().into_iter().map(|row| row.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
