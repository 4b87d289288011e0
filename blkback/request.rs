// SPDX-License-Identifier: GPL-2.0

//! The driver's part of a request in flight, and what becomes of it at each station.

#![forbid(unsafe_code)]

use blkif::{
    Parsed,
    Request,
    Response,
    Status,
    Transfer, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};
use xen_bindings::{
    io::{
        is_not_supported,
        Direction,
        Done,
        Mapped,
        Owner,
        Retry, //
    },
    log, //
};

use crate::ring::Ring;

/// What a request wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    Read,
    Write,
    /// Then write the data, if there are any.
    Flush,
}

/// How a file is accessed for a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    Direct,
    Buffered,
}

/// A request that waits for its answer.
pub(crate) struct Pending {
    ring: Arc<Ring>,
    id: u64,
    operation: u8,
    pub(crate) action: Action,
    /// First sector (of 512 bytes) of the data.
    pub(crate) sector: u64,
    pub(crate) way: Way,
}

/// What a request wants, and the data that come along. None for what is not offered.
pub(crate) fn action(request: &Request) -> Option<(Action, Option<&Transfer>)> {
    match request {
        Request::Read(transfer) => Some((Action::Read, Some(transfer))),
        Request::Write(transfer) => Some((Action::Write, Some(transfer))),
        Request::Flush(transfer) => Some((Action::Flush, transfer.as_ref())),
        Request::Barrier(_) | Request::Discard(_) | Request::Indirect(_) => None,
    }
}

impl Pending {
    pub(crate) fn new(
        ring: Arc<Ring>,
        parsed: &Parsed,
        action: Action,
        transfer: Option<&Transfer>,
    ) -> Self {
        Self {
            ring,
            id: parsed.id,
            operation: parsed.operation,
            action,
            sector: transfer.map_or(0, Transfer::sector),
            way: Way::Direct,
        }
    }

    /// Which way the data of a request go.
    pub(crate) fn direction(&self) -> Direction {
        match self.action {
            Action::Read => Direction::Read,
            Action::Write | Action::Flush => Direction::Write,
        }
    }

    /// The answer. An error that a guest could cause again and again is logged within limits.
    pub(crate) fn response(self, result: Result) -> Response {
        let status = match result {
            Ok(()) => Status::Okay,
            Err(err) => {
                if log::permitted() {
                    pr_warn!(
                        "{}: {:?} at sector {} failed: {:?}\n",
                        self.ring.name(),
                        self.action,
                        self.sector,
                        err
                    );
                }
                // A frontend that is told so stops using the operation.
                if is_not_supported(err) && self.action == Action::Flush {
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

impl Owner for Pending {
    fn complete(done: Done<Self>) {
        // The request may be answered and gone as soon as it is in the list.
        let ring = done.data().ring.clone();
        ring.completed(done);
    }

    fn retry(mut io: Mapped<Self>, why: Retry) {
        let ring = io.data().ring.clone();
        if why == Retry::NotDirect {
            io.data_mut().way = Way::Buffered;
            ring.medium().note_buffered(ring.name());
        }
        io.defer(ring.blocking_queue());
    }

    fn run(io: Mapped<Self>) {
        let ring = io.data().ring.clone();
        ring.medium().run(io);
    }
}
