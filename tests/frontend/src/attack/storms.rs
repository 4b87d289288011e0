// SPDX-License-Identifier: GPL-2.0

//! Attacks by how many events or requests there are, and by what they cost.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use blkif::abi::{
    OP_DISCARD, OP_FLUSH_DISKCACHE, OP_READ, OP_WRITE, OP_WRITE_BARRIER, RSP_EVENT_OFFSET,
};
use blkif::RawSlot;

use super::tools::{
    ask, common, drain, places, shove, take, Answers, Bulk, MOST_SEGMENTS, SECTORS,
};
use super::{Attacker, Found};
use crate::device::Device;
use crate::error::Result;
use crate::ring::Ring;
use crate::rng::Rng;
use crate::sys::Pages;
use crate::wire;

/// Pause of who has found nothing to do.
const PAUSE: Duration = Duration::from_micros(300);

/// Events without requests. Every thousandth time there is one request, which must be answered all the same.
pub fn kick(attacker: &mut Attacker) -> Result<Found> {
    const EVENTS: u64 = 1000;
    let mut device = attacker.connect()?;
    let pages = Pages::grant(device.backend_id, 1, true)?;
    let mut answers = Answers::default();
    let (mut rounds, mut sent, mut missing) = (0u64, 0u64, 0);
    while !attacker.over(rounds) {
        for ring in &mut device.rings {
            for event in 0..EVENTS {
                ring.channel.notify()?;
                if event % 16 == 0 {
                    let bogus = attacker.rng.next() as u32;
                    ring.memory()
                        .word(RSP_EVENT_OFFSET)
                        .store(bogus, Ordering::Relaxed);
                }
            }
            take(ring, &mut answers)?;
            if ring.free() > 0 {
                ring.put(&wire::page(
                    ring.abi(),
                    0,
                    OP_READ,
                    common(rounds, 0),
                    pages.grefs()[0],
                ));
                shove(ring)?;
                sent += 1;
            }
        }
        rounds += 1;
    }
    let start = Instant::now();
    for ring in &mut device.rings {
        missing += drain(ring, &mut answers, attacker.config.timeout)?;
    }
    let text = format!(
        "{} events, {sent} requests: {answers}; the last one after {} ms",
        rounds * EVENTS * device.rings.len() as u64,
        start.elapsed().as_millis()
    );
    if missing == 0 {
        device.disconnect()?;
    }
    Ok(Found::new(text)
        .demand(missing == 0, &format!("{missing} without an answer"))
        .demand(answers.okay == sent, "not all were done"))
}

/// Keeps all rings full of what `make` makes from a number, until the end.
fn storm(
    attacker: &mut Attacker,
    device: &mut Device,
    mut make: impl FnMut(&Ring, u64, &mut Rng) -> RawSlot,
) -> Result<(Found, Answers)> {
    let mut answers = Answers::default();
    let (mut number, mut missing) = (0u64, 0);
    let start = Instant::now();
    let mut last = start;
    while !attacker.late() && last.elapsed() < attacker.config.timeout {
        let before = number;
        for ring in &mut device.rings {
            take(ring, &mut answers)?;
            while ring.free() > 0 && ring.in_flight() < attacker.depth {
                let request = make(ring, number, &mut attacker.rng);
                ring.put(&request);
                number += 1;
            }
            ring.push()?;
        }
        if number == before {
            std::thread::sleep(PAUSE);
        } else {
            last = Instant::now();
        }
    }
    let rate = answers.total() as f64 / start.elapsed().as_secs_f64();
    let draining = Instant::now();
    for ring in &mut device.rings {
        missing += drain(ring, &mut answers, attacker.config.timeout)?;
    }
    let text = format!(
        "{rate:.0}/s: {answers}; the rest within {} ms",
        draining.elapsed().as_millis()
    );
    let found = Found::new(text).demand_answers(missing, &answers);
    Ok((found, answers))
}

/// Discards behind the end, unknown operations, no segments, too many of them.
pub fn refused(attacker: &mut Attacker) -> Result<Found> {
    let mut device = attacker.connect()?;
    let sectors = device.properties.sectors;
    let (found, answers) = storm(attacker, &mut device, |ring, number, rng| {
        let beyond = common(number, sectors + rng.below(1 << 40));
        match number % 4 {
            0 => wire::discard(ring.abi(), 0, 0, beyond, 8),
            1 => wire::direct(ring.abi(), 0, 99, 1, common(number, 0), &[]),
            2 => wire::direct(ring.abi(), 0, OP_READ, 0, common(number, 0), &[]),
            _ => wire::direct(ring.abi(), 0, OP_WRITE, 12, common(number, 0), &[]),
        }
    })?;
    device.disconnect()?;
    Ok(found.demand(answers.okay == 0, "some were done"))
}

