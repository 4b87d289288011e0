// SPDX-License-Identifier: GPL-2.0

//! Attacks by what lies in the rings and in the pages of segments.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blkif::abi::{
    Abi, MAX_SEGMENTS, OP_DISCARD, OP_FLUSH_DISKCACHE, OP_INDIRECT, OP_READ, OP_WRITE,
    OP_WRITE_BARRIER, REQ_PROD_OFFSET, RSP_EVENT_OFFSET, RSP_PROD_OFFSET,
};
use blkif::RawSlot;

use super::tools::{ask, common, drain, places, Answers, Bulk, MOST_SEGMENTS, SECTORS};
use super::{Attacker, Found};
use crate::device::{Config, Device};
use crate::error::{Error, Result};
use crate::ring::Ring;
use crate::rng::Rng;
use crate::sys::{Pages, Words, PAGE};
use crate::wire::{self, Common, Segment, SEGMENT_SIZE};

/// Words of a slot of a 64-bit layout in front of the segments; one less in the other layout.
const HEAD_WORDS: usize = 6;
/// Words rewritten between two looks at the clock.
const FLIPS: u64 = 256;
const FILLER: u8 = 0xa5;
/// Grants below this one are of the guest's console, xenstore and such (Linux' `GNTTAB_NR_RESERVED_ENTRIES`): a guest
/// that has its disk read into them hurts nobody but itself, and answers no more.
const OWN_GREFS: u32 = 8;

fn slot_words(abi: Abi) -> usize {
    abi.slot_size() / 4
}

/// What both sides of `flip` choose from.
struct Choice {
    /// Pages that the backend may write to, and pages that it may only read.
    writable: Vec<u32>,
    readable: Vec<u32>,
    /// Sectors behind this one are nobody's target.
    limit: u64,
}

impl Choice {
    fn gref(&self, rng: &mut Rng) -> u32 {
        match rng.below(12) {
            0..=6 => self.writable[rng.below(self.writable.len() as u64) as usize],
            7..=8 => self.readable[rng.below(self.readable.len() as u64) as usize],
            9..=10 => (rng.next() as u32).max(OWN_GREFS),
            _ => u32::MAX,
        }
    }

    /// First and last sector of a segment.
    fn range(rng: &mut Rng) -> u32 {
        match rng.below(6) {
            0..=2 => 7 << 8,
            3 => rng.next() as u32,
            4 => 8 << 8,
            _ => 7,
        }
    }

    /// Operation and numbers of segments. No discards: their length is in words that become anything.
    fn head(rng: &mut Rng) -> u32 {
        let operation = match rng.below(12) {
            0..=2 => OP_INDIRECT,
            3 => OP_FLUSH_DISKCACHE,
            4 => OP_WRITE_BARRIER,
            5 => 7,
            6 => 4,
            7..=8 => OP_WRITE,
            _ => OP_READ,
        };
        let count = match rng.below(6) {
            0 => 0,
            1 => 255,
            2 => 12,
            3 => 1,
            _ => MAX_SEGMENTS as u8,
        };
        let second = if operation == OP_INDIRECT {
            rng.below(2) as u8
        } else {
            count
        };
        let high = [0, 1, 2, 255][rng.below(4) as usize];
        u32::from_le_bytes([operation, second, rng.next() as u8, high])
    }

    /// A word of a slot; `None` for those of `id`, which nobody interprets.
    fn word(&self, rng: &mut Rng, abi: Abi, number: usize) -> Option<u32> {
        // As in the 64-bit layout.
        let number = match abi {
            Abi::X86_32 if number > 0 => number + 1,
            _ => number,
        };
        match number {
            0 => Some(Choice::head(rng)),
            4 => Some(rng.below(self.limit) as u32),
            5 if rng.chance(5) => Some(rng.next() as u32),
            5 => Some(0),
            HEAD_WORDS.. if rng.chance(50) => Some(self.gref(rng)),
            HEAD_WORDS.. => Some(Choice::range(rng)),
            _ => None,
        }
    }
}

