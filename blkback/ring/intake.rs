// SPDX-License-Identifier: GPL-2.0

//! How a ring's worker takes requests: it parses them, gathers their segments, maps the grants of
//! all together and submits them under one plug.
//!
//! Works on the worker's state, which is locked; owns nothing.

#![forbid(unsafe_code)]

use blkif::{
    BackRing,
    Parsed,
    RawSlot,
    Reject,
    Rejected,
    Request,
    Response,
    Status, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    },
};
use xen_bindings::{
    clock,
    grants::{
        copy::Copier,
        stage::Builder, //
    },
    request::{
        list::List,
        Staged, //
    },
    storage::bdev,
    xen::ring::RingMemory, //
};

use super::{
    pending::{
        Pending,
        Pieces, //
    },
    Parked,
    Ring,
    Shortage,
    Supplies,
    WorkerState, //
};
use crate::{
    stats::Counts,
    task::HasTask, //
};

/// Requests taken from the ring before their grants are mapped, they are submitted, and what is done is
/// answered. The frontend works on the answers while more requests are taken: with all that a ring can
/// hold at a time, the two sides would wait for each other in turn. Documentation/benchmarks/README.md
/// has figures.
const BATCH: u32 = 4;

/// How a request comes to be tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    /// It has just been taken from the ring.
    New,
    /// It has waited for this.
    Again(Shortage),
    /// It is a barrier, and all else has been answered; it may have waited for this, too.
    Alone(Option<Shortage>),
}

impl Turn {
    /// What was missing for it when it was tried last.
    fn missing(self) -> Option<Shortage> {
        match self {
            Turn::New => None,
            Turn::Again(missing) => Some(missing),
            Turn::Alone(missing) => missing,
        }
    }

    /// Where it waits if it is short of this.
    fn parked(self, slot: &RawSlot, missing: Shortage) -> Parked {
        match self {
            Turn::New | Turn::Again(_) => Parked::Short(*slot, missing),
            // The gate stays closed for it.
            Turn::Alone(_) => Parked::Barrier(*slot, Some(missing)),
        }
    }
}

/// What has become of a request that was tried.
enum Attempt {
    /// It can be mapped and submitted.
    Staged(Staged<Pending>),
    /// It has to wait for this.
    Short(Shortage),
    /// It is answered without I/O.
    Refused(Response),
}

/// Why a request cannot be put together.
enum Unstaged {
    /// Its segments, which do not stand in its slot, are not valid.
    Rejected(Reject),
    /// They cannot be read (`EFAULT`), or there is no memory.
    Failed(Error),
}

impl From<Error> for Unstaged {
    fn from(err: Error) -> Self {
        Self::Failed(err)
    }
}

impl From<Reject> for Unstaged {
    fn from(why: Reject) -> Self {
        Self::Rejected(why)
    }
}

fn is_barrier(parsed: &Result<Parsed<'_>, Rejected>) -> bool {
    let command = parsed.as_ref().map(|parsed| &parsed.command);
    matches!(command, Ok(Request::Barrier(_)))
}

