// SPDX-License-Identifier: GPL-2.0

//! Attacks by the grants of requests.

use std::time::{Duration, Instant};

use blkif::abi::{OP_READ, OP_WRITE};
use blkif::RawSlot;

use super::tools::{
    ask, common, drain, places, shove, take, Answers, Bulk, MOST_SEGMENTS, SECTORS,
};
use super::{Attacker, Found};
use crate::error::Result;
use crate::sys::{Pages, PAGE};
use crate::wire::{self, Segment};

/// Problems beyond these say nothing new.
const PROBLEMS: usize = 6;

/// Pages in random order, written in one and read in another: contents tell where they come from.
pub fn shuffle(attacker: &mut Attacker) -> Result<Found> {
    let mut device = attacker.connect()?;
    let mut bulk = Bulk::new(&device, 2, MOST_SEGMENTS)?;
    let grefs = bulk.pages.grefs().to_vec();
    let mut order: Vec<usize> = (0..grefs.len()).collect();
    let limit = places(&device);
    let (mut wrong, mut rounds) = (0, 0u64);
    let word = |round: u64, page: usize| ((round << 32) | page as u64).to_le_bytes();
    while !attacker.over(rounds) {
        for at in (1..order.len()).rev() {
            order.swap(at, attacker.rng.below(at as u64 + 1) as usize);
        }
        let (written, read) = order.split_at(MOST_SEGMENTS);
        for (number, page) in written.iter().enumerate() {
            bulk.pages
                .write(page * PAGE, &word(rounds, number).repeat(PAGE / 8));
        }
        for (turn, pages) in [written, read].into_iter().enumerate() {
            let segments: Vec<Segment> = pages
                .iter()
                .map(|page| Segment {
                    gref: grefs[*page],
                    first: 0,
                    last: 7,
                })
                .collect();
            bulk.describe(turn, &segments);
        }
        let sector = attacker.rng.below(limit) * SECTORS;
        let ring = &mut device.rings[0];
        for (turn, operation) in [(0, OP_WRITE), (1, OP_READ)] {
            let request = bulk.indirect(ring.abi(), operation, common(turn, sector));
            let status = ask(ring, &request, attacker.config.timeout)?;
            if status != 0 {
                wrong += MOST_SEGMENTS;
            }
        }
        let mut page = vec![0; PAGE];
        for (number, at) in read.iter().enumerate() {
            bulk.pages.read(at * PAGE, &mut page);
            let want = word(rounds, number);
            wrong += usize::from(page.chunks_exact(8).any(|chunk| chunk != want));
        }
        rounds += 1;
    }
    device.disconnect()?;
    Ok(
        Found::new(format!("{rounds} times {MOST_SEGMENTS} pages")).demand(
            wrong == 0,
            &format!("{wrong} pages have not what was written"),
        ),
    )
}

