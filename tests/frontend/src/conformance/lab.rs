// SPDX-License-Identifier: GPL-2.0

//! Sends what a row describes, and looks at everything that comes back: the status, the whole slot of the response,
//! the data, and what is around the data.

use std::collections::HashMap;
use std::time::Duration;

use blkif::abi::{MAX_SEGMENTS, OP_INDIRECT, OP_READ, OP_WRITE};
use blkif::{RawSlot, Status};

use super::table::{At, Exception, Fault, Layout, Need, Operation, Row, When};
use super::Outcome;
use crate::args::Peer;
use crate::device::{Device, Properties};
use crate::error::{fail, Result};
use crate::ring::{Response, Ring};
use crate::rng::{describe_sector, fill_sector, Rng, SECTOR};
use crate::sys::{Pages, PAGE};
use crate::wire::{
    self, Common, Segment, MAX_INDIRECT_PAGES, SEGMENTS_PER_INDIRECT_PAGE, SEGMENT_SIZE,
};

/// In every byte of a slot that a request does not use.
const FILLER: u8 = 0xa5;
/// In every byte of a page that no data are expected in.
const POISON: u8 = 0x5a;
/// A grant reference far beyond any table.
const NEVER_GRANTED: u32 = 0x00ff_fff0;
/// What is kept in mind of the disk: so many sectors at its start and at its end.
const HEAD: u64 = 4096;
const TAIL: u64 = 512;
const PAGES_AT_LEAST: usize = 64;

/// The connected disk with pages to try it with.
pub struct Lab {
    /// The disk.
    pub device: Device,
    /// Which backend it is.
    pub peer: Peer,
    /// For a response.
    pub timeout: Duration,
    /// Whether the backend may keep pages mapped.
    persistent: bool,
    /// The ring of this row.
    pub current: usize,
    rng: Rng,
    pages: Pages,
    descriptors: Pages,
    read_only: Pages,
    revoked: u32,
    /// Contents of the sectors that are known.
    known: HashMap<u64, [u8; SECTOR]>,
    version: u32,
}

/// A piece of a page of `Lab::pages`, for data.
#[derive(Clone, Copy)]
struct Place {
    page: usize,
    first: u8,
    last: u8,
}

impl Lab {
    /// Grants pages, and fills what is tested of a disk that may be written.
    pub fn new(device: Device, peer: Peer, timeout: Duration, persistent: bool) -> Result<Lab> {
        let domain = device.backend_id;
        let count = PAGES_AT_LEAST.max(device.properties.indirect as usize + 2);
        let revoked = Pages::grant(domain, 1, true)?.grefs()[0];
        let mut lab = Lab {
            pages: Pages::grant(domain, count, true)?,
            descriptors: Pages::grant(domain, MAX_INDIRECT_PAGES, true)?,
            read_only: Pages::grant(domain, 1, false)?,
            revoked,
            device,
            peer,
            timeout,
            persistent,
            current: 0,
            rng: Rng::new(1),
            known: HashMap::new(),
            version: 0,
        };
        // The freed reference comes first when pages are granted: use one that is not in use again.
        while lab.is_granted(lab.revoked) {
            let extra = Pages::grant(domain, 1, true)?;
            lab.revoked = extra.grefs()[0];
        }
        let sectors = lab.properties().sectors;
        if sectors < HEAD + TAIL {
            fail!("the disk has {sectors} sectors; this needs {}", HEAD + TAIL);
        }
        let readonly = lab.properties().readonly;
        for (start, end) in [(0, HEAD), (sectors - TAIL, sectors)] {
            let mut at = start;
            while at < end {
                let count = (end - at).min(MAX_SEGMENTS as u64 * 8);
                if !readonly {
                    lab.prepare(at, count)?;
                }
                let data = lab.read(at, count)?;
                if readonly {
                    lab.remember(at, &data);
                } else if let Some(problem) = lab.compare(at, &data) {
                    fail!("the disk cannot be prepared for tests: {problem}");
                }
                at += count;
            }
        }
        Ok(lab)
    }

    /// Gives the disk back.
    pub fn finish(self) -> Result<()> {
        self.device.disconnect()
    }

    /// What the backend offers.
    pub fn properties(&self) -> &Properties {
        &self.device.properties
    }

    /// The ring of this row.
    pub fn ring(&mut self) -> &mut Ring {
        let count = self.device.rings.len();
        &mut self.device.rings[self.current % count]
    }

    fn is_granted(&self, gref: u32) -> bool {
        let all = [&self.pages, &self.descriptors, &self.read_only];
        all.iter().any(|pages| pages.grefs().contains(&gref))
    }