impl Ring {
    /// Takes requests from the ring and submits them. Returns whether there were any.
    pub(super) fn take(self: &Arc<Self>, state: &mut WorkerState) -> bool {
        if !state.no_room.is_empty() {
            return false;
        }
        // A gate that is closed from here on waits for what is taken now.
        let open = !self.stopping.load(Relaxed) && !self.gate.is_closed();
        let WorkerState {
            memory: Some(memory),
            channel: Some(_),
            back,
            moderation,
            disk,
            supplies,
            slot,
            parked,
            broken,
            counts,
            ..
        } = state
        else {
            return false;
        };
        let may_ask = self.stats.guest.may_ask(&**self);
        supplies.grants.set_may_ask(may_ask);
        // A disk can grow and shrink at any time.
        disk.sectors = self.medium.sectors();
        let mut staged = List::new();
        let mut taken = 0;
        let mut rejected = false;
        let mut count = 0u32;
        let now = clock::nanoseconds();
        while taken < BATCH {
            let turn = match parked {
                Parked::Nothing if open && !*broken => self.next(back, memory, slot, broken),
                Parked::Nothing => None,
                _ => self.unpark(parked, slot, back),
            };
            let Some(turn) = turn else { break };
            taken = match turn {
                Turn::New => taken.saturating_add(1),
                Turn::Alone(_) => BATCH,
                Turn::Again(_) => taken,
            };
            let parsed = blkif::parse(back.abi(), slot, disk);
            if turn == Turn::New && is_barrier(&parsed) {
                *parked = Parked::Barrier(*slot, None);
                break;
            }
            let attempt = self.attempt(&parsed, now, supplies, counts);
            match attempt {
                Attempt::Short(missing) => {
                    *parked = turn.parked(slot, missing);
                    if let Turn::Alone(_) = turn {
                        taken = 0;
                    }
                    if !self.run_short(turn, missing, supplies, counts) {
                        break;
                    }
                    continue;
                }
                Attempt::Staged(request) => {
                    staged.push(request);
                    count = count.wrapping_add(1);
                }
                Attempt::Refused(response) => {
                    back.put_response(memory, response);
                    rejected = true;
                    if matches!(turn, Turn::Alone(_)) {
                        self.gate.open();
                    }
                }
            }
            if turn.missing().is_some() {
                self.stats.guest.got(&**self);
            }
        }
        moderation.taken(taken, now);
        self.submit(state, &mut staged, count);
        if rejected {
            self.publish(state);
            self.stats.add(&mut state.counts);
        }
        taken > 0
    }

    /// Gives the request that waits its turn, in `slot`, unless it must go on waiting.
    #[inline]
    fn unpark(&self, parked: &mut Parked, slot: &mut RawSlot, back: &BackRing) -> Option<Turn> {
        let (waiting, turn) = match parked {
            Parked::Nothing => return None,
            Parked::Short(waiting, missing) => (waiting, Turn::Again(*missing)),
            Parked::Barrier(waiting, missing) => {
                if !self.gate.close(self.number) || back.outstanding() > 1 {
                    return None;
                }
                // Nothing else is in flight on the whole disk.
                (waiting, Turn::Alone(*missing))
            }
        };
        *slot = *waiting;
        *parked = Parked::Nothing;
        Some(turn)
    }

    /// Takes the next request from the ring into `slot`, if there is one.
    #[inline]
    fn next(
        &self,
        back: &mut BackRing,
        memory: &RingMemory,
        slot: &mut RawSlot,
        broken: &mut bool,
    ) -> Option<Turn> {
        match back.next_request(memory, slot) {
            Ok(found) => found.then_some(Turn::New),
            Err(err) => {
                self.speaker.warn_limited(fmt!(
                    "frontend provided bogus ring requests ({}), halting ring",
                    format_args!("{err}")
                ));
                *broken = true;
                None
            }
        }
    }

    /// A request has been parked for want of something: lets others have what it could get. Returns whether it
    /// is worth trying again at once.
    ///
    /// A request in flight brings what is missing when it is done; without one it is tried again after a while.
    #[cold]
    fn run_short(
        self: &Arc<Self>,
        turn: Turn,
        missing: Shortage,
        supplies: &mut Supplies,
        counts: &mut Counts,
    ) -> bool {
        let (guest, grants) = (&self.stats.guest, &mut supplies.grants);
        grants.settle(true);
        guest.wake_others(&**self);
        if turn.missing() == Some(missing) {
            return false;
        }
        if missing == Shortage::Memory {
            counts.starved = counts.starved.wrapping_add(1);
            guest.got(&**self);
            return false;
        }
        counts.map_waits = counts.map_waits.wrapping_add(1);
        guest.wait(self);
        grants.set_may_ask(guest.may_ask(&**self));
        // What was given back before we were in the queue has woken nobody.
        true
    }

    /// Maps and submits `count` requests, at least as many as there are in `staged`.
    #[inline]
    fn submit(
        self: &Arc<Self>,
        state: &mut WorkerState,
        staged: &mut List<Staged<Pending>>,
        count: u32,
    ) {
        let WorkerState {
            supplies: Supplies { grants, .. },
            no_room,
            counts,
            ..
        } = state;
        let mut submit = || {
            let mut waiting = None;
            grants.map(staged, no_room, |request| match request {
                Ok(mapped) => {
                    mapped.data().trace_start(self, mapped.bytes());
                    let waiting = (count > 1).then_some(&mut waiting);
                    self.medium.submit(mapped, waiting, &self.blocking);
                }
                Err(done) => {
                    done.data().trace_start(self, 0);
                    self.completed(done);
                }
            });
            self.medium.finish(waiting);
        };
        match count {
            0 => {}
            1 => submit(),
            _ => bdev::plugged(submit),
        }
        if !no_room.is_empty() {
            counts.map_waits = counts.map_waits.wrapping_add(1);
        }
    }

