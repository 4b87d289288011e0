// SPDX-License-Identifier: GPL-2.0

//! Attacks by xenstore: the states, and the nodes that a backend reads.

use std::time::{Duration, Instant};

use blkif::abi::{OP_READ, OP_WRITE};

use super::tools::{ask, common, places, shove, Bulk, MOST_SEGMENTS, SECTORS};
use super::{Attacker, Found};
use crate::device::{Device, State};
use crate::error::Result;
use crate::ring::Ring;
use crate::rng::Rng;
use crate::sys::Pages;
use crate::wire;

/// How long a backend is given to take offence, or to connect.
const MOMENT: Duration = Duration::from_millis(300);

/// Connects as anybody does, reads a page and leaves; returns how long that took.
fn ordinary(attacker: &Attacker) -> Result<Duration> {
    let start = Instant::now();
    let mut device = Device::connect(attacker.config)?;
    let pages = Pages::grant(device.backend_id, 1, true)?;
    let ring = &mut device.rings[0];
    let request = wire::page(ring.abi(), 0, OP_READ, common(1, 0), pages.grefs()[0]);
    ask(ring, &request, attacker.config.timeout)?;
    device.disconnect()?;
    Ok(start.elapsed())
}

/// Closes a device, and connects as anybody does after it; says how long both took.
fn close(mut device: Device, attacker: &Attacker) -> Result<String> {
    let start = Instant::now();
    device.close()?;
    let closed = start.elapsed().as_millis();
    drop(device);
    let took = ordinary(attacker)?.as_millis();
    Ok(format!(
        "closed in {closed} ms, an ordinary connection in {took} ms"
    ))
}

/// Reads and writes of a page, and large ones.
struct Traffic {
    bulk: Bulk,
    limit: u64,
}

impl Traffic {
    fn new(device: &Device) -> Result<Traffic> {
        Ok(Traffic {
            bulk: Bulk::new(device, 1, MOST_SEGMENTS)?,
            limit: places(device),
        })
    }

    /// Fills the rings, up to a depth, and takes no answer.
    fn fill(&self, rings: &mut [Ring], depth: u32, rng: &mut Rng) -> Result<()> {
        for ring in rings {
            for number in 0..ring.free().min(depth) {
                let operation = if rng.chance(50) { OP_READ } else { OP_WRITE };
                let common = common(number.into(), rng.below(self.limit) * SECTORS);
                let request = if rng.chance(10) {
                    self.bulk.indirect(ring.abi(), operation, common)
                } else {
                    self.bulk.direct(ring.abi(), operation, 1, common)
                };
                ring.put(&request);
            }
            shove(ring)?;
        }
        Ok(())
    }
}

/// Writes of the state: of the one that it is, of two in turn, of any but those that give the disk up.
pub fn states(attacker: &mut Attacker) -> Result<Found> {
    let sets: [&[&str]; 3] = [&["4"], &["3", "6"], &["3", "7", "8", "1", "5", "4", "77"]];
    let mut device = attacker.connect()?;
    let start = Instant::now();
    let all = attacker.end.saturating_duration_since(start);
    let mut writes = 0u64;
    for (number, values) in (1..).zip(sets) {
        let end = start + all * number / sets.len() as u32;
        while Instant::now() < end && !attacker.over(writes) {
            let value = values[attacker.rng.below(values.len() as u64) as usize];
            device.write("state", value)?;
            writes += 1;
        }
    }
    let rate = writes as f64 / start.elapsed().as_secs_f64();
    let after = close(device, attacker)?;
    Ok(Found::new(format!("{writes} writes, {rate:.0}/s; {after}")))
}

