// SPDX-License-Identifier: GPL-2.0

//! Rules of the ring that take more than one request to see.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use blkif::Status;

use super::lab::{status_name, Lab};
use super::Outcome;
use crate::args::Peer;
use crate::error::Result;
use crate::ring::Response;

/// A rule: its name, and what finds out whether it is kept.
pub type Rule = (&'static str, fn(&mut Lab) -> Result<Outcome>);

/// All rules. The last one looks back on everything before it.
pub const RULES: [Rule; 9] = [
    (
        "ring: a full ring is answered, each request once",
        full_ring,
    ),
    ("ring: indices go round and round", wrap_around),
    ("ring: right and wrong requests in one batch", mixture),
    ("ring: one id for two requests in flight", same_id),
    (
        "ring: reads and writes in turns, each behind the one before",
        |lab| Ok(good_if(lab.in_turns()?)),
    ),
    (
        "event: an idle backend asks for one with the next request",
        idle_asks,
    ),
    (
        "event: one without a request does no harm",
        event_without_request,
    ),
    ("event: none before rsp_event, one at it", event_when_asked),
    ("ring: no response without a request", nothing_left),
];

/// While a backend could still do what it must not.
const PATIENCE: Duration = Duration::from_millis(150);

fn good_if(problem: Option<String>) -> Outcome {
    problem.map_or(Outcome::Good, Outcome::Bad)
}

/// Puts as many reads as `ids`, all at once, and waits for the responses.
fn batch(lab: &mut Lab, ids: &[u64]) -> Result<Vec<Response>> {
    for &id in ids {
        lab.put_read(id);
    }
    collect(lab, ids.len())
}

fn collect(lab: &mut Lab, count: usize) -> Result<Vec<Response>> {
    let timeout = lab.timeout;
    let ring = lab.ring();
    ring.push()?;
    (0..count).map(|_| ring.wait_response(timeout)).collect()
}

/// Each id was answered as often as it was put, and all with `Okay`.
fn each_once(ids: &[u64], responses: &[Response]) -> Option<String> {
    let mut missing: HashMap<u64, i32> = HashMap::new();
    for &id in ids {
        *missing.entry(id).or_default() += 1;
    }
    for response in responses {
        *missing.entry(response.id).or_default() -= 1;
        if response.status != Status::Okay as i16 {
            return Some(format!(
                "id {:#x} got {}, expected OKAY",
                response.id,
                status_name(response.status)
            ));
        }
    }
    let (id, count) = missing.into_iter().find(|&(_, count)| count != 0)?;
    Some(format!(
        "id {id:#x} was answered {} times",
        if count > 0 { "too few" } else { "too many" }
    ))
}

fn full_ring(lab: &mut Lab) -> Result<Outcome> {
    let ids: Vec<u64> = (0..lab.ring().entries()).map(|_| lab.id()).collect();
    let responses = batch(lab, &ids)?;
    Ok(good_if(each_once(&ids, &responses)))
}

fn wrap_around(lab: &mut Lab) -> Result<Outcome> {
    let entries = lab.ring().entries() as usize;
    let mut left = 2 * entries + 5;
    while left > 0 {
        // Not a divisor of the ring's size: batches begin at different slots.
        let ids: Vec<u64> = (0..left.min(entries - 3)).map(|_| lab.id()).collect();
        let responses = batch(lab, &ids)?;
        if let Some(problem) = each_once(&ids, &responses) {
            return Ok(Outcome::Bad(problem));
        }
        left -= ids.len();
    }
    Ok(Outcome::Good)
}

fn mixture(lab: &mut Lab) -> Result<Outcome> {
    let refused = if lab.peer == Peer::Qdisk {
        Status::Error
    } else {
        Status::NotSupported
    };
    let mut expected: HashMap<u64, Status> = HashMap::new();
    for number in 0..16 {
        let id = lab.id();
        if number % 3 == 1 {
            lab.put_unknown(id);
            expected.insert(id, refused);
        } else {
            lab.put_read(id);
            expected.insert(id, Status::Okay);
        }
    }
    for response in collect(lab, 16)? {
        match expected.remove(&response.id) {
            Some(status) if status as i16 == response.status => {}
            Some(status) => {
                let (got, status) = (status_name(response.status), status_name(status as i16));
                return Ok(Outcome::Bad(format!(
                    "status {got} in a batch, expected {status}"
                )));
            }
            None => {
                return Ok(Outcome::Bad(format!(
                    "id {:#x} was not asked for, or twice answered",
                    response.id
                )))
            }
        }
    }
    Ok(Outcome::Good)
}

fn same_id(lab: &mut Lab) -> Result<Outcome> {
    let id = lab.id();
    let responses = batch(lab, &[id, id])?;
    Ok(good_if(each_once(&[id, id], &responses)))
}

fn idle_asks(lab: &mut Lab) -> Result<Outcome> {
    let deadline = Instant::now() + lab.timeout / 6;
    let ring = lab.ring();
    let want = ring.req_prod().wrapping_add(1);
    while ring.req_event() != want {
        if Instant::now() > deadline {
            let got = ring.req_event();
            return Ok(Outcome::Bad(format!(
                "req_event {got:#x} on an idle ring, expected {want:#x}"
            )));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(Outcome::Good)
}

fn event_without_request(lab: &mut Lab) -> Result<Outcome> {
    for _ in 0..3 {
        lab.ring().channel.notify()?;
        std::thread::sleep(Duration::from_millis(2));
    }
    let id = lab.id();
    let responses = batch(lab, &[id])?;
    Ok(good_if(each_once(&[id], &responses)))
}

fn event_when_asked(lab: &mut Lab) -> Result<Outcome> {
    const AHEAD: u32 = 4;
    while lab.ring().channel.take()? {}
    lab.ring().ask_event(AHEAD);
    let ids: Vec<u64> = (1..AHEAD).map(|_| lab.id()).collect();
    for &id in &ids {
        lab.put_read(id);
    }
    lab.ring().push()?;
    let deadline = Instant::now() + lab.timeout;
    let mut responses = Vec::new();
    while responses.len() < ids.len() {
        match lab.ring().next_response()? {
            Some(response) => responses.push(response),
            None if Instant::now() > deadline => return Ok(Outcome::Bad("no response".into())),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    if let Some(problem) = each_once(&ids, &responses) {
        return Ok(Outcome::Bad(problem));
    }
    if lab.ring().channel.wait(Instant::now() + PATIENCE)? {
        return Ok(Outcome::Bad(format!(
            "an event after {} responses, asked for was one after {AHEAD}",
            ids.len()
        )));
    }
    let id = lab.id();
    lab.put_read(id);
    lab.ring().push()?;
    if !lab.ring().channel.wait(deadline)? {
        return Ok(Outcome::Bad(format!(
            "no event after {AHEAD} responses, as was asked for"
        )));
    }
    let timeout = lab.timeout;
    let response = lab.ring().wait_response(timeout)?;
    Ok(good_if(each_once(&[id], &[response])))
}

fn nothing_left(lab: &mut Lab) -> Result<Outcome> {
    std::thread::sleep(PATIENCE);
    for ring in &mut lab.device.rings {
        // With none in flight, the ring itself takes any response for an error.
        if ring.next_response()?.is_some() || ring.in_flight() != 0 {
            return Ok(Outcome::Bad("a response is left over".into()));
        }
    }
    Ok(Outcome::Good)
}