/// A ring whose requests are rewritten, and the pages of their segments, one for each slot.
struct Lane {
    ring: Ring,
    descriptors: Words,
}

/// Requests of a lane are sent until the end; returns what was answered, and how many are missing.
fn traffic(
    lane: &mut Lane,
    choice: &Choice,
    depth: u32,
    mut rng: Rng,
    end: Instant,
    timeout: Duration,
) -> Result<(Answers, u32)> {
    let Lane { ring, descriptors } = lane;
    let abi = ring.abi();
    let mut answers = Answers::default();
    while Instant::now() < end {
        for slot in 0..depth {
            let operation = if rng.chance(50) { OP_READ } else { OP_WRITE };
            // What one operation takes for a number of the disk is to another a grant.
            let common = Common {
                handle: u16::MAX,
                ..common(slot.into(), rng.below(choice.limit))
            };
            let segments: Vec<Segment> = (0..MAX_SEGMENTS)
                .map(|_| Segment {
                    gref: choice.writable[rng.below(choice.writable.len() as u64) as usize],
                    first: 0,
                    last: 1,
                })
                .collect();
            let request = if rng.chance(50) {
                // Some of the segments; the others are as they were left.
                for (number, segment) in segments.iter().enumerate() {
                    let at = slot as usize * PAGE + number * 23 * SEGMENT_SIZE;
                    for (word, value) in segment.words().into_iter().enumerate() {
                        descriptors
                            .word(at + 4 * word)
                            .store(value, Ordering::Relaxed);
                    }
                }
                let page = [descriptors.grefs()[slot as usize]];
                wire::indirect(abi, FILLER, operation, MOST_SEGMENTS as u16, common, &page)
            } else {
                let count = segments.len() as u8;
                wire::direct(abi, FILLER, operation, count, common, &segments)
            };
            ring.put(&request);
            if rng.chance(10) {
                ring.push()?;
            }
        }
        ring.push()?;
        let missing = drain(ring, &mut answers, timeout)?;
        if missing > 0 {
            return Ok((answers, missing));
        }
    }
    Ok((answers, 0))
}

