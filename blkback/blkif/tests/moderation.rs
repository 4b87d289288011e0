// SPDX-License-Identifier: GPL-2.0

//! What holding answers back does to frontends of many kinds: a simulation of both ends in time.
//!
//! The frontend is a processor that needs some time to put a request on the ring and some for each
//! event. The backend needs some to wake up, and none for its work; the disk takes a constant time for
//! a request, for any number of them at once.

use blkif::Moderation;
use proptest::prelude::*;
use std::{
    cmp::Reverse,
    collections::BinaryHeap, //
};

/// Times in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Frontend {
    /// Requests that it has open at a time.
    depth: u32,
    /// It waits for all answers before it goes on, instead of putting a request on the ring for
    /// each answer.
    bursts: bool,
    /// To put a request on the ring.
    submit: u64,
    /// For an event.
    event: u64,
}

/// A number of requests from one frontend, and what they took.
#[derive(Clone, Copy, Default, Debug)]
struct Outcome {
    nanoseconds: u64,
    /// Events to the frontend, and to the backend.
    events: u32,
    wakeups: u32,
    /// Longest time that an answer was held.
    longest: u64,
}

/// Backend and disk, which stay while frontends change.
struct World {
    moderation: Option<Moderation>,
    latency: u64,
    now: u64,
}

impl World {
    fn new(moderated: bool, latency: u64) -> Self {
        Self {
            moderation: moderated.then(Moderation::new),
            latency,
            now: 1_000_000_000,
        }
    }

    fn run(&mut self, frontend: Frontend, requests: u32) -> Outcome {
        let start = self.now;
        let mut outcome = Outcome::default();
        // The frontend: requests that it may put on the ring, and when it has done so for the next.
        let mut hand = frontend.depth;
        let mut ready = Some(start + frontend.submit);
        // The ring: not taken yet, answered but not published. What the disk has to do.
        let (mut waiting, mut held) = (0, 0);
        let mut disk = BinaryHeap::new();
        let mut since = None;
        // What wakes the backend besides the disk.
        let mut nth = 1;
        let mut timer: Option<u64> = None;
        let mut runs: Option<u64> = None;
        let (mut sent, mut done) = (0, 0);
        while done < requests {
            let next = [ready, timer, runs, disk.peek().map(|Reverse(time)| *time)];
            self.now = next.into_iter().flatten().min().expect("both ends wait");
            let mut wake = timer == Some(self.now);
            if ready == Some(self.now) {
                hand -= 1;
                sent += 1;
                waiting += 1;
                wake |= waiting >= nth;
                ready = (hand > 0 && sent < requests).then_some(self.now + frontend.submit);
            }
            while disk.peek().is_some_and(|Reverse(time)| *time <= self.now) {
                disk.pop();
                held += 1;
                wake = true;
            }
            if wake && runs.is_none() {
                outcome.wakeups += 1;
                timer = None;
                runs = Some(self.now + WAKEUP);
            }
            if runs != Some(self.now) {
                continue;
            }
            runs = None;
            if let Some(moderation) = &mut self.moderation {
                moderation.taken(waiting, self.now);
            }
            if self.latency > 0 {
                disk.extend((0..waiting).map(|_| Reverse(self.now + self.latency)));
            } else {
                held += waiting;
            }
            waiting = 0;
            (nth, timer) = (1, None);
            if held == 0 {
                continue;
            }
            let since_when = *since.get_or_insert(self.now);
            let open = held + disk.len() as u32;
            if let Some(moderation) = &mut self.moderation {
                if let Some(hold) = moderation.hold(open, held, self.now) {
                    nth = hold.requests;
                    timer = Some(self.now + hold.nanoseconds);
                    continue;
                }
                moderation.published(held, open);
            }
            outcome.longest = outcome.longest.max(self.now - since_when);
            since = None;
            done += held;
            hand += held;
            held = 0;
            outcome.events += 1;
            // What is being put on the ring is done later for the interrupt.
            let may = !frontend.bursts || hand == frontend.depth;
            ready = match ready {
                Some(time) => Some(time + frontend.event),
                None if may && sent < requests => Some(self.now + frontend.event + frontend.submit),
                None => None,
            };
        }
        outcome.nanoseconds = self.now - start;
        outcome
    }
}