/// Requests with bad grants, of as many segments as can be and of those that fit into a slot. They must fail, and
/// must not have changed the disk.
pub fn bad(attacker: &mut Attacker) -> Result<Found> {
    let mut device = attacker.connect()?;
    let mut bulk = Bulk::new(&device, 1, MOST_SEGMENTS)?;
    let readable = Pages::grant(device.backend_id, 1, false)?;
    let foreign = Pages::grant(device.backend_id.wrapping_add(1).max(1), 1, true)?;
    let bad_grefs = [u32::MAX, 0x00ff_ffff, 100_000, foreign.grefs()[0]];
    let timeout = attacker.config.timeout;
    let mut problems = Vec::new();
    let (mut rounds, mut refused) = (0u64, 0u64);
    // Every place once; a step that is prime to their number leads to all of them, wherever time ends it.
    while !attacker.over(rounds) && problems.len() < PROBLEMS {
        let indirect = rounds % 4 != 3;
        let count = if indirect { MOST_SEGMENTS } else { 11 };
        let mut places = vec![rounds as usize * 37 % count];
        if rounds as usize >= MOST_SEGMENTS {
            let many = attacker.rng.below(count as u64);
            places.extend((0..many).map(|_| attacker.rng.below(count as u64) as usize));
        }
        let good = bulk.segments(0)[..count].to_vec();
        let mut bad = good.clone();
        for place in &places {
            bad[*place].gref = bad_grefs[attacker.rng.below(4) as usize];
        }
        let mut unwritable = good.clone();
        unwritable[places[0]].gref = readable.grefs()[0];
        let byte = rounds as u8;
        let ring = &mut device.rings[0];
        for (what, operation, segments, fill, wanted) in [
            ("write", OP_WRITE, &good, Some(byte), 0),
            (
                "write with a bad grant",
                OP_WRITE,
                &bad,
                Some(byte.wrapping_add(101)),
                -1,
            ),
            ("read with a bad grant", OP_READ, &bad, None, -1),
            (
                "read into a page that is read-only",
                OP_READ,
                &unwritable,
                None,
                -1,
            ),
            ("read", OP_READ, &good, Some(!byte), 0),
        ] {
            if let Some(byte) = fill {
                bulk.pages.fill(0, count * PAGE, byte);
            }
            let request = if indirect {
                bulk.describe(0, segments);
                bulk.indirect(ring.abi(), operation, common(0, 0))
            } else {
                wire::direct(
                    ring.abi(),
                    0,
                    operation,
                    count as u8,
                    common(0, 0),
                    segments,
                )
            };
            let status = ask(ring, &request, timeout)?;
            refused += u64::from(status != 0);
            if status != wanted {
                problems.push(format!(
                    "round {rounds}, segments {places:?} of {count}: {what} has status {status}"
                ));
            }
        }
        let mut data = vec![0; count * PAGE];
        bulk.pages.read(0, &mut data);
        let changed = data.iter().filter(|found| **found != byte).count();
        if changed > 0 {
            problems.push(format!(
                "round {rounds}, segments {places:?} of {count}: {changed} bytes changed by what was refused"
            ));
        }
        rounds += 1;
    }
    device.disconnect()?;
    Ok(Found {
        text: format!("{rounds} rounds, {refused} requests refused"),
        problems,
    })
}

/// Grants that the backend knows, new ones, some that are given up although it may have kept them, read-only and bad ones.
pub fn mix(attacker: &mut Attacker) -> Result<Found> {
    const OLD: u64 = 700;
    const NEW: u64 = 300;
    let mut device = attacker.connect()?;
    let old = Pages::grant(device.backend_id, OLD as usize, true)?;
    let readable = Pages::grant(device.backend_id, 8, false)?;
    let limit = places(&device);
    let depth = attacker.depth.min(device.rings[0].entries());
    let mut bulk = Bulk::new(&device, depth as usize, MOST_SEGMENTS)?;
    let mut gone = vec![u32::MAX];
    let mut answers = Answers::default();
    let (mut rounds, mut missing) = (0u64, 0);
    while !attacker.over(rounds) && missing == 0 {
        let new = Pages::grant(device.backend_id, NEW as usize, true)?;
        for ring in &mut device.rings {
            for turn in 0..depth {
                let rng = &mut attacker.rng;
                let kind = rng.below(4);
                let segments: Vec<Segment> = (0..MOST_SEGMENTS)
                    .map(|_| Segment {
                        gref: match (kind, rng.below(20)) {
                            (1, 0) => u32::MAX - rng.below(100) as u32,
                            (1, 1) => gone[rng.below(gone.len() as u64) as usize],
                            (2, 0..=1) => readable.grefs()[rng.below(8) as usize],
                            (_, 2..=6) => new.grefs()[rng.below(NEW) as usize],
                            _ => old.grefs()[rng.below(OLD) as usize],
                        },
                        first: 0,
                        last: rng.below(8) as u8,
                    })
                    .collect();
                let operation = if rng.chance(50) { OP_READ } else { OP_WRITE };
                let common = common(turn.into(), rng.below(limit) * SECTORS);
                let request = if rng.chance(70) {
                    bulk.describe(turn as usize, &segments);
                    bulk.indirect(ring.abi(), operation, common)
                } else {
                    wire::direct(ring.abi(), 0, operation, 11, common, &segments)
                };
                ring.put(&request);
            }
            ring.push()?;
            missing += drain(ring, &mut answers, attacker.config.timeout)?;
        }
        rounds += 1;
        gone = new.grefs().to_vec();
    }
    let found = Found::new(format!("{rounds} rounds: {answers}"))
        .demand_answers(missing, &answers)
        .demand(answers.okay > 0, "not a single request was done");
    if missing == 0 {
        device.disconnect()?;
    }
    Ok(found)
}

