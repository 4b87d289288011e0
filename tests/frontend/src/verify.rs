// SPDX-License-Identifier: GPL-2.0

//! Random requests, many in flight, whose data are checked against a model of the disk.
//!
//! Requests that are in flight together never overlap unless all of them read: what they would leave behind is
//! nowhere defined.

use std::time::{Duration, Instant};

use blkif::abi::{
    operation_name, MAX_SEGMENTS, OP_DISCARD, OP_FLUSH_DISKCACHE, OP_READ, OP_WRITE,
    OP_WRITE_BARRIER,
};
use blkif::Status;
use serde_json::{json, Value};

use crate::args::{Arguments, Verify};
use crate::device::{Device, Properties};
use crate::error::{fail, Error, Result};
use crate::ring::{Response, Ring};
use crate::rng::{describe_sector, fill_sector, Rng, SECTOR};
use crate::sys::{wait_any, Pages, PAGE};
use crate::wire::{
    self, Common, Segment, MAX_INDIRECT_PAGES, SEGMENTS_PER_INDIRECT_PAGE, SEGMENT_SIZE,
};

/// Most pages for data of all requests together: a guest's grant table has room for twice as many.
const PAGES_AT_MOST: u32 = 16384;
/// In every byte of a page before data are read into it.
const POISON: u8 = 0x5a;
/// More faults than this say nothing new.
const FAULTS_AT_MOST: usize = 5;

/// What is known about a sector.
#[derive(Clone, Copy, Default)]
struct Sector {
    /// Of its contents; 0 while they are not known.
    fingerprint: u64,
    /// What was written last; 0 if nothing was.
    version: u32,
    /// Reads in flight, or `WRITING`.
    users: u16,
}

const WRITING: u16 = u16::MAX;

/// A number that stands for the contents of a sector, never 0.
fn fingerprint(data: &[u8]) -> u64 {
    let mix = |sum: u64, word: &[u8]| {
        let word = u64::from_le_bytes(std::array::from_fn(|byte| word[byte]));
        (sum ^ word)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(29)
    };
    data.chunks_exact(8).fold(0xcbf2_9ce4_8422_2325, mix) | 1
}

/// A request in flight.
struct Job {
    id: u64,
    operation: u8,
    sector: u64,
    sectors: u64,
    /// First and last sector of each page that is used, in the order of the disk, with the page's number.
    pieces: Vec<(usize, u8, u8)>,
    /// For a write, what becomes known when it is done.
    written: Vec<u64>,
    version: u32,
}

/// A ring with the pages for its requests.
struct Lane {
    pages: Pages,
    descriptors: Option<Pages>,
    jobs: Vec<Option<Job>>,
    free: Vec<usize>,
}

struct Verifier {
    device: Device,
    rng: Rng,
    seed: u64,
    timeout: Duration,
    /// Most segments of a request.
    segments: usize,
    /// Sectors of a logical block.
    block: u64,
    model: Vec<Sector>,
    lanes: Vec<Lane>,
    version: u32,
    serial: u64,
    /// Operation of the last read or write, and where it ended.
    last: Option<(u8, u64)>,
    /// Requests done, by operation, and sectors moved.
    done: [u64; 8],
    sectors_read: u64,
    sectors_checked: u64,
    sectors_written: u64,
    /// Requests that were answered with an error, and how many may be.
    failed: u64,
    errors: u64,
    faults: Vec<String>,
}