const USUAL: Frontend = Frontend {
    depth: 1,
    bursts: false,
    submit: 3_000,
    event: 5_000,
};
/// What the backend needs to wake up.
const WAKEUP: u64 = 4_000;
const LATENCIES: [u64; 3] = [0, 80_000, 4_000_000];

/// The same with moderation, and without it.
fn both(frontend: Frontend, latency: u64, requests: u32) -> (Outcome, Outcome) {
    let with = World::new(true, latency).run(frontend, requests);
    let without = World::new(false, latency).run(frontend, requests);
    (with, without)
}

#[test]
fn a_frontend_that_waits_for_each_answer_gets_it_at_once() {
    for latency in LATENCIES {
        let (with, without) = both(USUAL, latency, 10_000);
        assert_eq!(with.longest, 0);
        assert_eq!(with.nanoseconds, without.nanoseconds);
    }
}

#[test]
fn a_busy_frontend_gets_several_answers_for_an_event() {
    for depth in [16, 20, 32, 64] {
        let frontend = Frontend { depth, ..USUAL };
        let (with, without) = both(frontend, 0, 2_000);
        assert!(
            with.events < without.events / 3,
            "{depth}: {with:?} {without:?}"
        );
        assert!(
            with.wakeups < without.wakeups / 2,
            "{depth}: {with:?} {without:?}"
        );
        assert!(
            with.nanoseconds < without.nanoseconds * 3 / 4,
            "{depth}: {with:?} {without:?}"
        );
    }
}

#[test]
fn no_frontend_is_slower() {
    for latency in LATENCIES {
        for depth in 1..=48 {
            for bursts in [false, true] {
                let frontend = Frontend {
                    depth,
                    bursts,
                    ..USUAL
                };
                let (with, without) = both(frontend, latency, 30_000);
                let more = with.nanoseconds as f64 / without.nanoseconds as f64;
                assert!(more < 1.02, "{latency} {frontend:?}: {more}");
            }
        }
    }
}

#[test]
fn what_comes_after_a_pause_is_not_held_for_its_length() {
    for latency in LATENCIES {
        let mut world = World::new(true, latency);
        for requests in [100, 1_000, 10_000] {
            world.run(Frontend { depth: 32, ..USUAL }, requests);
            world.now += 1_000_000_000;
            let lone = world.run(USUAL, 100);
            // No more than some of its own requests take.
            assert!(
                lone.longest < lone.nanoseconds / 10,
                "{latency} {requests}: {lone:?}"
            );
            world.now += 20_000_000;
        }
    }
}

proptest! {
    /// Whatever comes, answers are not held for ever.
    #[test]
    fn every_hold_ends(steps in prop::collection::vec((0u32..100, 0u32..300, 0u64..20_000_000, any::<bool>()), 0..300)) {
        let mut moderation = Moderation::new();
        let mut now = u64::MAX - 2_000_000_000;
        for (requests, open, passed, publish) in steps {
            now = now.saturating_add(passed);
            moderation.taken(requests, now);
            match moderation.hold(open, requests, now) {
                Some(hold) => {
                    prop_assert!(hold.requests >= 1 && !moderation.is_enough(open, requests));
                    prop_assert!((1..=10_000_000).contains(&hold.nanoseconds));
                    let end = now.saturating_add(hold.nanoseconds);
                    prop_assert!(end == u64::MAX || moderation.hold(open, requests, end).is_none());
                    now = end;
                }
                None => moderation.published(requests, open),
            }
            if publish {
                moderation.published(requests, open);
            }
        }
    }
}
