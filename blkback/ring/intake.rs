// SPDX-License-Identifier: GPL-2.0

//! How a ring's worker takes requests: it parses them, gathers their segments, maps the grants of
//! all together and submits them under one plug.
//!
//! Works on the worker's state, which is locked; owns nothing.

#![forbid(unsafe_code)]

use blkif::{
    Parsed,
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
        stage::Builder,
        Grants, //
    },
    request::{
        list::List,
        memory::Spares,
        Staged, //
    },
    storage::bdev, //
};

use super::{
    pending::{
        Pending,
        Pieces, //
    },
    Ring,
    Shortage,
    State, //
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

impl Ring {
    /// Takes requests from the ring and submits them. Whether there were any.
    pub(super) fn take(self: &Arc<Self>, state: &mut State) -> bool {
        if !state.no_room.is_empty() {
            return false;
        }
        let stopping = self.stopping.load(Relaxed);
        // One that is closed from here on waits for what is taken now.
        let closed = self.gate.is_closed();
        let State {
            memory: Some(memory),
            channel: Some(_),
            back,
            moderation,
            disk,
            grants,
            spares,
            copier,
            slot,
            starved,
            barrier,
            broken,
            counts,
            shortage,
            ..
        } = state
        else {
            return false;
        };
        grants.set_may_ask(self.stats.guest.may_ask(&**self));
        // A disk can grow and shrink at any time.
        disk.sectors = self.medium.sectors();
        let mut staged = List::new();
        let mut taken = 0;
        let mut rejected = false;
        let mut count = 0u32;
        // What `starved` or `barrier` had to wait for when it was tried last.
        let mut before = *shortage;
        let now = clock::nanoseconds();
        while taken < BATCH {
            // The gate is closed for this request.
            let mut alone = false;
            let at_last = if let Some(waiting) = starved {
                *slot = *waiting;
                *starved = None;
                true
            } else if let Some(waiting) = barrier {
                if !self.gate.close(self.number) || back.outstanding() > 1 {
                    break;
                }
                // Nothing else is in flight on the whole disk.
                taken = BATCH;
                *slot = *waiting;
                *barrier = None;
                alone = true;
                true
            } else if stopping || closed || *broken {
                break;
            } else {
                match back.next_request(memory, slot) {
                    Ok(false) => break,
                    Ok(true) => {
                        taken = taken.saturating_add(1);
                        false
                    }
                    Err(err) => {
                        self.warn(fmt!(
                            "frontend provided bogus ring requests ({}), halting ring",
                            format_args!("{err}")
                        ));
                        *broken = true;
                        break;
                    }
                }
            };
            let parsed = blkif::parse(back.abi(), slot, disk);
            let response = match &parsed {
                Ok(parsed) if !at_last && matches!(parsed.command, Request::Barrier(_)) => {
                    *barrier = Some(*slot);
                    break;
                }
                Ok(parsed) => match self.stage(parsed, now, spares, copier, grants) {
                    Ok(request) => {
                        staged.push(request);
                        count = count.wrapping_add(1);
                        if shortage.take().is_some() {
                            self.stats.guest.got(&**self);
                        }
                        before = None;
                        continue;
                    }
                    Err(Unstaged::Failed(err)) if err == ENOMEM || err == ENOSPC => {
                        // A request in flight brings what is missing when it is done; without one it is tried
                        // again after a while. The gate stays closed for a barrier.
                        if alone {
                            *barrier = Some(*slot);
                            taken = 0;
                        } else {
                            *starved = Some(*slot);
                        }
                        let missing = if err == ENOMEM {
                            Shortage::Memory
                        } else {
                            Shortage::Mappings
                        };
                        *shortage = Some(missing);
                        // What it could get is not to be kept from others.
                        grants.settle(true);
                        self.stats.guest.wake_others(&**self);
                        if before == Some(missing) {
                            break;
                        }
                        if missing == Shortage::Memory {
                            counts.starved = counts.starved.wrapping_add(1);
                            self.stats.guest.got(&**self);
                            break;
                        }
                        counts.map_waits = counts.map_waits.wrapping_add(1);
                        self.stats.guest.wait(self);
                        grants.set_may_ask(self.stats.guest.may_ask(&**self));
                        // What was given back before we were in the queue has woken nobody.
                        before = Some(missing);
                        continue;
                    }
                    Err(Unstaged::Failed(err)) => {
                        let pending = Pending::new(self.clone(), parsed, now).0;
                        let task = pending.task();
                        counts.request(task.action, task.way, 0, true);
                        self.warn(fmt!("a request cannot be done: {:?}", err));
                        parsed.response(Status::Error)
                    }
                    Err(Unstaged::Rejected(why)) => self.refuse(&parsed.reject(why), counts),
                },
                // Also one that has waited, if the disk has become smaller.
                Err(reject) => self.refuse(reject, counts),
            };
            if shortage.take().is_some() {
                self.stats.guest.got(&**self);
            }
            back.put_response(memory, response);
            rejected = true;
            if alone {
                self.gate.open();
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

    /// Maps and submits `count` requests, at least as many as there are in `staged`.
    #[inline]
    fn submit(self: &Arc<Self>, state: &mut State, staged: &mut List<Staged<Pending>>, count: u32) {
        let State {
            grants,
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
    pub(super) fn map_again(self: &Arc<Self>, state: &mut State) {
        if !state.no_room.is_empty() {
            let mut staged = core::mem::take(&mut state.no_room);
            self.submit(state, &mut staged, BATCH);
        }
    }

    /// The answer to a request that is against the rules.
    #[cold]
    fn refuse(&self, reject: &Rejected, counts: &mut Counts) -> Response {
        self.warn(fmt!("refused {}", format_args!("{reject}")));
        counts.refused = counts.refused.wrapping_add(1);
        reject.response()
    }

    /// Puts a request together, in memory that another has left or in new.
    fn stage(
        self: &Arc<Self>,
        parsed: &Parsed<'_>,
        now: u64,
        spares: &mut Spares<Pending>,
        copier: &mut Option<Copier>,
        grants: &mut Grants,
    ) -> Result<Staged<Pending>, Unstaged> {
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