    /// A fresh identifier.
    pub fn id(&mut self) -> u64 {
        self.rng.next()
    }

    fn remember(&mut self, sector: u64, data: &[u8]) {
        for (number, content) in data.chunks_exact(SECTOR).enumerate() {
            self.known.insert(
                sector + number as u64,
                std::array::from_fn(|byte| content[byte]),
            );
        }
    }

    fn compare(&self, sector: u64, data: &[u8]) -> Option<String> {
        data.chunks_exact(SECTOR)
            .enumerate()
            .find_map(|(number, content)| {
                let sector = sector + number as u64;
                let known = self.known.get(&sector)?;
                (known != content).then(|| {
                    format!(
                        "sector {sector} holds {}, expected {}",
                        describe_sector(content),
                        describe_sector(known)
                    )
                })
            })
    }

    /// Data that no sector holds yet.
    fn fresh(&mut self, sector: u64, count: u64) -> Vec<u8> {
        self.version += 1;
        let mut data = vec![0; count as usize * SECTOR];
        for (number, content) in data.chunks_exact_mut(SECTOR).enumerate() {
            fill_sector(content, 1, sector.wrapping_add(number as u64), self.version);
        }
        data
    }

    /// A plain read or write of some sectors, which has to work.
    fn plain(&mut self, operation: u8, sector: u64, count: u64) -> Result<()> {
        let segments: Vec<Segment> = (0..count.div_ceil(8))
            .map(|page| Segment {
                gref: self.pages.grefs()[page as usize],
                first: 0,
                last: ((count - page * 8).min(8) - 1) as u8,
            })
            .collect();
        let common = Common {
            id: self.id(),
            sector,
            handle: 0,
        };
        let ring = self.ring();
        ring.put(&wire::direct(
            ring.abi(),
            FILLER,
            operation,
            segments.len() as u8,
            common,
            &segments,
        ));
        ring.push()?;
        let timeout = self.timeout;
        let response = self.ring().wait_response(timeout)?;
        if response.status != Status::Okay as i16 || response.id != common.id {
            fail!(
                "a plain {} of {count} sectors from {sector}: {response:?}",
                blkif::abi::operation_name(operation)
            );
        }
        Ok(())
    }

    fn prepare(&mut self, sector: u64, count: u64) -> Result<()> {
        let data = self.fresh(sector, count);
        self.pages.write(0, &data);
        self.plain(OP_WRITE, sector, count)?;
        self.remember(sector, &data);
        Ok(())
    }

    fn read(&mut self, sector: u64, count: u64) -> Result<Vec<u8>> {
        let mut data = vec![0; count as usize * SECTOR];
        self.pages
            .fill(0, data.len().next_multiple_of(PAGE), POISON);
        self.plain(OP_READ, sector, count)?;
        self.pages.read(0, &mut data);
        Ok(data)
    }

    /// Reads and writes in turns, all at once, each of the page that follows on the disk; what is wrong with the data
    /// then. A read-only disk is read only.
    pub fn in_turns(&mut self) -> Result<Option<String>> {
        const COUNT: u64 = 10;
        let readonly = self.properties().readonly;
        let timeout = self.timeout;
        let first = self.rng.below(HEAD / 8 - COUNT) * 8;
        let mut written = Vec::new();
        for number in 0..COUNT {
            let (page, sector) = (number as usize, first + number * 8);
            let operation = if number % 2 == 1 && !readonly {
                let data = self.fresh(sector, 8);
                self.pages.write(page * PAGE, &data);
                written.push((sector, data));
                OP_WRITE
            } else {
                self.pages.fill(page * PAGE, PAGE, POISON);
                OP_READ
            };
            let common = Common {
                id: self.id(),
                sector,
                handle: 0,
            };
            let gref = self.pages.grefs()[page];
            let ring = self.ring();
            ring.put(&wire::page(ring.abi(), FILLER, operation, common, gref));
        }
        self.ring().push()?;
        for _ in 0..COUNT {
            let response = self.ring().wait_response(timeout)?;
            if response.status != Status::Okay as i16 {
                return Ok(Some(format!("{response:?}")));
            }
        }
        for (sector, data) in written {
            self.remember(sector, &data);
        }
        let mut data = vec![0; COUNT as usize * PAGE];
        self.pages.read(0, &mut data);
        if let Some(problem) = self.compare(first, &data) {
            return Ok(Some(format!("in the frontend's pages: {problem}")));
        }
        let data = self.read(first, COUNT * 8)?;
        Ok(self.compare(first, &data))
    }

