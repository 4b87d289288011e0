// SPDX-License-Identifier: GPL-2.0

//! The ring's part of a request in flight, and what becomes of it at each station.

#![forbid(unsafe_code)]

use blkif::{
    Indirect,
    Parsed,
    Request,
    Response,
    Status,
    Transfer, //
};
use kernel::{
    prelude::*,
    sync::{
        rcu,
        Arc,
        UniqueArc, //
    },
};
use xen_bindings::{
    module::trace,
    request::{
        Direction,
        Done,
        Joined,
        Owner,
        Retry, //
    },
    storage::{
        bdev::{
            BlockDevice,
            OnDevice, //
        },
        file::{
            File,
            OnFile, //
        },
        is_not_supported, //
    }, //
};

use super::Ring;
use crate::task::{
    Action,
    HasTask,
    Task, //
};

/// Where the segments of a request's data are.
pub(crate) enum Pieces<'a> {
    /// There are none.
    None,
    /// In the slot of the ring.
    Slot(&'a Transfer<'a>),
    /// In a page of the guest.
    Indirect(&'a Indirect<'a>),
}

impl Pieces<'_> {
    pub(crate) fn count(&self) -> usize {
        match self {
            Pieces::None => 0,
            Pieces::Slot(transfer) => transfer.count(),
            Pieces::Indirect(indirect) => usize::from(indirect.count()),
        }
    }
}

/// A request that waits for its answer.
pub(crate) struct Pending {
    /// Until the I/O is done. It is not looked for again then, so that a request costs one reference.
    ring: Option<Arc<Ring>>,
    id: u64,
    operation: u8,
    task: Task,
    /// When it was taken from the ring ([`clock::nanoseconds`]).
    ///
    /// [`clock::nanoseconds`]: xen_bindings::clock::nanoseconds
    pub(crate) taken: u64,
}

impl Pending {
    /// A request of `ring`, `taken` at that time, and its segments.
    pub(crate) fn new<'a>(
        ring: Arc<Ring>,
        parsed: &'a Parsed<'a>,
        taken: u64,
    ) -> (Self, Pieces<'a>) {
        let slot = |action, transfer: Option<&'a Transfer<'a>>| match transfer {
            Some(transfer) => (action, transfer.sector(), Pieces::Slot(transfer)),
            None => (action, 0, Pieces::None),
        };
        let (action, sector, pieces) = match &parsed.command {
            Request::Read(transfer) => slot(Action::Read, Some(transfer)),
            Request::Write(transfer) => slot(Action::Write, Some(transfer)),
            Request::Flush(transfer) => slot(Action::Flush, transfer.as_ref()),
            Request::Barrier(transfer) => slot(Action::Barrier, transfer.as_ref()),
            Request::Discard(discard) => {
                (Action::Discard(*discard), discard.sector(), Pieces::None)
            }
            Request::Indirect(indirect) => (
                match indirect.direction() {
                    Direction::Read => Action::Read,
                    Direction::Write => Action::Write,
                },
                indirect.sector(),
                Pieces::Indirect(indirect),
            ),
        };
        (
            Self {
                ring: Some(ring),
                id: parsed.id,
                operation: parsed.operation,
                task: Task::new(action, sector),
                taken,
            },
            pieces,
        )
    }

    /// Tells whoever traces that the request, of `bytes` bytes, has been taken.
    #[inline(always)]
    pub(crate) fn trace_start(&self, ring: &Ring, bytes: u32) {
        trace::request_start(
            ring.name(),
            ring.number(),
            self.id,
            self.operation,
            self.task.sector,
            bytes,
        );
    }

    /// Tells whoever traces that the request has been answered, and how long that took.
    #[inline(always)]
    pub(crate) fn trace_end(&self, ring: &Ring, result: Result, nanoseconds: u64) {
        let error = result.err().map_or(0, Error::to_errno);
        trace::request_end(ring.name(), ring.number(), self.id, error, nanoseconds);
    }

    /// Which way the data of a request go.
    pub(crate) fn direction(&self) -> Direction {
        match self.task.action {
            Action::Read => Direction::Read,
            Action::Write | Action::Flush | Action::Barrier | Action::Discard(_) => {
                Direction::Write
            }
        }
    }

    /// The answer. An error that a guest could cause again and again is logged within limits.
    pub(crate) fn response(&self, ring: &Ring, result: Result) -> Response {
        let status = match result {
            Ok(()) => Status::Okay,
            Err(err) => {
                ring.speaker.warn_limited(fmt!(
                    "{:?} at sector {} failed: {:?}",
                    self.task.action,
                    self.task.sector,
                    err
                ));
                // A frontend that is told so stops using the operation.
                if is_not_supported(err)
                    && !matches!(self.task.action, Action::Read | Action::Write)
                {
                    Status::NotSupported
                } else {
                    Status::Error
                }
            }
        };
        Response {
            id: self.id,
            operation: self.operation,
            status,
        }
    }
}

#[cold]
#[inline(never)]
fn drop_ring(ring: Pin<UniqueArc<Ring>>) {
    drop(ring);
}

impl HasTask for Pending {
    fn task(&self) -> &Task {
        &self.task
    }

    fn task_mut(&mut self) -> &mut Task {
        &mut self.task
    }
}

impl OnDevice for Pending {
    fn device(&self) -> Option<&BlockDevice> {
        self.ring.as_ref()?.medium.device()
    }
}

impl OnFile for Pending {
    fn file(&self) -> Option<&File> {
        self.ring.as_ref()?.medium.file()
    }
}

impl Owner for Pending {
    fn complete(mut done: Done<Self>) {
        // From the moment the ring has it, somebody may be waiting for us to let go of the ring, with
        // `wait_for_interrupts`: we may be preempted, but not unnoticed.
        let _guard = rcu::read_lock();
        // The request may be answered and gone as soon as it is in the list.
        if let Some(ring) = done.data_mut().ring.take() {
            ring.medium.ended(&mut done.data_mut().task);
            ring.completed(done);
            // What it takes to drop a ring, which never happens here, stays out of each completion.
            if let Some(ring) = Arc::into_unique_or_drop(ring) {
                drop_ring(ring);
            }
        }
    }

    fn retry(io: Joined<Self>, why: Retry) {
        // As above.
        let _guard = rcu::read_lock();
        if let Some(ring) = io.data().ring.clone() {
            ring.medium.retry(io, why, &ring.blocking);
        }
    }

    fn run(io: Joined<Self>) {
        if let Some(ring) = io.data().ring.clone() {
            ring.medium.run(io);
        }
    }
}
