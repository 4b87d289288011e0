// SPDX-License-Identifier: GPL-2.0

//! What a ring is doing, for whoever must not wait for it.

#![forbid(unsafe_code)]

use kernel::{
    fmt,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

use super::{
    Parked,
    Shortage,
    WorkerState, //
};

/// What the worker was doing when it last looked up, for an administrator who must not wait for it.
pub(super) struct View {
    slots: Atomic<u32>,
    pub(super) in_flight: Atomic<u32>,
    persistent: Atomic<u32>,
    /// Requests for which answers are held.
    target: Atomic<u32>,
    /// One of `WAITS_FOR_*`, or 0.
    waits: Atomic<u32>,
    barrier: Atomic<bool>,
    broken: Atomic<bool>,
}

const WAITS_FOR_MEMORY: u32 = 1;
const WAITS_FOR_MAPPINGS: u32 = 2;
const WAITS_FOR_ROOM: u32 = 3;

impl View {
    pub(super) const fn new() -> Self {
        Self {
            slots: Atomic::new(0),
            in_flight: Atomic::new(0),
            persistent: Atomic::new(0),
            target: Atomic::new(0),
            waits: Atomic::new(0),
            barrier: Atomic::new(false),
            broken: Atomic::new(false),
        }
    }

    /// Writes down what there is now.
    pub(super) fn update(&self, state: &WorkerState) {
        self.slots.store(state.back.entries(), Relaxed);
        self.in_flight.store(state.back.outstanding(), Relaxed);
        self.persistent
            .store(state.supplies.grants.persistent() as u32, Relaxed);
        self.target.store(state.moderation.target(), Relaxed);
        let waits = match state.parked.missing() {
            Some(Shortage::Memory) => WAITS_FOR_MEMORY,
            Some(Shortage::Mappings) => WAITS_FOR_MAPPINGS,
            None if !state.no_room.is_empty() => WAITS_FOR_ROOM,
            None => 0,
        };
        self.waits.store(waits, Relaxed);
        let barrier = matches!(state.parked, Parked::Barrier(..));
        self.barrier.store(barrier, Relaxed);
        self.broken.store(state.broken, Relaxed);
    }

    /// A line about the ring `number`.
    pub(super) fn write(
        &self,
        f: &mut fmt::Formatter<'_>,
        number: usize,
        stopping: bool,
    ) -> fmt::Result {
        let note = |set: bool, text| if set { text } else { "" };
        writeln!(
            f,
            "ring {}: {} slots, {} in flight, {} persistent grants mapped, answers held for up to {} \
             requests{}{}{}{}",
            number,
            self.slots.load(Relaxed),
            self.in_flight.load(Relaxed),
            self.persistent.load(Relaxed),
            self.target.load(Relaxed),
            match self.waits.load(Relaxed) {
                WAITS_FOR_MEMORY => ", waits for memory",
                WAITS_FOR_MAPPINGS => ", waits as the guest has too much mapped",
                WAITS_FOR_ROOM => ", waits as Xen has no room for mappings",
                _ => "",
            },
            note(self.barrier.load(Relaxed), ", waits for a barrier"),
            note(
                self.broken.load(Relaxed),
                ", halted: the frontend has broken it"
            ),
            note(stopping, ", ends when these are done"),
        )
    }
}
