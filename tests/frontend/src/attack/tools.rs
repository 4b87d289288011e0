// SPDX-License-Identifier: GPL-2.0

//! What attacks have in common.

use std::fmt;
use std::time::{Duration, Instant};

use blkif::abi::{Abi, MAX_SEGMENTS};
use blkif::{RawSlot, Status};

use crate::device::Device;
use crate::error::Result;
use crate::ring::Ring;
use crate::sys::{Pages, PAGE};
use crate::wire::{self, Common, Segment, SEGMENTS_PER_INDIRECT_PAGE, SEGMENT_SIZE};

/// Sectors of a page.
pub const SECTORS: u64 = (PAGE / 512) as u64;
/// Most segments of a request.
pub const MOST_SEGMENTS: usize = 256;

/// What every request has.
pub fn common(id: u64, sector: u64) -> Common {
    Common {
        id,
        sector,
        handle: 0,
    }
}

/// The sectors of a disk from which a request of 256 pages still fits, as multiples of a page.
pub fn places(device: &Device) -> u64 {
    (device.properties.sectors / SECTORS)
        .saturating_sub(MOST_SEGMENTS as u64)
        .max(1)
}

/// Answers by their status.
#[derive(Default, Clone, Copy, Debug)]
pub struct Answers {
    pub okay: u64,
    pub error: u64,
    pub unsupported: u64,
    /// With a status that does not exist.
    pub unknown: u64,
}

impl Answers {
    pub fn count(&mut self, status: i16) {
        const OKAY: i16 = Status::Okay as i16;
        const ERROR: i16 = Status::Error as i16;
        const UNSUPPORTED: i16 = Status::NotSupported as i16;
        *match status {
            OKAY => &mut self.okay,
            ERROR => &mut self.error,
            UNSUPPORTED => &mut self.unsupported,
            _ => &mut self.unknown,
        } += 1;
    }

    pub fn add(&mut self, other: Answers) {
        self.okay += other.okay;
        self.error += other.error;
        self.unsupported += other.unsupported;
        self.unknown += other.unknown;
    }

    pub fn total(&self) -> u64 {
        self.okay + self.error + self.unsupported + self.unknown
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} done, {} errors, {} not supported, {} of another status",
            self.okay, self.error, self.unsupported, self.unknown
        )
    }
}

/// Takes the answers that are there.
pub fn take(ring: &mut Ring, answers: &mut Answers) -> Result<()> {
    while let Some(response) = ring.next_response()? {
        answers.count(response.status);
    }
    Ok(())
}

/// Takes answers until nothing is in flight; returns how many are missing when none came for so long.
pub fn drain(ring: &mut Ring, answers: &mut Answers, timeout: Duration) -> Result<u32> {
    loop {
        let before = ring.in_flight();
        take(ring, answers)?;
        let left = ring.in_flight();
        if left == 0 || (left == before && !wait(ring, timeout)?) {
            return Ok(left);
        }
    }
}

/// Waits for an answer; false if there is none.
fn wait(ring: &mut Ring, timeout: Duration) -> Result<bool> {
    Ok(ring.ask_event(1) || ring.channel.wait(Instant::now() + timeout)?)
}

/// Sends one request and returns the status of its answer.
pub fn ask(ring: &mut Ring, request: &RawSlot, timeout: Duration) -> Result<i16> {
    ring.put(request);
    ring.push()?;
    Ok(ring.wait_response(timeout)?.status)
}

/// Shows the backend the requests, and sends an event whether it wants one or not.
pub fn shove(ring: &mut Ring) -> Result<()> {
    let _ = ring.publish();
    ring.channel.notify()
}

/// Pages for requests of so many segments each. The requests take turns: Xen counts at most 255 mappings of a page.
pub struct Bulk {
    pub pages: Pages,
    descriptors: Pages,
    each: usize,
    turns: usize,
}

impl Bulk {
    pub fn new(device: &Device, turns: usize, each: usize) -> Result<Bulk> {
        let mut bulk = Bulk {
            pages: Pages::grant(device.backend_id, turns * each, true)?,
            descriptors: Pages::grant(device.backend_id, turns, true)?,
            each,
            turns,
        };
        for turn in 0..turns {
            let segments = bulk.segments(turn);
            bulk.describe(turn, &segments);
        }
        Ok(bulk)
    }

    /// The segments of the requests whose turn it is: all pages, whole.
    pub fn segments(&self, turn: usize) -> Vec<Segment> {
        self.pages.grefs()[turn * self.each..][..self.each]
            .iter()
            .map(|gref| Segment {
                gref: *gref,
                first: 0,
                last: 7,
            })
            .collect()
    }

    /// Writes other segments into the page for them.
    pub fn describe(&mut self, turn: usize, segments: &[Segment]) {
        for (number, segment) in segments.iter().take(SEGMENTS_PER_INDIRECT_PAGE).enumerate() {
            self.descriptors
                .write(turn * PAGE + number * SEGMENT_SIZE, &segment.bytes());
        }
    }

    /// The grant of the page with a turn's segments.
    pub fn descriptor(&self, turn: usize) -> u32 {
        self.descriptors.grefs()[turn]
    }

    /// A request with the segments in their page.
    pub fn indirect(&self, abi: Abi, operation: u8, common: Common) -> RawSlot {
        let turn = common.id as usize % self.turns;
        let grefs = [self.descriptor(turn)];
        wire::indirect(abi, 0, operation, self.each as u16, common, &grefs)
    }

    /// A request with the first segments in its slot, 11 at most.
    pub fn direct(&self, abi: Abi, operation: u8, count: usize, common: Common) -> RawSlot {
        let turn = common.id as usize % self.turns;
        let segments = self.segments(turn);
        let count = count.min(MAX_SEGMENTS).min(self.each);
        wire::direct(abi, 0, operation, count as u8, common, &segments[..count])
    }
}