    /// Puts a read of one sector, for tests of the ring; returns its identifier.
    pub fn put_read(&mut self, id: u64) {
        let gref = self.pages.grefs()[(self.rng.below(PAGES_AT_LEAST as u64)) as usize];
        let sector = self.rng.below(HEAD / 8) * 8;
        let ring = self.ring();
        let common = Common {
            id,
            sector,
            handle: 0,
        };
        ring.put(&wire::page(ring.abi(), FILLER, OP_READ, common, gref));
    }

    /// Puts a request of an operation that no backend knows.
    pub fn put_unknown(&mut self, id: u64) {
        let ring = self.ring();
        ring.put(&wire::direct(
            ring.abi(),
            FILLER,
            0x7f,
            0,
            Common {
                id,
                sector: 0,
                handle: 0,
            },
            &[],
        ));
    }

    /// What is expected of a row on this disk, any of some statuses, and why; or why it is not sent.
    pub fn expectation(
        &self,
        row: &Row,
    ) -> std::result::Result<(Vec<Status>, &'static str), String> {
        let properties = self.properties();
        let offered = match row.need {
            Need::Nothing => true,
            Need::Flush => properties.flush,
            Need::Barrier => properties.barrier,
            Need::Discard => properties.discard,
            Need::Indirect(count) => properties.indirect >= count,
        };
        if !offered {
            let partly = matches!(row.need, Need::Indirect(_)) && properties.indirect > 0;
            if properties.readonly && row.changes_disk() && !partly {
                // Offered or not, it must leave the disk alone. That it does is checked, too.
                let refused = vec![Status::Error, Status::NotSupported];
                return Ok((refused, "neither offered nor allowed"));
            }
            if !row.without_offer || partly {
                return Err("not offered".into());
            }
            return match self.peer {
                Peer::Rs => Ok((vec![Status::NotSupported], "not offered")),
                Peer::Loop => Err("not offered, and this backend tries it all the same".into()),
                Peer::Qdisk => Ok((
                    vec![Status::Error, Status::NotSupported],
                    "not offered; qemu makes no difference between unknown and wrong",
                )),
            };
        }
        if row.expect == Status::Okay {
            let blocks = u64::from(properties.sector_size) / SECTOR as u64;
            let pieces: Vec<u64> = self
                .segments(row)
                .iter()
                .map(|piece| piece.length() as u64)
                .collect();
            if (self.sector(row) | pieces.iter().sum::<u64>()) % blocks != 0 {
                return Ok((vec![Status::Error], "the disk has larger blocks"));
            }
            if pieces.iter().any(|length| length % blocks != 0) {
                let either = vec![Status::Okay, Status::Error];
                return Ok((either, "a block of the disk in several pieces"));
            }
        }
        let holds = |exception: &&Exception| {
            exception.peer == self.peer
                && match exception.when {
                    When::Always => true,
                    When::ReadOnly => properties.readonly,
                    When::Persistent => self.persistent && properties.persistent,
                }
        };
        if let Some(exception) = row.exceptions.iter().find(holds) {
            return Ok((vec![exception.expect], exception.why));
        }
        if properties.readonly && row.expect == Status::Okay && row.changes_disk() {
            return Ok((vec![Status::Error], "the disk is read-only"));
        }
        Ok((vec![row.expect], ""))
    }

    fn sector(&self, row: &Row) -> u64 {
        match row.at {
            At::Sector(sector) => sector,
            At::BeforeEnd(sectors) => self.properties().sectors - sectors,
        }
    }

    /// The pieces of pages that a row uses.
    fn segments(&self, row: &Row) -> Vec<Place> {
        let whole = |count: usize| {
            (0..count)
                .map(|page| Place {
                    page,
                    first: 0,
                    last: 7,
                })
                .collect::<Vec<_>>()
        };
        let places = |pieces: &[(u8, u8)], same: bool| {
            let place = |(number, &(first, last)): (usize, &(u8, u8))| Place {
                page: if same { 0 } else { number },
                first,
                last,
            };
            pieces.iter().enumerate().map(place).collect()
        };
        match row.layout {
            Layout::Pages(count) => whole(count.into()),
            Layout::Offered(more) => whole(self.properties().indirect as usize + usize::from(more)),
            Layout::Pieces(pieces) => places(pieces, false),
            Layout::OnePage(pieces) => places(pieces, true),
            Layout::Faulty(count, at, fault) => {
                let mut places = whole(count.into());
                if let Fault::Range(first, last) = fault {
                    places[usize::from(at)] = Place {
                        page: at.into(),
                        first,
                        last,
                    };
                }
                places
            }
        }
    }