/// Writes of nodes that the backend reads when it connects, of many that it does not know, and below the state.
pub fn nodes(attacker: &mut Attacker) -> Result<Found> {
    const MANY: u64 = 400;
    let mut device = attacker.connect()?;
    let long = "x".repeat(1500);
    let start = Instant::now();
    let (mut writes, mut refused) = (0u64, 0u64);
    while !attacker.over(writes) {
        let number = writes / 6 % MANY;
        let (node, value) = match writes % 6 {
            0 => ("state/x".to_owned(), "1"),
            1 => ("feature-persistent".to_owned(), "1"),
            2 => ("ring-ref".to_owned(), "8"),
            3 => (format!("flood{number}"), long.as_str()),
            4 => (format!("state/y{}", number % 100), "4"),
            _ => ("protocol".to_owned(), "vax-abi"),
        };
        // The toolstack may have set a quota.
        refused += u64::from(device.write(&node, value).is_err());
        writes += 1;
    }
    let rate = writes as f64 / start.elapsed().as_secs_f64();
    for number in 0..MANY.min(writes / 6 + 1) {
        device.remove(&format!("flood{number}"))?;
        device.remove(&format!("state/y{}", number % 100))?;
    }
    device.remove("state/x")?;
    device.disconnect()?;
    let took = ordinary(attacker)?.as_millis();
    Ok(Found::new(format!(
        "{writes} writes, {rate:.0}/s, {refused} of them refused; an ordinary connection in {took} ms"
    )))
}