/// Flushes, each behind a write, so that there is something to flush.
pub fn flushes(attacker: &mut Attacker) -> Result<Found> {
    let mut device = attacker.connect()?;
    let bulk = Bulk::new(&device, 1, 1)?;
    let limit = places(&device);
    let (found, _) = storm(attacker, &mut device, |ring, number, rng| {
        let common = common(number, rng.below(limit) * SECTORS);
        match number % 2 {
            0 => bulk.direct(ring.abi(), OP_WRITE, 1, common),
            _ => wire::direct(ring.abi(), 0, OP_FLUSH_DISKCACHE, 0, common, &[]),
        }
    })?;
    device.disconnect()?;
    Ok(found)
}

/// Barriers, with data and without.
pub fn barriers(attacker: &mut Attacker) -> Result<Found> {
    let mut device = attacker.connect()?;
    let bulk = Bulk::new(&device, 1, 1)?;
    let limit = places(&device);
    let (found, _) = storm(attacker, &mut device, |ring, number, rng| {
        let common = common(number, rng.below(limit) * SECTORS);
        match number % 4 {
            0 => wire::direct(ring.abi(), 0, OP_WRITE_BARRIER, 0, common, &[]),
            _ => bulk.direct(ring.abi(), OP_WRITE_BARRIER, 1, common),
        }
    })?;
    device.disconnect()?;
    Ok(found)
}

/// Discards of the whole disk, with writes between them that have to allocate what these gave up.
pub fn discards(attacker: &mut Attacker) -> Result<Found> {
    let mut device = attacker.connect()?;
    let bulk = Bulk::new(&device, 1, MOST_SEGMENTS)?;
    let limit = places(&device);
    let sectors = device.properties.sectors;
    let (found, _) = storm(attacker, &mut device, |ring, number, rng| {
        match number % 4 {
            0 => {
                let common = common(number, rng.below(limit) * SECTORS);
                bulk.indirect(ring.abi(), OP_WRITE, common)
            }
            _ => wire::discard(ring.abi(), 0, 0, common(number, 0), sectors),
        }
    })?;
    device.disconnect()?;
    Ok(found)
}

/// Reads and writes of as many pages as can be.
pub fn large(attacker: &mut Attacker) -> Result<Found> {
    let mut device = attacker.connect()?;
    let bulk = Bulk::new(&device, 4, MOST_SEGMENTS)?;
    let limit = places(&device);
    let (found, answers) = storm(attacker, &mut device, |ring, number, rng| {
        let operation = if rng.chance(50) { OP_READ } else { OP_WRITE };
        let common = common(number, rng.below(limit) * SECTORS);
        bulk.indirect(ring.abi(), operation, common)
    })?;
    device.disconnect()?;
    Ok(found.demand(answers.okay == answers.total(), "not all were done"))
}

/// All that would change a disk which may only be read. Each must be refused; that the disk is what it was, dom0 must tell.
pub fn write_protected(attacker: &mut Attacker) -> Result<Found> {
    let mut device = attacker.connect()?;
    let mut bulk = Bulk::new(&device, 1, MOST_SEGMENTS)?;
    let pages = MOST_SEGMENTS * crate::sys::PAGE;
    bulk.pages.fill(0, pages, 0xee);
    let limit = places(&device);
    let sectors = device.properties.sectors;
    let readonly = device.properties.readonly;
    let mut done = Vec::new();
    let mut rounds = 0u64;
    while !attacker.over(rounds) && done.len() < 4 {
        let common = common(0, attacker.rng.below(limit) * SECTORS);
        let ring = &mut device.rings[0];
        let abi = ring.abi();
        for (what, request) in [
            ("write", bulk.direct(abi, OP_WRITE, 11, common)),
            ("write of 256 pages", bulk.indirect(abi, OP_WRITE, common)),
            ("barrier", bulk.direct(abi, OP_WRITE_BARRIER, 1, common)),
            (
                "barrier of 256 pages",
                bulk.indirect(abi, OP_WRITE_BARRIER, common),
            ),
            (
                "flush with data",
                bulk.direct(abi, OP_FLUSH_DISKCACHE, 1, common),
            ),
            (
                "flush of 256 pages",
                bulk.indirect(abi, OP_FLUSH_DISKCACHE, common),
            ),
            ("discard", wire::discard(abi, 0, 0, common, 8)),
            ("secure discard", wire::discard(abi, 0, 1, common, 8)),
            (
                "discard of the whole disk",
                wire::discard(abi, 0, 0, super::tools::common(0, 0), sectors),
            ),
            ("indirect discard", bulk.indirect(abi, OP_DISCARD, common)),
        ] {
            let status = ask(ring, &request, attacker.config.timeout)?;
            if status == 0 {
                done.push(format!("a {what} was done"));
            }
        }
        rounds += 1;
    }
    device.disconnect()?;
    let found = Found {
        text: format!("{rounds} times 10 requests"),
        problems: done,
    };
    Ok(found.demand(readonly, "the disk is not said to be read-only"))
}