/// The ring's and the segments' own pages as data, so that the backend writes over what it looks at.
pub fn own(attacker: &mut Attacker) -> Result<Found> {
    let patience = Duration::from_secs(1);
    let mut lines = Vec::new();
    let mut device = attacker.connect()?;
    let mut bulk = Bulk::new(&device, 1, MOST_SEGMENTS)?;
    let segments_page = bulk.descriptor(0);
    let ring = &mut device.rings[0];
    let ring_page = ring.grefs()[0];
    let all = |gref: u32| {
        vec![
            Segment {
                gref,
                first: 0,
                last: 7
            };
            MOST_SEGMENTS
        ]
    };
    let mut ask_all = |what: &str, ring: &mut crate::ring::Ring, request: &RawSlot| -> Result<()> {
        ring.put(request);
        shove(ring)?;
        let mut answers = Answers::default();
        // What the backend takes for an answer's place may be nonsense by now.
        match drain(ring, &mut answers, patience) {
            Ok(0) => lines.push(format!(
                "{what}: {}",
                if answers.okay > 0 { "done" } else { "error" }
            )),
            Ok(_) => lines.push(format!("{what}: no answer")),
            Err(error) => lines.push(format!("{what}: {error}")),
        }
        Ok(())
    };
    for (gref, what) in [
        (bulk.pages.grefs()[0], "one page 256 times"),
        (segments_page, "the page of the segments"),
    ] {
        for (operation, verb) in [(OP_WRITE, "written"), (OP_READ, "read")] {
            bulk.describe(0, &all(gref));
            let request = bulk.indirect(ring.abi(), operation, common(0, 0));
            ask_all(&format!("{what}, {verb}"), ring, &request)?;
        }
    }
    let abi = ring.abi();
    let page = |operation, sector, gref| wire::page(abi, 0, operation, common(1, sector), gref);
    let as_segments = wire::indirect(abi, 0, OP_READ, 256, common(1, 8), &[ring_page]);
    let zeroes = bulk.pages.grefs()[1];
    for (what, request) in [
        ("the ring, written", page(OP_WRITE, 8, ring_page)),
        ("the ring as segments", as_segments),
        ("zeroes, written", page(OP_WRITE, 16, zeroes)),
        (
            "what the ring was, read into it",
            page(OP_READ, 8, ring_page),
        ),
        ("zeroes, read into the ring", page(OP_READ, 16, ring_page)),
    ] {
        if ring.free() > 0 {
            ask_all(what, ring, &request)?;
        }
    }
    let start = Instant::now();
    device.close()?;
    drop(device);
    let mut device = attacker.connect()?;
    let ring = &mut device.rings[0];
    let request = wire::page(abi, 0, OP_READ, common(1, 0), bulk.pages.grefs()[0]);
    let status = ask(ring, &request, attacker.config.timeout)?;
    device.disconnect()?;
    let text = format!(
        "{}; connected anew in {} ms",
        lines.join("; "),
        start.elapsed().as_millis()
    );
    Ok(Found::new(text).demand(
        status == 0,
        &format!("a read after connecting again has status {status}"),
    ))
}

/// Fills all rings with the largest requests, and takes no answer for as long as it is told to.
pub fn hoard(attacker: &mut Attacker) -> Result<Found> {
    // More in flight than the rings of one turn, each page mapped less than 255 times.
    const TURNS: usize = 12;
    let mut device = attacker.connect()?;
    let bulk = Bulk::new(&device, TURNS, MOST_SEGMENTS)?;
    let limit = places(&device);
    let mut put = 0u64;
    for ring in &mut device.rings {
        for _ in 0..ring.entries().min(attacker.depth) {
            let sector = attacker.rng.below(limit) * SECTORS;
            ring.put(&bulk.indirect(ring.abi(), OP_READ, common(put, sector)));
            put += 1;
        }
        shove(ring)?;
    }
    println!("{put} requests put");
    std::thread::sleep(attacker.end.saturating_duration_since(Instant::now()));
    let mut answers = Answers::default();
    for ring in &mut device.rings {
        take(ring, &mut answers)?;
    }
    let meanwhile = answers.total();
    let mut missing = 0;
    for ring in &mut device.rings {
        missing += drain(ring, &mut answers, attacker.config.timeout)?;
    }
    let text = format!("{put} requests, {meanwhile} answered meanwhile: {answers}");
    let found = Found::new(text)
        .demand(missing == 0, &format!("{missing} without an answer"))
        .demand(answers.okay == put, "not all were done");
    if missing == 0 {
        device.disconnect()?;
    }
    Ok(found)
}
