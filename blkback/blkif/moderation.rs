// SPDX-License-Identifier: GPL-2.0

//! When a frontend is told of answers, so that an event carries several.
//!
//! An event costs both sides an interrupt and often a change of tasks: more than a small request on
//! a fast disk. A frontend that keeps many requests open and is itself what limits the rate gets an
//! event for nearly each of them, because it is answered before it has put the next one on the ring.
//! If the backend keeps its answers for itself for a moment, the frontend goes on working, and
//! several requests share the events of both directions.
//!
//! That is only good for a frontend that has other requests to work on. So an answer is held only
//! while less than half of the requests that the frontend can have open at a time (its depth) are
//! open in its eyes: waiting, in flight, or done and held. The others are its own to work on. With
//! all of them open, as on a disk that is slow, nothing is held.
//!
//! How deep a frontend goes cannot be seen, as one that is answered at once seems to have one request
//! at a time. [`Moderation`] tries it now and then, by holding answers until twice as many requests
//! are open as it knows of. If they come, they were there. If none comes for as long as these requests
//! should have taken, and a little more, the frontend waits for us: it has as many as are open. Each
//! such failure puts off the next trial, and a frontend that has never been seen with two open requests
//! is not tried at all. So a frontend that waits for each answer never waits longer than before, and
//! others rarely wait for nothing.

/// No frontend is expected to go deeper: half of it share one event, and more would save little.
const DEEPEST: u32 = 16;

/// Longest time that an answer is held, in nanoseconds. The usual limit is what the frontend's own
/// rate makes of it; this is one for very slow ones.
const LONGEST: u64 = 10_000_000;

/// Answers are held for as long as the missing requests should take, and this many more.
const SLACK: u32 = 4;

/// A time without a request is a pause if it is this many times the usual interval.
const PAUSE: u64 = 16;

/// After a pause nothing is held until this many requests have come without another one.
const BUSY: u32 = 8;

/// Least and most requests from one trial to the next.
const TRIAL_PAUSE: (u32, u32) = (32, 4096);

/// Answers that were held for nothing are no reason to hold fewer if they are at least this many requests apart.
const CALM: u32 = 1024;

/// How long the frontend need not be told of answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hold {
    /// Until this many more requests have come, at least 1.
    pub requests: u32,
    /// The longest time, if they do not come.
    pub nanoseconds: u64,
}

/// What is known of the frontend of one ring.
///
/// All times are in nanoseconds, from any clock that does not go back.
#[derive(Debug)]
pub struct Moderation {
    /// Requests that the frontend can have open at a time, as far as is known, 1 to [`DEEPEST`].
    depth: u32,
    /// Answers are held until it is known whether it can have twice as many.
    trial: bool,
    /// It has had more than one open since the last trial.
    concurrent: bool,
    /// Requests to be answered before the next trial.
    until_trial: u32,
    /// Requests from one trial to the next.
    pause: u32,
    /// Requests answered since answers were last held for nothing.
    calm: u32,
    /// Mean time from one request to the next, in nanoseconds, at most [`LONGEST`].
    interval: u64,
    /// Requests since the last pause.
    busy: u32,
    /// When requests were last taken.
    taken: u64,
    /// When the oldest answer that is held was ready.
    since: Option<u64>,
}

impl Moderation {
    /// Knows nothing, so that nothing is held.
    pub const fn new() -> Self {
        Self {
            depth: 1,
            trial: false,
            concurrent: false,
            until_trial: TRIAL_PAUSE.0,
            pause: TRIAL_PAUSE.0,
            calm: 0,
            interval: LONGEST,
            busy: 0,
            taken: 0,
            since: None,
        }
    }

    /// So many requests have been taken from the ring at the time `now`.
    #[inline]
    pub fn taken(&mut self, requests: u32, now: u64) {
        let passed = now.saturating_sub(self.taken);
        if let Some(each) = passed.checked_div(u64::from(requests)) {
            self.taken = now;
            if each > self.interval.saturating_mul(PAUSE) {
                // It had nothing to do, which says little of its rate when it has.
                self.busy = 0;
                self.interval = self.interval.saturating_mul(2).clamp(1, LONGEST);
                return;
            }
            self.busy = self.busy.saturating_add(requests);
            if each < self.interval >> 6 {
                // What was known is of another time.
                self.interval >>= 1;
            }
            // A quarter of the new one, and three of what was known.
            let each = each.min(LONGEST);
            self.interval = self
                .interval
                .saturating_sub(self.interval >> 2)
                .saturating_add(each >> 2);
        }
    }

    /// Is a frontend with `open` requests to be told at once that `answered` of them are answered?
    #[inline]
    pub fn is_enough(&self, open: u32, answered: u32) -> bool {
        // What the disk works on is not for the frontend to bring, in a trial neither.
        open >= self.target() || open.saturating_sub(answered) > self.depth / 2
    }

    /// The frontend is told of `answers` answers, when it had `open` requests.
    #[inline]
    pub fn published(&mut self, answers: u32, open: u32) {
        self.since = None;
        self.calm = self.calm.saturating_add(answers);
        self.until_trial = self.until_trial.saturating_sub(answers);
        self.concurrent |= open > 1;
        if self.trial {
            // It has come to its end; or to none, because the disk has enough to do.
            self.depth = open.min(self.target()).max(self.depth);
            self.trial = false;
            if self.calm >= CALM {
                self.pause = (self.pause / 2).max(TRIAL_PAUSE.0);
            }
            self.until_trial = self.pause;
        } else if self.until_trial == 0 && self.depth < DEEPEST && self.concurrent {
            self.trial = true;
            self.concurrent = false;
        }
    }

    /// There is nothing to do but wait for the frontend or for the disk. For how long may the frontend
    /// remain ignorant of the answers that are ready? `None` if it must be told, which the caller
    /// reports by [`Moderation::published`].
    pub fn hold(&mut self, open: u32, answered: u32, now: u64) -> Option<Hold> {
        if self.is_enough(open, answered) {
            return None;
        }
        let target = self.target();
        let limit = self
            .interval
            .saturating_mul(u64::from(target.saturating_add(SLACK)))
            .min(LONGEST);
        let held = now.saturating_sub(*self.since.get_or_insert(now));
        if held < limit {
            return Some(Hold {
                requests: target.saturating_sub(open),
                nanoseconds: limit.saturating_sub(held),
            });
        }
        if self.trial || self.calm < CALM {
            self.pause = self.pause.saturating_mul(2).min(TRIAL_PAUSE.1);
        }
        self.depth = open.clamp(1, DEEPEST);
        self.trial = false;
        self.until_trial = self.pause;
        self.calm = 0;
        None
    }

    /// Number of open requests with which the frontend is told of answers; nothing is held if it is below 2.
    #[inline]
    pub fn target(&self) -> u32 {
        let target = if self.busy < BUSY {
            0
        } else if self.trial {
            self.depth.saturating_mul(2).min(DEEPEST)
        } else {
            self.depth / 2
        };
        // So many that come in half of the longest time.
        let most = (LONGEST / 2).checked_div(self.interval).unwrap_or(u64::MAX);
        u64::from(target).min(most) as u32
    }
}

impl Default for Moderation {
    fn default() -> Self {
        Self::new()
    }
}