/// A second thread rewrites requests and segments while the backend looks at them. Whatever it makes of them, it must
/// not write behind the middle of the disk, nor into pages that it may only read.
pub fn flip(attacker: &mut Attacker) -> Result<Found> {
    let mut device = attacker.connect()?;
    let abi = attacker.config.abi;
    let mut writable = Pages::grant(device.backend_id, 64, true)?;
    let mut readable = Pages::grant(device.backend_id, 16, false)?;
    // Not zeroes: a page of data may be taken for one of segments, and grant 0 is the guest's own console.
    writable.fill(0, 64 * PAGE, FILLER);
    readable.fill(0, 16 * PAGE, FILLER);
    let choice = Choice {
        writable: writable.grefs().to_vec(),
        readable: readable.grefs().to_vec(),
        // The largest request begins so far before the middle.
        limit: (device.properties.sectors / 2)
            .saturating_sub(MOST_SEGMENTS as u64 * SECTORS)
            .max(1),
    };
    let mut lanes = Vec::new();
    for ring in std::mem::take(&mut device.rings) {
        let depth = ring.entries().min(attacker.depth);
        let descriptors = Words::grant(device.backend_id, depth as usize, true)?;
        // Not zeroes here either.
        for number in 0..depth as usize * PAGE / SEGMENT_SIZE {
            let gref = choice.writable[number % choice.writable.len()];
            descriptors
                .word(number * SEGMENT_SIZE)
                .store(gref, Ordering::Relaxed);
        }
        lanes.push(Lane { ring, descriptors });
    }
    let views: Vec<(Words, Words, usize, usize)> = lanes
        .iter()
        .map(|lane| {
            let ring = &lane.ring;
            (
                ring.memory(),
                lane.descriptors.clone(),
                ring.slot(0),
                ring.entries() as usize,
            )
        })
        .collect();
    let (stop, flips) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut rng = attacker.rng.clone();
    let mut answers = Answers::default();
    let mut missing = 0;
    let mut error = None;
    std::thread::scope(|scope| {
        let flipper = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..FLIPS {
                    let (ring, descriptors, first, entries) =
                        &views[rng.below(views.len() as u64) as usize];
                    if rng.chance(50) {
                        let slot = first + rng.below(*entries as u64) as usize * abi.slot_size();
                        let number = rng.below(slot_words(abi) as u64) as usize;
                        if let Some(value) = choice.word(&mut rng, abi, number) {
                            ring.word(slot + 4 * number).store(value, Ordering::Relaxed);
                        }
                    } else {
                        let pages = descriptors.grefs().len();
                        let number = rng.below((pages * PAGE / 4) as u64) as usize;
                        let value = if number % 2 == 0 {
                            choice.gref(&mut rng)
                        } else {
                            Choice::range(&mut rng)
                        };
                        descriptors.word(4 * number).store(value, Ordering::Relaxed);
                    }
                }
                flips.fetch_add(FLIPS, Ordering::Relaxed);
            }
        });
        let workers: Vec<_> = (1..)
            .zip(lanes)
            .map(|(number, mut lane)| {
                let (choice, end, depth) = (&choice, attacker.end, attacker.depth);
                let timeout = attacker.config.timeout;
                let rng = Rng::new(attacker.rng.clone().next().wrapping_add(number));
                scope.spawn(move || {
                    let depth = lane.ring.entries().min(depth);
                    let done = traffic(&mut lane, choice, depth, rng, end, timeout);
                    (lane, done)
                })
            })
            .collect();
        for worker in workers {
            match worker.join() {
                Ok((lane, Ok((seen, left)))) => {
                    device.rings.push(lane.ring);
                    answers.add(seen);
                    missing += left;
                }
                Ok((lane, Err(found))) => {
                    device.rings.push(lane.ring);
                    error = Some(found);
                }
                Err(_) => error = Some(Error::Failed("a thread ended by a panic".into())),
            }
        }
        stop.store(true, Ordering::Relaxed);
        let _ = flipper.join();
    });
    if let Some(error) = error {
        return Err(error);
    }
    let mut bytes = vec![0; 16 * PAGE];
    readable.read(0, &mut bytes);
    let changed = bytes.iter().filter(|byte| **byte != FILLER).count();
    let text = format!("{answers}; {} words rewritten", flips.into_inner());
    let found = Found::new(text).demand_answers(missing, &answers).demand(
        changed == 0,
        &format!("{changed} bytes of read-only pages have changed"),
    );
    if missing == 0 {
        device.disconnect()?;
    }
    Ok(found)
}

/// What a response leaves unused in its slot must be what the frontend has written there, or zero. In each layout.
pub fn padding(attacker: &mut Attacker) -> Result<Found> {
    let mut looked = 0u64;
    let mut strange = Vec::new();
    for abi in [Abi::Native, Abi::X86_64, Abi::X86_32] {
        let mut device = Device::connect(Config {
            abi,
            ..attacker.config
        })?;
        let bulk = Bulk::new(&device, 1, MOST_SEGMENTS)?;
        let limit = places(&device);
        let ring = &mut device.rings[0];
        // The second turn of the ring finds its slots used.
        for turn in 0..2 {
            let mut sent = Vec::new();
            for number in 0..ring.entries() {
                let common = common(
                    0x0102_0304_0506_0708 ^ u64::from(number),
                    attacker.rng.below(limit) * SECTORS,
                );
                let gref = bulk.pages.grefs()[0];
                let request = match number % 6 {
                    0 => wire::page(abi, FILLER, OP_READ, common, gref),
                    1 => wire::direct(abi, FILLER, OP_FLUSH_DISKCACHE, 0, common, &[]),
                    2 => wire::direct(abi, FILLER, 77, 255, common, &[]),
                    3 => wire::discard(abi, FILLER, 0, common, 0),
                    4 => wire::indirect(abi, FILLER, OP_READ, 0, common, &[u32::MAX]),
                    _ => wire::page(abi, FILLER, OP_WRITE, common, u32::MAX),
                };
                ring.put(&request);
                sent.push(request);
            }
            ring.push()?;
            for request in &sent {
                let response = ring.wait_response(attacker.config.timeout)?;
                let words: [u32; 4] = ring.words(response.index);
                let [_, pad, ..] = words[2].to_le_bytes();
                let [_, was, ..] = request.words()[2].to_le_bytes();
                // In the 32-bit layout the fourth word belongs to the request that was there.
                let well = (pad == was || pad == 0 || pad == FILLER)
                    && (words[3] == request.words()[3] || words[3] == 0);
                looked += 1;
                if !well && strange.len() < 4 {
                    strange.push(format!(
                        "{}, turn {turn}: response {words:#x?} in the slot of {:#x?}",
                        abi.name(),
                        &request.words()[..4]
                    ));
                }
            }
        }
        device.disconnect()?;
    }
    Ok(Found {
        text: format!("{looked} responses"),
        problems: strange,
    })
}