/// Nodes that contradict each other, or mean nothing. What comes of it is for the backend to say, but an ordinary
/// frontend must be served afterwards.
pub fn setup(attacker: &mut Attacker) -> Result<Found> {
    let long = "x86_64-abi".repeat(300);
    let orders = [
        "5",
        "4294967295",
        "4294967296",
        "-1",
        "31",
        "64",
        "",
        "0x2",
        "4",
    ];
    let queues = ["0", "65", "4294967295", "-2", " 1", "2"];
    let protocols = ["", "x86_64-abi\n", "arm-abi", &long];
    let numbers = ["4294967295", "99999999999", "0", "1", "-1", "%n%s%x", ""];
    let mut cases: Vec<(&str, &str)> = Vec::new();
    for (node, values) in [
        ("ring-page-order", &orders[..]),
        ("multi-queue-num-queues", &queues),
        ("protocol", &protocols),
        ("feature-persistent", &numbers),
        ("ring-ref", &numbers),
        ("event-channel", &numbers),
    ] {
        cases.extend(values.iter().map(|value| (node, *value)));
    }
    let (mut tried, mut connected) = (0u64, Vec::new());
    let mut refused = 0;
    while !attacker.over(tried) {
        let (node, value) = cases[tried as usize % cases.len()];
        let mut device = Device::offer(attacker.config)?;
        device.write(node, value)?;
        if value == "4" && node == "ring-page-order" {
            // Rings that are said to be there twice.
            for page in 0..16 {
                device.write(&format!("ring-ref{page}"), "9")?;
            }
        }
        device.set(State::Initialised)?;
        let end = Instant::now() + MOMENT;
        let state = loop {
            let state = device.backend_state()?;
            if state != Some(State::InitWait) || Instant::now() > end {
                break state;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        if state == Some(State::Connected) {
            connected.push(format!("{node}={:.12}", value.escape_debug().to_string()));
        } else {
            refused += 1;
        }
        device.close()?;
        tried += 1;
    }
    connected.sort();
    connected.dedup();
    let took = ordinary(attacker)?.as_millis();
    Ok(Found::new(format!(
        "{tried} set-ups, {refused} not connected, the others with {}; an ordinary connection in {took} ms",
        connected.join(" ")
    )))
}

/// Goes through the states in any order with requests in flight, on pages that are the ring all the time, and hardly
/// ever waits.
pub fn toggle(attacker: &mut Attacker) -> Result<Found> {
    use State::{Closed, Closing, Connected, Initialised, Initialising};
    let walks: [&[State]; 6] = [
        &[Closing, Closed, Initialising],
        &[Closed, Initialising],
        &[Initialising],
        &[Closing, Initialising],
        &[Closing, Closed],
        &[
            Initialised,
            Closed,
            Initialised,
            Closing,
            Closed,
            Initialising,
        ],
    ];
    let mut device = attacker.connect()?;
    let traffic = Traffic::new(&device)?;
    let start = Instant::now();
    let (mut rounds, mut seen) = (0u64, 0u64);
    while !attacker.over(rounds) {
        let rng = &mut attacker.rng;
        // Also without requests.
        if rng.chance(80) {
            traffic.fill(&mut device.rings, attacker.depth, rng)?;
        }
        if rng.chance(20) {
            std::thread::sleep(Duration::from_micros(rng.below(20_000)));
        }
        for state in walks[rng.below(walks.len() as u64) as usize] {
            device.set(*state)?;
        }
        for ring in &mut device.rings {
            ring.begin(0);
        }
        if rng.chance(30) {
            device.write_nodes()?;
        }
        device.set(if rng.chance(50) {
            Initialised
        } else {
            Connected
        })?;
        if rng.chance(25) {
            // Let it come to a connection now and then.
            let end = Instant::now() + MOMENT;
            while Instant::now() < end {
                if device.backend_state()? == Some(Connected) {
                    seen += 1;
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        rounds += 1;
    }
    let rate = rounds as f64 / start.elapsed().as_secs_f64();
    let after = close(device, attacker)?;
    Ok(Found::new(format!(
        "{rounds} walks, {rate:.0}/s, {seen} seen connected; {after}"
    )))
}

/// Closes and connects anew with requests in flight, as often as can be; the backend has to let go and to connect
/// each time.
pub fn reconnect(attacker: &mut Attacker) -> Result<Found> {
    let mut device = attacker.connect()?;
    let traffic = Traffic::new(&device)?;
    let start = Instant::now();
    let (mut rounds, mut unanswered) = (0u64, 0u64);
    let mut slowest = Duration::ZERO;
    while !attacker.over(rounds) {
        traffic.fill(&mut device.rings, attacker.depth, &mut attacker.rng)?;
        if attacker.rng.chance(50) {
            std::thread::sleep(Duration::from_micros(attacker.rng.below(3_000)));
        }
        let begin = Instant::now();
        device.set(State::Closing)?;
        device.set(State::Closed)?;
        device.await_closed()?;
        for ring in &mut device.rings {
            while ring.next_response()?.is_some() {}
            unanswered += u64::from(ring.in_flight());
            ring.begin(0);
        }
        device.set(State::Initialising)?;
        device.await_offer()?;
        device.establish()?;
        slowest = slowest.max(begin.elapsed());
        rounds += 1;
    }
    let rate = rounds as f64 / start.elapsed().as_secs_f64();
    device.disconnect()?;
    let took = ordinary(attacker)?.as_millis();
    Ok(Found::new(format!(
        "{rounds} connections, {rate:.1}/s, the slowest in {} ms, {unanswered} requests not taken; an ordinary one in {took} ms",
        slowest.as_millis()
    )))
}

/// No state at all with requests in flight, then events. The backend gives the disk up: nothing can be done with it
/// afterwards.
pub fn garbage(attacker: &mut Attacker) -> Result<Found> {
    const EVENTS: u64 = 1000;
    let values = ["x", "0", "99999999999999999999", "-1", ""];
    let mut device = attacker.connect()?;
    let traffic = Traffic::new(&device)?;
    traffic.fill(&mut device.rings, attacker.depth, &mut attacker.rng)?;
    let value = values[attacker.rng.below(values.len() as u64) as usize];
    device.write("state", value)?;
    let (mut events, mut refused) = (0u64, 0u64);
    while !attacker.late() {
        for ring in &device.rings {
            for _ in 0..EVENTS {
                refused += u64::from(ring.channel.notify().is_err());
            }
            events += EVENTS;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut answered = 0;
    for ring in &mut device.rings {
        while ring.next_response()?.is_some() {
            answered += 1;
        }
    }
    device.abandon();
    Ok(Found::new(format!(
        "state {value:?}, {events} events, {refused} refused, {answered} answers"
    )))
}