    /// Tries once more to map requests that Xen had no room for.
    pub(super) fn map_again(self: &Arc<Self>, state: &mut WorkerState) {
        if !state.no_room.is_empty() {
            let mut staged = core::mem::take(&mut state.no_room);
            self.submit(state, &mut staged, BATCH);
        }
    }

    /// The answer to a request that is against the rules.
    #[cold]
    fn refuse(&self, reject: &Rejected, counts: &mut Counts) -> Response {
        self.speaker
            .warn_limited(fmt!("refused {}", format_args!("{reject}")));
        counts.refused = counts.refused.wrapping_add(1);
        reject.response()
    }

    /// Has a request put together, or says why not.
    #[inline]
    fn attempt(
        self: &Arc<Self>,
        parsed: &Result<Parsed<'_>, Rejected>,
        now: u64,
        supplies: &mut Supplies,
        counts: &mut Counts,
    ) -> Attempt {
        let parsed = match parsed {
            Ok(parsed) => parsed,
            // Also one that has waited, if the disk has become smaller.
            Err(reject) => return Attempt::Refused(self.refuse(reject, counts)),
        };
        match self.stage(parsed, now, supplies) {
            Ok(request) => Attempt::Staged(request),
            Err(Unstaged::Failed(err)) if err == ENOMEM => Attempt::Short(Shortage::Memory),
            Err(Unstaged::Failed(err)) if err == ENOSPC => Attempt::Short(Shortage::Mappings),
            Err(Unstaged::Failed(err)) => {
                let pending = Pending::new(self.clone(), parsed, now).0;
                let task = pending.task();
                counts.request(task.action, task.way, 0, true);
                self.speaker
                    .warn_limited(fmt!("a request cannot be done: {:?}", err));
                Attempt::Refused(parsed.response(Status::Error))
            }
            Err(Unstaged::Rejected(why)) => {
                Attempt::Refused(self.refuse(&parsed.reject(why), counts))
            }
        }
    }

    /// Puts a request together, in memory that another has left or in new.
    fn stage(
        self: &Arc<Self>,
        parsed: &Parsed<'_>,
        now: u64,
        supplies: &mut Supplies,
    ) -> Result<Staged<Pending>, Unstaged> {
        let Supplies {
            grants,
            spares,
            copier,
        } = supplies;
        let (pending, pieces) = Pending::new(self.clone(), parsed, now);
        let memory = spares.take(pieces.count())?;
        let direction = pending.direction();
        Staged::new(memory, pending, direction, grants, |builder| {
            self.fill(builder, &pieces, copier)
        })
        .map_err(|(err, memory, _)| {
            spares.put(memory);
            err
        })
    }

    /// Adds the segments of a request.
    fn fill(
        &self,
        builder: &mut Builder<'_, Pending>,
        pieces: &Pieces<'_>,
        copier: &mut Option<Copier>,
    ) -> Result<(), Unstaged> {
        let indirect = match pieces {
            Pieces::None => return Ok(()),
            Pieces::Slot(transfer) => {
                for segment in transfer.segments() {
                    builder.add(segment.gref(), segment.offset(), segment.len())?;
                }
                return Ok(());
            }
            Pieces::Indirect(indirect) => indirect,
        };
        let copier = match copier {
            Some(copier) => copier,
            None => copier.insert(Copier::new()?),
        };
        let mut segments = indirect.segments();
        let mut left = usize::from(indirect.count());
        for page in indirect.pages() {
            // The guest may change its page from here on; what counts is the copy.
            let copy = builder.copy(copier, *page, left)?;
            left = left.saturating_sub(copy.len());
            for pair in copy {
                let segment = segments.add(*pair as u32, (*pair >> 32) as u32)?;
                builder.add(segment.gref(), segment.offset(), segment.len())?;
            }
        }
        segments.finish()?;
        Ok(())
    }
}