    /// The grant reference of each place, with the fault of the row.
    fn grefs(&self, row: &Row, places: &[Place]) -> Vec<u32> {
        let mut grefs: Vec<u32> = places
            .iter()
            .map(|place| self.pages.grefs()[place.page])
            .collect();
        if let Layout::Faulty(_, at, fault) = row.layout {
            grefs[usize::from(at)] = match fault {
                Fault::NeverGranted => NEVER_GRANTED,
                Fault::Revoked => self.revoked,
                Fault::ReadOnly => self.read_only.grefs()[0],
                Fault::Range(..) | Fault::Descriptor => grefs[usize::from(at)],
            };
        }
        grefs
    }

    fn encode(&mut self, row: &Row, common: Common, segments: &[Segment]) -> RawSlot {
        let abi = self.ring().abi();
        let count = row.claim.unwrap_or(segments.len() as u16);
        match row.operation {
            Operation::Direct(operation) => {
                wire::direct(abi, FILLER, operation, count as u8, common, segments)
            }
            Operation::Discard(flag, sectors) => wire::discard(abi, FILLER, flag, common, sectors),
            Operation::Indirect(operation) => {
                self.descriptors.fill(0, MAX_INDIRECT_PAGES * PAGE, FILLER);
                let room = MAX_INDIRECT_PAGES * SEGMENTS_PER_INDIRECT_PAGE;
                for (number, segment) in segments.iter().take(room).enumerate() {
                    self.descriptors
                        .write(number * SEGMENT_SIZE, &segment.bytes());
                }
                let mut grefs = self.descriptors.grefs().to_vec();
                if let Layout::Faulty(_, _, Fault::Descriptor) = row.layout {
                    grefs[0] = NEVER_GRANTED;
                }
                wire::indirect(abi, FILLER, operation, count, common, &grefs)
            }
        }
    }

    /// Sends the request of a row and judges everything about the answer. An error means that the ring is of no
    /// more use.
    pub fn perform(&mut self, row: &Row) -> Result<Outcome> {
        let (expect, _) = match self.expectation(row) {
            Ok(expectation) => expectation,
            Err(why) => return Ok(Outcome::Skip(why)),
        };
        let sector = self.sector(row);
        let places = self.segments(row);
        let length = places.iter().map(|place| place.length()).sum::<usize>() as u64;
        let data = self.fresh(sector, length);
        let pages = places.iter().map(|place| place.page + 1).max().unwrap_or(0);
        self.pages.fill(0, pages * PAGE, POISON);
        let reads_page_of_guest = matches!(row.layout, Layout::Faulty(_, _, Fault::ReadOnly));
        if row.operation.writes() {
            if reads_page_of_guest {
                self.read_only.write(0, &data);
            } else {
                self.scatter(&places, &data);
            }
        }
        let common = Common {
            id: row.id.unwrap_or_else(|| self.rng.next()),
            sector,
            handle: row.handle,
        };
        let grefs = self.grefs(row, &places);
        let segments: Vec<Segment> = places
            .iter()
            .zip(grefs)
            .map(|(place, gref)| Segment {
                gref,
                first: place.first,
                last: place.last,
            })
            .collect();
        let slot = self.encode(row, common, &segments);
        let timeout = self.timeout;
        let ring = self.ring();
        ring.put(&slot);
        ring.push()?;
        let response = ring.wait_response(timeout)?;

        let mut problems = Vec::new();
        if !expect
            .iter()
            .any(|&status| status as i16 == response.status)
        {
            let names: Vec<String> = expect
                .iter()
                .map(|&status| status_name(status as i16))
                .collect();
            problems.push(format!(
                "status {}, expected {}",
                status_name(response.status),
                names.join(" or ")
            ));
        }
        if response.id != common.id {
            problems.push(format!("id {:#x}, expected {:#x}", response.id, common.id));
        }
        let operation = self.answered(row);
        if response.operation != operation {
            problems.push(format!(
                "operation {}, expected {operation}",
                response.operation
            ));
        }
        problems.extend(self.foreign_bytes(&slot, &response));
        let done = response.status == Status::Okay as i16;
        if done && row.operation.answered() == OP_READ && !reads_page_of_guest {
            problems.extend(self.check_read(sector, &places));
        }
        if done && row.changes_disk() {
            match row.operation {
                Operation::Discard(_, sectors) => (0..sectors.min(HEAD)).for_each(|number| {
                    // Nobody promises what a discarded sector holds.
                    self.known.remove(&sector.wrapping_add(number));
                }),
                _ if sector
                    .checked_add(length)
                    .is_some_and(|end| end <= self.properties().sectors) =>
                {
                    self.remember(sector, &data);
                }
                _ => {}
            }
        }
        if !matches!(
            row.operation,
            Operation::Direct(OP_READ) | Operation::Indirect(OP_READ)
        ) {
            problems.extend(self.check_disk(sector, length)?);
        }
        Ok(if problems.is_empty() {
            Outcome::Good
        } else {
            Outcome::Bad(problems.join("; "))
        })
    }

