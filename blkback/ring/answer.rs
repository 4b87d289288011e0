// SPDX-License-Identifier: GPL-2.0

//! How a ring's worker answers requests that are done, and when it tells the frontend of that.
//!
//! Works on the worker's state, which is locked; owns nothing.

#![forbid(unsafe_code)]

use blkif::moderation::Hold;
use kernel::sync::atomic::Relaxed;
use xen_bindings::{
    clock,
    module::params,
    request::list::List, //
};

use super::{
    Ring,
    Supplies,
    WorkerState, //
};
use crate::task::{
    Action,
    HasTask,
    Task, //
};

impl Ring {
    /// Unmaps and answers finished requests. Returns whether there were any.
    pub(super) fn answer(&self, state: &mut WorkerState, look_at_held: bool) -> bool {
        let WorkerState {
            memory: Some(memory),
            back,
            moderation,
            supplies: Supplies { grants, spares, .. },
            held,
            counts,
            ..
        } = state
        else {
            return false;
        };
        let mut done = List::new();
        if look_at_held {
            done.append(held);
        } else if self.done.is_empty() {
            return false;
        }
        self.done.take(&mut done);
        if done.is_empty() {
            return false;
        }
        let mut barrier = false;
        // Whoever has sent something else than a read or a write waits for it.
        let mut urgent = false;
        let now = clock::nanoseconds();
        grants.unmap(&mut done, held, |finished| {
            let taken = finished.data.taken;
            let &Task { action, way, .. } = finished.data.task();
            barrier |= action == Action::Barrier;
            urgent |= !matches!(action, Action::Read | Action::Write);
            counts.request(action, way, finished.bytes, finished.result.is_err());
            let took = now.saturating_sub(taken);
            self.stats.latency.add(action, took);
            finished.data.trace_end(self, finished.result, took);
            back.put_response(memory, finished.data.response(self, finished.result));
            spares.put(finished.memory);
        });
        counts.pages(grants.take_page_counts());
        grants.settle(self.stats.guest.has_waiting());
        self.stats.guest.wake_others(self);
        // Requests that have come meanwhile are open, too. A broken ring is found when one is taken.
        let _ = back.has_requests(memory);
        if urgent
            || !params::moderate_events()
            || moderation.is_enough(back.open(), back.unpublished())
        {
            self.publish(state);
        }
        self.stats.add(&mut state.counts);
        if barrier {
            self.gate.open();
        }
        true
    }

    /// Tells the frontend of all answers.
    pub(super) fn publish(&self, state: &mut WorkerState) {
        let WorkerState {
            memory: Some(memory),
            channel: Some(channel),
            back,
            moderation,
            counts,
            ..
        } = state
        else {
            return;
        };
        moderation.published(back.unpublished(), back.open());
        if back.publish(memory) {
            channel.notify();
            counts.events = counts.events.wrapping_add(1);
        }
    }

    /// Before the worker sleeps: tells the frontend of answers, unless that can wait.
    pub(super) fn tell(&self, state: &mut WorkerState) -> Option<Hold> {
        let answers = state.back.unpublished();
        let memory = state.memory.as_ref().filter(|_| answers > 0)?;
        // A frontend that has not got around to the answers before finds these without an event.
        if state.back.wants_event(memory) && self.listens(state) && params::moderate_events() {
            let now = clock::nanoseconds();
            let hold = state.moderation.hold(state.back.open(), answers, now);
            if hold.is_some() {
                return hold;
            }
        }
        self.publish(state);
        self.stats.add(&mut state.counts);
        None
    }

    /// Could a request be taken, if there were one?
    fn listens(&self, state: &WorkerState) -> bool {
        !state.broken
            && !state.is_held_up()
            && state.channel.is_some()
            && !self.stopping.load(Relaxed)
            && !self.gate.is_closed()
    }

    /// Asks the frontend for an event at its next request, or at a later one. Returns whether there is one
    /// already.
    pub(super) fn more_requests(&self, state: &mut WorkerState, hold: Option<Hold>) -> bool {
        if !self.listens(state) {
            return false;
        }
        let WorkerState {
            memory: Some(memory),
            back,
            ..
        } = state
        else {
            return false;
        };
        // A broken ring is found, and reported, by the next attempt to take a request from it.
        back.final_check(memory, hold.map_or(1, |hold| hold.requests))
            .unwrap_or(true)
    }
}
