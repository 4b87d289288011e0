// SPDX-License-Identifier: GPL-2.0

//! What is set up with a frontend that has published its side: the ring and its event channel.
//!
//! Everything read here was written by the guest.

#![forbid(unsafe_code)]

use blkif::{
    Abi,
    BackRing,
    Disk, //
};
use kernel::{
    fmt,
    prelude::*,
    str::CString,
    sync::Arc, //
};
use xen_bindings::{
    evtchn::EventChannel,
    ring::RingMemory,
    xenbus::Device,
    xenstore, //
};

use crate::{
    driver::Context,
    medium::Medium,
    ring::Ring, //
};

/// Why there is no connection: what goes to the log and to the error node.
pub(crate) struct Refusal {
    pub(crate) error: Error,
    pub(crate) what: CString,
}

/// A connected frontend. Dropping it waits for all requests in flight, and unmaps the ring.
pub(crate) struct Connection {
    /// None once it is being taken down.
    channel: Option<EventChannel<Ring>>,
    ring: Arc<Ring>,
    abi: Abi,
}

impl Connection {
    /// Maps the ring that the frontend offers in the directory `frontend`, and binds its event
    /// channel. Requests are served from [`Connection::start`] on. May sleep.
    pub(crate) fn new(
        context: &Arc<Context>,
        medium: &Arc<Medium>,
        disk: Disk,
        dev: &Device,
        frontend: &CStr,
    ) -> core::result::Result<Self, Refusal> {
        let abi = abi(frontend)?;
        refuse_unoffered(frontend)?;
        let mut gref = [number(frontend, c"ring-ref")?];
        let port = number(frontend, c"event-channel")?;

        let memory = RingMemory::map(dev, &mut gref)
            .map_err(|err| refusal(err, fmt!("mapping ring-ref {:?}", gref)))?;
        let back = BackRing::attach(&memory, abi, memory.bytes())
            .map_err(|err| refusal(EIO, fmt!("frontend's ring: {}", format_args!("{err}"))))?;
        let ring = CString::try_from(dev.nodename())
            .map_err(Error::from)
            .and_then(|name| {
                Ring::new(
                    context.clone(),
                    medium.clone(),
                    name,
                    disk,
                    dev.otherend_id(),
                    memory,
                    back,
                )
            })
            .map_err(|err| refusal(err, fmt!("allocating a ring")))?;
        let mut connection = Self {
            channel: None,
            ring,
            abi,
        };
        connection.channel = Some(
            EventChannel::bind(dev, port, connection.ring.clone())
                .map_err(|err| refusal(err, fmt!("binding event-channel {}", port)))?,
        );
        Ok(connection)
    }

    /// Begins to serve requests. May sleep.
    pub(crate) fn start(&self) {
        if let Some(channel) = &self.channel {
            self.ring.start(channel.irq());
        }
    }

    pub(crate) fn abi(&self) -> Abi {
        self.abi
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.channel = None;
        self.ring.shut_down();
    }
}

fn refusal(error: Error, what: fmt::Arguments<'_>) -> Refusal {
    match CString::try_from_fmt(what) {
        Ok(what) => Refusal { error, what },
        Err(_) => refusal(error, fmt!("")),
    }
}

/// The layout that the frontend says its requests have.
fn abi(frontend: &CStr) -> core::result::Result<Abi, Refusal> {
    let node = xenstore::read_optional(frontend, c"protocol")
        .map_err(|err| refusal(err, fmt!("reading {}/protocol", frontend)))?;
    Abi::from_node(node.as_ref().map(|value| value.as_bytes())).map_err(|_| {
        refusal(
            EINVAL,
            fmt!("{}/protocol names a protocol that is not known", frontend),
        )
    })
}

/// Reads a number that has to be there.
fn number(frontend: &CStr, node: &CStr) -> core::result::Result<u32, Refusal> {
    xenstore::read(frontend, node)
        .and_then(|value| value.number())
        .map_err(|err| refusal(err, fmt!("reading {}/{}", frontend, node)))
}

/// Several queues and rings of several pages have not been offered.
fn refuse_unoffered(frontend: &CStr) -> core::result::Result<(), Refusal> {
    for (node, only) in [(c"multi-queue-num-queues", 1), (c"ring-page-order", 0)] {
        let value = xenstore::read_optional(frontend, node)
            .and_then(|value| value.map(|value| value.number()).transpose())
            .map_err(|err| refusal(err, fmt!("reading {}/{}", frontend, node)))?;
        if let Some(value) = value {
            if value != only {
                return Err(refusal(
                    EINVAL,
                    fmt!("{}/{} is {}, not {}", frontend, node, value, only),
                ));
            }
        }
    }
    Ok(())
}
