// SPDX-License-Identifier: GPL-2.0

//! What may overtake what, found out on a slow disk.
//!
//! The disk's first third has to take more than a second for a request, its second less, its last hardly any time,
//! as a flush; all of it times what `XB_PACE` says. Then there is no doubt which of two answers came first, and it is
//! not the order by itself.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use blkif::abi::{OP_READ, OP_WRITE_BARRIER};
use blkif::Status;
use serde_json::{json, Value};

use crate::args::{pace, Arguments, Order};
use crate::device::Device;
use crate::error::{fail, Error, Result};
use crate::sys::{Pages, PAGE};
use crate::wire::{self, Common};

/// Pause between two looks at the rings, much shorter than what the disk takes.
const PAUSE: Duration = Duration::from_millis(1);
/// Time for the backend to take a barrier, much shorter than what comes before that one takes.
const BARRIER_TAKEN: Duration = Duration::from_millis(500);
/// Sectors of a request.
const SECTORS: u64 = (PAGE / 512) as u64;

/// Identifiers of requests; where on the disk they are is in `Slow::sector`.
const BEFORE: u64 = 0;
const BARRIER: u64 = 1;
const AFTER: u64 = 2;
const AFTER_ON_FIRST: u64 = 5;
const DISCARD: u64 = 0;
const PLACES: u64 = 3;

/// A disk with a page for each request.
struct Slow {
    device: Device,
    pages: Pages,
    timeout: Duration,
    /// Errors are no problem.
    dying: bool,
}

/// In which look at the rings each answer was found. What is answered first is found one look after the other at most.
struct Found(HashMap<u64, u64>);

impl Found {
    fn problem(&self, first: u64, what: &str, then: u64, what_then: &str) -> Option<String> {
        (self.0[&first] > self.0[&then] + 1)
            .then(|| format!("{what_then} was answered before {what}"))
    }
}

/// Runs it; returns whether all came in the right order, and the report.
pub fn run(arguments: &Arguments, options: &Order) -> Result<(bool, Value)> {
    let config = arguments.common.config();
    let device = Device::connect(config)?;
    for (name, offered) in [
        ("feature-barrier", device.properties.barrier),
        (
            "feature-discard",
            device.properties.discard || options.dying,
        ),
    ] {
        if !offered {
            return Err(Error::NotOffered(format!("the backend has no {name}")));
        }
    }
    let mut slow = Slow {
        pages: Pages::grant(device.backend_id, PLACES as usize * 2, true)?,
        device,
        timeout: config.timeout,
        dying: options.dying,
    };
    let mut problems = Vec::new();
    if options.dying {
        slow.around_barrier(slow.device.rings.len() - 1)?;
        println!("ok barrier of a disk that goes away");
        slow.device.disconnect()?;
        return Ok((true, json!({ "command": "order", "problems": problems })));
    }
    for ring in 0..slow.device.rings.len() {
        for (what, found) in [
            (
                format!("barrier on ring {ring}"),
                slow.around_barrier(ring)?,
            ),
            (
                format!("discard on ring {ring}"),
                slow.beside_discard(ring)?,
            ),
        ] {
            match found {
                None => println!("ok {what}"),
                Some(problem) => {
                    println!("FAIL {what}: {problem}");
                    problems.push(format!("{what}: {problem}"));
                }
            }
        }
    }
    slow.device.disconnect()?;
    let report = json!({ "command": "order", "problems": problems });
    Ok((problems.is_empty(), report))
}

impl Slow {
    /// A read of the first ring, a barrier of any, and a read of either.
    fn around_barrier(&mut self, ring: usize) -> Result<Option<String>> {
        // Between rings, before and after is what the backend has taken before and after.
        self.put(0, OP_READ, BEFORE)?;
        self.wait_taken(0)?;
        self.put(ring, OP_WRITE_BARRIER, BARRIER)?;
        self.put(ring, OP_READ, AFTER)?;
        // It does not say that it has taken a barrier that waits.
        std::thread::sleep(BARRIER_TAKEN.mul_f64(pace()));
        self.put(0, OP_READ, AFTER_ON_FIRST)?;
        let found = self.collect(4)?;
        Ok([
            (BEFORE, "a read sent before", BARRIER, "the barrier"),
            (BARRIER, "the barrier", AFTER, "a read sent after it"),
            (
                BARRIER,
                "the barrier",
                AFTER_ON_FIRST,
                "a read sent after it on ring 0",
            ),
        ]
        .into_iter()
        .find_map(|(first, what, then, what_then)| found.problem(first, what, then, what_then)))
    }

    /// A discard, and behind it a read, which is faster.
    fn beside_discard(&mut self, ring: usize) -> Result<Option<String>> {
        let common = Common {
            id: DISCARD,
            sector: self.sector(DISCARD),
            handle: 0,
        };
        let target = &mut self.device.rings[ring];
        target.put(&wire::discard(target.abi(), 0, 0, common, SECTORS));
        target.push()?;
        self.put(ring, OP_READ, AFTER)?;
        let found = self.collect(2)?.0;
        // Not at the same time either, which would mean that it has waited.
        Ok((found[&AFTER] + 1 >= found[&DISCARD])
            .then(|| "a read behind the discard has waited for it".to_owned()))
    }

    /// The first, second or last third of the disk.
    fn sector(&self, id: u64) -> u64 {
        (self.device.properties.sectors / PLACES).next_multiple_of(SECTORS) * (id % PLACES)
    }

    /// Sends a request for one page.
    fn put(&mut self, ring: usize, operation: u8, id: u64) -> Result<()> {
        let gref = self.pages.grefs()[id as usize];
        let common = Common {
            id,
            sector: self.sector(id),
            handle: 0,
        };
        let target = &mut self.device.rings[ring];
        target.put(&wire::page(target.abi(), 0, operation, common, gref));
        target.push()
    }

    /// Waits until the backend has taken all requests of a ring, and waits for an event with the next one.
    fn wait_taken(&self, ring: usize) -> Result<()> {
        let target = &self.device.rings[ring];
        let deadline = Instant::now() + self.timeout;
        while target.req_event().wrapping_sub(target.req_prod()) as i32 <= 0 {
            if Instant::now() > deadline {
                fail!("the backend has not taken a request of ring {ring}");
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn collect(&mut self, count: usize) -> Result<Found> {
        let mut found = HashMap::new();
        let deadline = Instant::now() + self.timeout;
        for look in 0.. {
            for (number, ring) in self.device.rings.iter_mut().enumerate() {
                while let Some(response) = ring.next_response()? {
                    if response.status != Status::Okay as i16 && !self.dying {
                        fail!("ring {number}: {response:?}");
                    }
                    found.insert(response.id, look);
                }
            }
            if found.len() == count {
                break;
            }
            if Instant::now() > deadline {
                fail!("only {} of {count} answers have come", found.len());
            }
            std::thread::sleep(PAUSE);
        }
        Ok(Found(found))
    }
}