/// A slot of words that mean nothing, or little.
fn random_slot(
    rng: &mut Rng,
    abi: Abi,
    pages: &[u32],
    descriptors: &[u32],
    sectors: u64,
) -> RawSlot {
    let mut slot = RawSlot::new();
    let any = |rng: &mut Rng| pages[rng.below(pages.len() as u64) as usize];
    for word in slot.words_mut() {
        *word = match rng.below(6) {
            0 => rng.next() as u32,
            1 => 0,
            2 => u32::MAX,
            3 => any(rng),
            4 => 7 << 8,
            _ => rng.below(300) as u32,
        };
    }
    let operation = if rng.chance(90) {
        rng.below(8) as u8
    } else {
        rng.next() as u8
    };
    let count = if rng.chance(70) {
        rng.below(14) as u8
    } else {
        rng.next() as u8
    };
    let low = if rng.chance(50) {
        rng.next() as u8
    } else {
        [0, 1, 12, 255][rng.below(4) as usize]
    };
    let id = match abi {
        Abi::X86_32 => 1,
        _ => 2,
    };
    let words = slot.words_mut();
    words[0] = u32::from_le_bytes([operation, count, low, rng.below(3) as u8]);
    let [low, high] = &mut words[id + 2..id + 4] else {
        return slot;
    };
    *low = match rng.below(6) {
        0 => u32::MAX,
        1 => 0,
        2 => sectors as u32,
        3 => sectors as u32 - 1,
        _ => rng.below(sectors) as u32,
    };
    *high = if rng.chance(90) { 0 } else { rng.next() as u32 };
    for gref in words[id + 4..].iter_mut().step_by(2) {
        if *gref < OWN_GREFS {
            *gref = u32::MAX;
        }
    }
    if operation == OP_INDIRECT {
        words[id + 5..id + 7].copy_from_slice(descriptors);
    }
    if operation == OP_DISCARD && rng.chance(50) {
        // Else a whole disk is rarely hit.
        words[id + 4] = [0, 8, sectors as u32, u32::MAX][rng.below(4) as usize];
        words[id + 5] = u32::from(rng.chance(20));
    }
    slot
}