    /// The operation that the response has to name.
    fn answered(&self, row: &Row) -> u8 {
        match row.operation {
            // Who does not know indirect requests cannot know that there is an operation inside.
            Operation::Indirect(_) if self.properties().indirect == 0 => OP_INDIRECT,
            operation => operation.answered(),
        }
    }

    /// Copies data into the pieces of pages, as far as these make sense.
    fn scatter(&mut self, places: &[Place], data: &[u8]) {
        let mut at = 0;
        for place in places {
            let length = place.length() * SECTOR;
            if place.last < 8 {
                self.pages.write(place.start(), &data[at..at + length]);
            }
            at += length;
        }
    }

    /// After a read: the data are those of the disk, and the pages beside the pieces have not been touched.
    fn check_read(&self, sector: u64, places: &[Place]) -> Option<String> {
        let mut data = Vec::new();
        let mut touched = Vec::new();
        for place in places {
            let mut page = vec![0; PAGE];
            self.pages.read(place.page * PAGE, &mut page);
            let start = usize::from(place.first) * SECTOR;
            let end = start + place.length() * SECTOR;
            data.extend_from_slice(page.get(start..end)?);
            for (number, content) in page.chunks_exact(SECTOR).enumerate() {
                let ours = places.iter().any(|other| {
                    other.page == place.page && (other.first..=other.last).contains(&(number as u8))
                });
                if !ours && content.iter().any(|&byte| byte != POISON) {
                    touched.push(format!(
                        "sector {number} of page {} was written, too",
                        place.page
                    ));
                }
            }
        }
        self.compare(sector, &data)
            .or_else(|| touched.into_iter().next())
    }

    /// After anything that could change the disk: it holds what it should, a little around included.
    fn check_disk(&mut self, sector: u64, length: u64) -> Result<Option<String>> {
        let end = self.properties().sectors;
        let block = u64::from(self.properties().sector_size) / SECTOR as u64;
        let mut at = sector.min(end).saturating_sub(8) / block * block;
        let stop = sector.saturating_add(length).saturating_add(8).min(end);
        while at < stop {
            let count = (stop.next_multiple_of(block).min(end) - at).min(MAX_SEGMENTS as u64 * 8);
            let data = self.read(at, count)?;
            if let Some(problem) = self.compare(at, &data) {
                return Ok(Some(format!("on the disk, {problem}")));
            }
            at += count;
        }
        Ok(None)
    }

    /// Bytes of the response's slot that are neither a field, nor what the request left there, nor zero: those would
    /// come from the backend's memory.
    fn foreign_bytes(&mut self, request: &RawSlot, response: &Response) -> Option<String> {
        const FIELDS: [usize; 11] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11];
        let ring = self.ring();
        let size = ring.abi().slot_size();
        let words: [u32; blkif::abi::SLOT_WORDS] = ring.words(response.index);
        let found = words.iter().flat_map(|word| word.to_le_bytes());
        let before = request.words().iter().flat_map(|word| word.to_le_bytes());
        let foreign = found
            .zip(before)
            .enumerate()
            .take(size)
            .find(|&(at, (found, before))| !FIELDS.contains(&at) && found != before && found != 0);
        foreign.map(|(at, (found, _))| {
            format!("byte {at} of the response's slot is {found:#04x}: from where?")
        })
    }
}

impl Place {
    /// Number of sectors, 0 for a range that makes no sense.
    fn length(self) -> usize {
        if self.last < 8 {
            (usize::from(self.last) + 1).saturating_sub(self.first.into())
        } else {
            0
        }
    }

    fn start(self) -> usize {
        self.page * PAGE + usize::from(self.first) * SECTOR
    }
}

/// The name of a status in the headers.
pub fn status_name(status: i16) -> String {
    match status {
        0 => "OKAY".into(),
        -1 => "ERROR".into(),
        -2 => "EOPNOTSUPP".into(),
        other => other.to_string(),
    }
}
