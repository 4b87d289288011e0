// SPDX-License-Identifier: GPL-2.0

//! What holds all rings of a disk back for a barrier.
//!
//! A barrier is done when everything taken before it from any ring has been answered, and before
//! anything else is taken from any. The ring that has it closes the gate; each other ring, once it
//! has nothing left to answer, says so; the last one to do so wakes the first. No request pays for
//! it as long as there are no barriers, except by a look at one flag that hardly ever changes.
//!
//! Owns references to the rings while they are connected. Lock order: a ring's state, then
//! [`Gate::members`], inside of which nothing is locked.

#![forbid(unsafe_code)]

use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    }, //
};

use super::Ring;

#[pin_data]
pub(crate) struct Gate {
    /// No ring may take requests. Only a hint outside of the lock: a ring that has missed it is
    /// waited for.
    closed: Atomic<bool>,
    #[pin]
    members: Mutex<Members>,
}

struct Members {
    rings: KVec<Arc<Ring>>,
    /// Number of the ring that has closed the gate.
    owner: Option<usize>,
    /// Rings besides the owner that have nothing left to answer.
    quiet: usize,
    /// Counts the closings.
    closings: u64,
}

/// A ring's memory of the last closing that it has said it is quiet for.
pub(crate) struct Seen(u64);

impl Seen {
    pub(crate) const fn new() -> Self {
        Self(0)
    }
}

impl Gate {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                closed: Atomic::new(false),
                members <- new_mutex!(Members {
                    rings: KVec::new(),
                    owner: None,
                    quiet: 0,
                    closings: 0,
                }),
            }),
            GFP_KERNEL,
        )
    }

    /// Makes the rings known, in the order of their numbers.
    pub(crate) fn connect(&self, rings: KVec<Arc<Ring>>) {
        self.members.lock().rings = rings;
    }

    /// Forgets the rings, which must be drained.
    pub(crate) fn disconnect(&self) {
        let rings = core::mem::take(&mut self.members.lock().rings);
        drop(rings);
    }

    /// Must nothing be taken?
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Closes the gate for a barrier of the ring `number`, unless another ring has. Returns whether all other
    /// rings are quiet, so that the barrier can be done as soon as this one is. May sleep.
    pub(crate) fn close(&self, number: usize) -> bool {
        let mut members = self.members.lock();
        match members.owner {
            None => {
                members.owner = Some(number);
                members.quiet = 0;
                members.closings = members.closings.wrapping_add(1);
                self.closed.store(true, Relaxed);
                for ring in &members.rings {
                    if ring.number() != number {
                        ring.schedule();
                    }
                }
            }
            Some(owner) if owner != number => return false,
            Some(_) => {}
        }
        members.quiet >= members.rings.len().saturating_sub(1)
    }

    /// The ring `number` has nothing left to answer but a barrier of its own. May sleep.
    pub(crate) fn quiet(&self, number: usize, seen: &mut Seen) {
        let mut members = self.members.lock();
        let Some(owner) = members.owner else {
            return;
        };
        if owner == number || seen.0 == members.closings {
            return;
        }
        seen.0 = members.closings;
        members.quiet = members.quiet.wrapping_add(1);
        if members.quiet >= members.rings.len().saturating_sub(1) {
            if let Some(ring) = members.rings.get(owner) {
                ring.schedule();
            }
        }
    }

    /// The barrier of the ring that has closed the gate is through. May sleep.
    pub(crate) fn open(&self) {
        let mut members = self.members.lock();
        members.owner = None;
        self.closed.store(false, Relaxed);
        for ring in &members.rings {
            ring.schedule();
        }
    }
}