/// Runs until the limits of the options; returns whether all data were right, and the report.
pub fn run(arguments: &Arguments, options: &Verify) -> Result<(bool, Value)> {
    let common = &arguments.common;
    let mut verifier = Verifier::new(
        Device::connect(common.config())?,
        common.indirect,
        options,
        common.config().timeout,
    )?;
    let start = Instant::now();
    let end = (options.seconds > 0).then(|| start + Duration::from_secs(options.seconds));
    verifier.traffic(options.requests, || {
        end.is_some_and(|end| Instant::now() >= end)
            || options.until.as_ref().is_some_and(|file| file.exists())
    })?;
    if verifier.faults.is_empty() {
        verifier.read_all()?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let Verifier {
        device,
        faults,
        done,
        sectors_read,
        sectors_checked,
        sectors_written,
        failed,
        ..
    } = verifier;
    let properties = device.properties.json();
    device.disconnect()?;
    for fault in &faults {
        println!("FAIL {fault}");
    }
    let requests: u64 = done.iter().sum();
    println!(
        "{}: {requests} requests in {seconds:.1} s, {} KiB read of which {} KiB checked, {} KiB written, {failed} failed, seed {}",
        if faults.is_empty() { "ok" } else { "FAIL" },
        sectors_read / 2,
        sectors_checked / 2,
        sectors_written / 2,
        options.seed
    );
    let by_operation: serde_json::Map<String, Value> = (0u8..)
        .zip(done)
        .filter(|&(_, count)| count > 0)
        .map(|(operation, count)| (operation_name(operation).to_owned(), json!(count)))
        .collect();
    let report = json!({
        "command": "verify",
        "properties": properties,
        "requests": requests,
        "by_operation": by_operation,
        "seconds": seconds,
        "sectors_read": sectors_read,
        "sectors_checked": sectors_checked,
        "sectors_written": sectors_written,
        "failed": failed,
        "seed": options.seed,
        "faults": faults,
    });
    Ok((faults.is_empty(), report))
}

impl Verifier {
    fn new(device: Device, indirect: u32, options: &Verify, timeout: Duration) -> Result<Verifier> {
        let Properties {
            sectors,
            sector_size,
            indirect: offer,
            ..
        } = device.properties;
        if indirect > MAX_SEGMENTS as u32 && indirect > offer {
            return Err(Error::NotOffered(format!(
                "feature-max-indirect-segments offers {offer}, --indirect asks for {indirect}"
            )));
        }
        let block = u64::from(sector_size) / SECTOR as u64;
        let area =
            (options.area * (1 << 20) / SECTOR as u64).min(sectors) / block.max(1) * block.max(1);
        if block == 0 || block > 8 || area == 0 {
            fail!("a disk of {sectors} sectors in blocks of {sector_size} bytes cannot be tested");
        }
        let rings = device.rings.len() as u32;
        let mut lanes = Vec::new();
        for ring in &device.rings {
            let room = (PAGES_AT_MOST / (indirect * rings)).max(1);
            let depth = options
                .depth
                .unwrap_or(room)
                .clamp(1, ring.entries())
                .min(room) as usize;
            let descriptors = match indirect as usize > MAX_SEGMENTS {
                true => Some(Pages::grant(
                    device.backend_id,
                    depth * MAX_INDIRECT_PAGES,
                    true,
                )?),
                false => None,
            };
            lanes.push(Lane {
                pages: Pages::grant(device.backend_id, depth * indirect as usize, true)?,
                descriptors,
                jobs: (0..depth).map(|_| None).collect(),
                free: (0..depth).collect(),
            });
        }
        Ok(Verifier {
            device,
            rng: Rng::new(options.seed),
            seed: options.seed,
            timeout,
            segments: indirect as usize,
            block,
            model: vec![Sector::default(); area as usize],
            lanes,
            version: 0,
            serial: 0,
            last: None,
            done: [0; 8],
            sectors_read: 0,
            sectors_checked: 0,
            sectors_written: 0,
            failed: 0,
            errors: options.errors,
            faults: Vec::new(),
        })
    }

    /// Keeps random requests in flight until `requests` are done or `enough` says so.
    fn traffic(&mut self, requests: u64, enough: impl Fn() -> bool) -> Result<()> {
        let mut started = 0;
        loop {
            let over = self.faults.len() >= FAULTS_AT_MOST || enough();
            for lane in 0..self.lanes.len() {
                // Now and then it is left to run dry, so that the backend goes to sleep and has to be woken.
                let rest = self.rng.chance(5);
                while !over && !rest && started < requests && self.device.rings[lane].free() > 0 {
                    let Some(&slot) = self.lanes[lane].free.last() else {
                        break;
                    };
                    let Some(job) = self.invent(slot) else { break };
                    self.start(lane, slot, job)?;
                    started += 1;
                    if self.rng.chance(10) {
                        break;
                    }
                }
                self.device.rings[lane].push()?;
            }
            let idle = self
                .lanes
                .iter()
                .all(|lane| lane.jobs.iter().all(Option::is_none));
            if idle && (over || started >= requests) {
                return Ok(());
            }
            if !idle {
                self.wait()?;
            }
        }
    }

    /// Reads the whole area, after all is written.
    fn read_all(&mut self) -> Result<()> {
        let mut sector = 0;
        while sector < self.model.len() as u64 && self.faults.is_empty() {
            let sectors =
                (self.model.len() as u64 - sector).min(8 * self.segments.min(MAX_SEGMENTS) as u64);
            let Some(&slot) = self.lanes[0].free.last() else {
                fail!("no free slot although nothing is in flight")
            };
            let pieces = (0..sectors.div_ceil(8))
                .map(|page| {
                    (
                        page as usize + slot * self.segments,
                        0,
                        ((sectors - page * 8).min(8) - 1) as u8,
                    )
                })
                .collect();
            let job = self.job(OP_READ, sector, sectors, pieces);
            self.start(0, slot, job)?;
            self.device.rings[0].push()?;
            while self.lanes[0].jobs[slot].is_some() {
                self.wait()?;
            }
            sector += sectors;
        }
        Ok(())
    }

    fn job(
        &mut self,
        operation: u8,
        sector: u64,
        sectors: u64,
        pieces: Vec<(usize, u8, u8)>,
    ) -> Job {
        self.version += 1;
        Job {
            id: 0,
            operation,
            sector,
            sectors,
            pieces,
            written: Vec::new(),
            version: self.version,
        }
    }

    /// A request that does not get in the way of those in flight; `None` if there was no luck in finding one.
    fn invent(&mut self, slot: usize) -> Option<Job> {
        let Properties {
            readonly,
            flush,
            barrier,
            discard,
            ..
        } = self.device.properties;
        // Many go on where the one before ended: a backend may do these together.
        let mut next = self.last.filter(|_| self.rng.chance(50));
        let operation = match self.rng.below(100) {
            _ if next.is_some() => next.map_or(OP_READ, |(operation, _)| operation),
            0..=2 if flush && !readonly => {
                return Some(self.job(OP_FLUSH_DISKCACHE, 0, 0, Vec::new()))
            }
            3..=4 if discard && !readonly => OP_DISCARD,
            5..=6 if barrier && !readonly => OP_WRITE_BARRIER,
            7..=52 if !readonly => OP_WRITE,
            _ => OP_READ,
        };
        for _ in 0..8 {
            let room = if operation == OP_WRITE_BARRIER {
                self.segments.min(MAX_SEGMENTS)
            } else {
                self.segments
            };
            let pieces = if operation == OP_DISCARD {
                Vec::new()
            } else {
                self.pieces(slot, room)
            };
            let sectors = match operation {
                OP_DISCARD => self.block * (1 + self.rng.below(64)),
                _ => pieces
                    .iter()
                    .map(|&(_, first, last)| u64::from(last - first) + 1)
                    .sum(),
            };
            let Some(last) = (self.model.len() as u64).checked_sub(sectors) else {
                continue;
            };
            let sector = match next.take() {
                Some((_, sector)) if sector <= last => sector,
                _ => self.rng.below(last / self.block + 1) * self.block,
            };
            let range = &self.model[sector as usize..(sector + sectors) as usize];
            let busy = |users: u16| {
                if operation == OP_READ {
                    users >= WRITING - 1
                } else {
                    users != 0
                }
            };
            if !range.iter().any(|known| busy(known.users)) {
                return Some(self.job(operation, sector, sectors, pieces));
            }
        }
        None
    }

    /// Pieces of pages of one slot: sometimes whole pages, sometimes any lengths that the disk's blocks allow.
    fn pieces(&mut self, slot: usize, room: usize) -> Vec<(usize, u8, u8)> {
        let count = match self.rng.below(4) {
            0 => 1,
            1 => room,
            _ => 1 + self.rng.below(room as u64) as usize,
        };
        let whole = self.rng.chance(40);
        // The pages in no particular order.
        let turn = self.rng.below(self.segments as u64) as usize;
        let backwards = self.rng.chance(50);
        (0..count)
            .map(|number| {
                let number = if backwards {
                    count - 1 - number
                } else {
                    number
                };
                let page = slot * self.segments + (number + turn) % self.segments;
                if whole {
                    return (page, 0, 7);
                }
                let length = self.block * (1 + self.rng.below(8 / self.block));
                let first = self.rng.below(9 - length);
                (page, first as u8, (first + length - 1) as u8)
            })
            .collect()
    }

    fn start(&mut self, lane: usize, slot: usize, mut job: Job) -> Result<()> {
        self.serial += 1;
        job.id = (self.serial << 16) | slot as u64;
        if matches!(job.operation, OP_READ | OP_WRITE) {
            self.last = Some((job.operation, job.sector + job.sectors));
        }
        let Lane {
            pages,
            descriptors,
            jobs,
            free,
        } = &mut self.lanes[lane];
        let writes = matches!(job.operation, OP_WRITE | OP_WRITE_BARRIER);
        let mut data = [0; SECTOR];
        let mut sector = job.sector;
        for &(page, first, last) in &job.pieces {
            if !writes {
                pages.fill(page * PAGE, PAGE, POISON);
                continue;
            }
            for place in first..=last {
                fill_sector(&mut data, self.seed, sector, job.version);
                pages.write(page * PAGE + usize::from(place) * SECTOR, &data);
                job.written.push(fingerprint(&data));
                sector += 1;
            }
        }
        for known in &mut self.model[job.sector as usize..(job.sector + job.sectors) as usize] {
            known.users = if job.operation == OP_READ {
                known.users + 1
            } else {
                WRITING
            };
        }
        let ring = &mut self.device.rings[lane];
        let common = Common {
            id: job.id,
            sector: job.sector,
            handle: 0,
        };
        let segments: Vec<Segment> = job
            .pieces
            .iter()
            .map(|&(page, first, last)| Segment {
                gref: pages.grefs()[page],
                first,
                last,
            })
            .collect();
        let chance = self.rng.chance(50);
        let request = match descriptors {
            _ if job.operation == OP_DISCARD => {
                wire::discard(ring.abi(), 0, 0, common, job.sectors)
            }
            Some(descriptors)
                if matches!(job.operation, OP_READ | OP_WRITE)
                    && (segments.len() > MAX_SEGMENTS || chance) =>
            {
                let base = slot * MAX_INDIRECT_PAGES;
                for (number, segment) in segments.iter().enumerate() {
                    descriptors.write(base * PAGE + number * SEGMENT_SIZE, &segment.bytes());
                }
                let used = segments.len().div_ceil(SEGMENTS_PER_INDIRECT_PAGE);
                let grefs = &descriptors.grefs()[base..base + used];
                wire::indirect(
                    ring.abi(),
                    0,
                    job.operation,
                    segments.len() as u16,
                    common,
                    grefs,
                )
            }
            _ => wire::direct(
                ring.abi(),
                0,
                job.operation,
                segments.len() as u8,
                common,
                &segments,
            ),
        };
        ring.put(&request);
        free.retain(|&other| other != slot);
        jobs[slot] = Some(job);
        Ok(())
    }

    /// Takes all responses that are there; waits for some if there are none.
    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        loop {
            if Instant::now() > deadline {
                // All rings have been asked for an event, and none has come.
                let busy = self
                    .device
                    .rings
                    .iter_mut()
                    .max_by_key(|ring| ring.in_flight());
                return Err(match busy {
                    Some(ring) => ring.overdue(self.timeout),
                    None => Error::Failed("there is no ring".into()),
                });
            }
            let mut found = false;
            for lane in 0..self.lanes.len() {
                while let Some(response) = self.device.rings[lane].next_response()? {
                    self.finish(lane, &response);
                    found = true;
                }
            }
            if found {
                return Ok(());
            }
            if self.device.rings.iter().all(|ring| ring.in_flight() == 0) {
                self.give_up_jobs();
                return Ok(());
            }
            let rings = &mut self.device.rings;
            if !rings.iter_mut().any(|ring| ring.ask_event(1)) {
                let channels: Vec<_> = rings.iter().map(|ring: &Ring| &ring.channel).collect();
                wait_any(&channels, deadline)?;
                for ring in rings {
                    while ring.channel.take()? {}
                }
            }
        }
    }

    /// All slots of responses are used up, but not all requests are answered.
    fn give_up_jobs(&mut self) {
        let mut lost = 0;
        for lane in &mut self.lanes {
            for (slot, job) in lane.jobs.iter_mut().enumerate() {
                if job.take().is_some() {
                    lane.free.push(slot);
                    lost += 1;
                }
            }
        }
        self.model.fill(Sector::default());
        self.fault(format!("{lost} requests were never answered"));
    }

    fn fault(&mut self, text: String) {
        if self.faults.len() < FAULTS_AT_MOST {
            self.faults.push(text);
        }
    }

    /// Judges a response and what it brought.
    fn finish(&mut self, lane: usize, response: &Response) {
        let slot = (response.id & 0xffff) as usize;
        let jobs = &mut self.lanes[lane].jobs;
        let job = match jobs.get_mut(slot) {
            Some(place) if place.as_ref().is_some_and(|job| job.id == response.id) => place.take(),
            _ => None,
        };
        let Some(job) = job else {
            return self.fault(format!(
                "a response with id {:#x}, which is not in flight",
                response.id
            ));
        };
        self.lanes[lane].free.push(slot);
        let what = format!(
            "{} of {} sectors from {}",
            operation_name(job.operation),
            job.sectors,
            job.sector
        );
        if response.operation != job.operation {
            self.fault(format!(
                "{what}: the response names operation {}",
                response.operation
            ));
        }
        let okay = response.status == Status::Okay as i16;
        if !okay {
            self.failed += 1;
            if self.failed > self.errors {
                self.fault(format!("{what}: status {}", response.status));
            }
        }
        if let Some(count) = self.done.get_mut(usize::from(job.operation)) {
            *count += 1;
        }
        for (number, sector) in (job.sector..job.sector + job.sectors).enumerate() {
            let known = &mut self.model[sector as usize];
            match job.operation {
                OP_READ => known.users -= 1,
                OP_DISCARD => *known = Sector::default(),
                // Any part of it may have been written.
                _ if !okay => *known = Sector::default(),
                _ => {
                    let fingerprint = job.written.get(number).copied().unwrap_or(0);
                    *known = Sector {
                        fingerprint,
                        version: job.version,
                        users: 0,
                    };
                }
            }
        }
        match job.operation {
            OP_READ => {
                self.sectors_read += job.sectors;
                if okay {
                    self.check(lane, &job);
                }
            }
            OP_WRITE | OP_WRITE_BARRIER => self.sectors_written += job.sectors,
            _ => {}
        }
    }

    /// Compares what was read, or learns it where nothing is known yet.
    fn check(&mut self, lane: usize, job: &Job) {
        let mut sector = job.sector;
        let mut page_data = [0; PAGE];
        for &(page, first, last) in &job.pieces {
            self.lanes[lane].pages.read(page * PAGE, &mut page_data);
            for (place, data) in (0u8..).zip(page_data.chunks_exact(SECTOR)) {
                if !(first..=last).contains(&place) {
                    if data.iter().any(|&byte| byte != POISON) {
                        self.fault(format!(
                            "a read of sector {sector} wrote beside its segment"
                        ));
                    }
                    continue;
                }
                let known = &mut self.model[sector as usize];
                let found = fingerprint(data);
                if known.fingerprint == 0 {
                    known.fingerprint = found;
                } else {
                    self.sectors_checked += 1;
                    if known.fingerprint != found {
                        let version = known.version;
                        self.fault(format!(
                            "sector {sector} holds {}, expected version {version} (0: as read before)",
                            describe_sector(data)
                        ));
                    }
                }
                sector += 1;
            }
        }
    }
}