/// Slots of random words. Each must get one answer.
pub fn odd(attacker: &mut Attacker) -> Result<Found> {
    let mut device = attacker.connect()?;
    let mut pages = Pages::grant(device.backend_id, 16, true)?;
    pages.fill(0, 16 * PAGE, FILLER);
    let descriptors = Words::grant(device.backend_id, 2, true)?;
    for number in 0..2 * PAGE / SEGMENT_SIZE {
        descriptors
            .word(number * SEGMENT_SIZE)
            .store(u32::MAX, Ordering::Relaxed);
    }
    let sectors = device.properties.sectors;
    let abi = attacker.config.abi;
    let mut answers = Answers::default();
    let (mut sent, mut rounds, mut missing) = (0u64, 0, 0);
    while !attacker.over(rounds) && missing == 0 {
        for ring in &mut device.rings {
            while ring.free() > 0 {
                for _ in 0..20 {
                    let rng = &mut attacker.rng;
                    let at = rng.below((2 * PAGE / SEGMENT_SIZE) as u64) as usize * SEGMENT_SIZE;
                    let gref = pages.grefs()[rng.below(16) as usize];
                    let range = rng.next() as u32 & 0x0707;
                    descriptors.word(at).store(gref, Ordering::Relaxed);
                    descriptors.word(at + 4).store(range, Ordering::Relaxed);
                }
                ring.put(&random_slot(
                    &mut attacker.rng,
                    abi,
                    pages.grefs(),
                    descriptors.grefs(),
                    sectors,
                ));
                sent += 1;
            }
            ring.push()?;
            missing += drain(ring, &mut answers, attacker.config.timeout)?;
        }
        rounds += 1;
    }
    let found = Found::new(format!("{sent} slots: {answers}")).demand_answers(missing, &answers);
    if missing == 0 {
        device.disconnect()?;
    }
    Ok(found)
}

/// Where `req_prod` goes, seen from where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Index {
    Ahead,
    Behind,
    Far,
    FullTurn,
    /// All indices are nonsense.
    All,
    /// Rewritten between events.
    Rewritten,
}

/// Indices that cannot be, on an idle ring and on one with requests; then the disk must close and connect again.
pub fn indices(attacker: &mut Attacker) -> Result<Found> {
    const EVENTS: u32 = 100;
    const KINDS: [Index; 6] = [
        Index::Ahead,
        Index::Behind,
        Index::Far,
        Index::FullTurn,
        Index::All,
        Index::Rewritten,
    ];
    let mut slowest = Duration::ZERO;
    let mut problems = Vec::new();
    let mut rounds = 0u64;
    let start = attacker.rng.below(12);
    while !attacker.over(rounds) {
        // One after the other of the twelve, from anywhere.
        let number = (start + 5 * rounds) as usize;
        let (index, busy) = (KINDS[number % 6], number / 6 % 2 == 1);
        rounds += 1;
        let mut device = Device::connect(attacker.config)?;
        let pages = Pages::grant(device.backend_id, 1, true)?;
        let read =
            |ring: &Ring, id| wire::page(ring.abi(), 0, OP_READ, common(id, 0), pages.grefs()[0]);
        let ring = &mut device.rings[0];
        let entries = ring.entries();
        if busy {
            for id in 0..entries / 2 {
                ring.put(&read(ring, id.into()));
            }
            ring.push()?;
        }
        let memory = ring.memory();
        let write = |offset, value| memory.word(offset).store(value, Ordering::SeqCst);
        let now = ring.req_prod();
        let value = match index {
            Index::Ahead => now.wrapping_add(entries + 1),
            Index::Behind => now.wrapping_sub(1),
            Index::Far => now.wrapping_add(1 << 31),
            Index::FullTurn => now.wrapping_add(entries),
            Index::All | Index::Rewritten => now,
        };
        write(REQ_PROD_OFFSET, value);
        if index == Index::All {
            write(RSP_PROD_OFFSET, 0x1234_5678);
            write(RSP_EVENT_OFFSET, 0x1234_5678);
            write(REQ_PROD_OFFSET, 0x1234_5678);
        }
        for event in 0..EVENTS {
            if index == Index::Rewritten {
                write(REQ_PROD_OFFSET, event.wrapping_mul(0x0101_0101));
            }
            ring.channel.notify()?;
            if event % 10 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let start = Instant::now();
        device.close()?;
        drop(device);
        let mut device = Device::connect(attacker.config)?;
        let ring = &mut device.rings[0];
        let request = read(ring, 1);
        let status = ask(ring, &request, attacker.config.timeout)?;
        if status != 0 {
            problems.push(format!(
                "{index:?}: a read after connecting again has status {status}"
            ));
        }
        device.disconnect()?;
        slowest = slowest.max(start.elapsed());
    }
    Ok(Found {
        text: format!(
            "{rounds} times, connected anew within {} ms",
            slowest.as_millis()
        ),
        problems,
    })
}
