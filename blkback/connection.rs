// SPDX-License-Identifier: GPL-2.0

//! What is set up with a frontend that has published its side: the rings and their event channels.
//!
//! Everything read here was written by the guest.

#![forbid(unsafe_code)]

use core::ops::RangeInclusive;

use blkif::{
    Abi,
    BackRing,
    Disk,
    RingError, //
};
use kernel::{
    fmt,
    prelude::*,
    str::CString,
    sync::Arc, //
};
use xen_bindings::{
    module::log::Speaker,
    thread::wait_for_interrupts,
    work::OwnedQueue,
    xen::{
        device::Device,
        evtchn::EventChannel,
        ring::{
            RingMemory,
            MAX_RING_PAGES, //
        },
        xenstore, //
    }, //
};

use crate::{
    medium::Medium,
    message::Message,
    ring::{
        gate::Gate,
        Common,
        Ring, //
    },
    stats::Stats, //
};

/// Requests of a disk that wait for the storage at a time, each in a kernel thread: as many as four rings of
/// one page hold, so that the writes to a file system that is frozen leave room for reads.
const BLOCKING_AT_ONCE: u32 = 128;

/// Why there is no connection: what goes to the log and to the error node.
pub(crate) struct Refusal {
    pub(crate) error: Error,
    pub(crate) what: Message,
    pub(crate) cause: Cause,
}

/// Whose fault it is that there is no connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    /// What the frontend has set up cannot be used, or memory is short.
    Setup,
    /// An event channel could not be bound. Somebody else may have it still.
    EventChannel,
}

/// What a frontend has been offered before it publishes its side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Offer {
    /// Most queues (node `multi-queue-max-queues`).
    pub(crate) queues: u32,
    /// Largest order of the number of pages of a ring (node `max-ring-page-order`).
    pub(crate) ring_order: u32,
    /// Grants may stay mapped (node `feature-persistent`).
    pub(crate) persistent: bool,
}

/// A connected frontend. Dropping it waits for all requests in flight, and unmaps the rings.
pub(crate) struct Connection {
    /// Until the rings are started, which have them from then on.
    channels: KVec<EventChannel<Ring>>,
    rings: KVec<Arc<Ring>>,
    gate: Arc<Gate>,
    /// Flushes, discards, buffered I/O, allocation of blocks: what waits for the storage. A queue for each
    /// disk, so that a guest with many of these on storage that hangs holds up nobody else.
    blocking: Arc<OwnedQueue>,
    abi: Abi,
    ring_order: u32,
    persistent: bool,
}

/// What a connection consists of, for an administrator. To be dropped before the connection is.
pub(crate) struct Overview {
    rings: KVec<Arc<Ring>>,
    abi: Abi,
    persistent: bool,
}

impl Overview {
    /// What it consists of and is doing. Waits for nothing.
    pub(crate) fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "protocol: {}, persistent grants: {}",
            self.abi.name(),
            if self.persistent { "yes" } else { "no" },
        )?;
        self.rings.iter().try_for_each(|ring| ring.write(f))
    }

    /// Memory is short: gives back what is not in use. Does not sleep.
    pub(crate) fn reclaim(&self) {
        for ring in &self.rings {
            ring.reclaim();
        }
    }
}

impl Connection {
    /// Maps the rings that the frontend offers in the directory `frontend`, and binds their event
    /// channels. Requests are served from [`Connection::start`] on. May sleep.
    pub(crate) fn new(
        medium: &Arc<Medium>,
        disk: Disk,
        offer: Offer,
        stats: &Arc<Stats>,
        speaker: &Arc<Speaker>,
        dev: &Device,
        frontend: &CStr,
    ) -> Result<Self, Refusal> {
        let abi = abi(frontend)?;
        let queues = within(frontend, c"multi-queue-num-queues", 1..=offer.queues)?;
        let ring_order = within(frontend, c"ring-page-order", 0..=offer.ring_order)?;
        let persistent = offer.persistent && is_set(frontend, c"feature-persistent");
        let no_memory = |_| refusal(ENOMEM, fmt!("allocating {} rings", queues.unwrap_or(1)));

        let count = queues.unwrap_or(1);
        // From here on, what has been set up is taken down again if the rest fails.
        let mut connection = Self {
            channels: KVec::with_capacity(count as usize, GFP_KERNEL).map_err(no_memory)?,
            rings: KVec::with_capacity(count as usize, GFP_KERNEL).map_err(no_memory)?,
            gate: Gate::new().map_err(|err| refusal(err, fmt!("allocating the rings' gate")))?,
            blocking: OwnedQueue::new(c"xen-blkback-io", BLOCKING_AT_ONCE)
                .and_then(|queue| Ok(Arc::new(queue, GFP_KERNEL)?))
                .map_err(|err| refusal(err, fmt!("allocating a workqueue")))?,
            abi,
            ring_order: ring_order.unwrap_or(0),
            persistent,
        };
        let common = Common {
            dev,
            speaker,
            disk,
            medium,
            stats,
            gate: &connection.gate,
            blocking: &connection.blocking,
            persistent,
        };
        for queue in 0..count {
            let queue = (count > 1).then_some(queue);
            let (ring, bound) = new_ring(&common, abi, frontend, queue, ring_order)?;
            add(&mut connection.rings, ring);
            add(&mut connection.channels, bound?);
        }
        let rings = connection
            .all_rings()
            .map_err(|err| refusal(err, fmt!("allocating the rings' gate")))?;
        connection.gate.connect(rings);
        Ok(connection)
    }

    /// Begins to serve requests. May sleep.
    pub(crate) fn start(&mut self) {
        let channels = core::mem::take(&mut self.channels);
        for (channel, ring) in channels.into_iter().zip(&self.rings) {
            ring.start(channel);
        }
    }

    pub(crate) fn abi(&self) -> Abi {
        self.abi
    }

    pub(crate) fn queues(&self) -> usize {
        self.rings.len()
    }

    /// Do grants stay mapped?
    pub(crate) fn persistent(&self) -> bool {
        self.persistent
    }

    /// What it consists of. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn overview(&self) -> Result<Overview> {
        Ok(Overview {
            rings: self.all_rings()?,
            abi: self.abi,
            persistent: self.persistent,
        })
    }

    fn all_rings(&self) -> Result<KVec<Arc<Ring>>> {
        let mut rings = KVec::with_capacity(self.rings.len(), GFP_KERNEL)?;
        for ring in &self.rings {
            add(&mut rings, ring.clone());
        }
        Ok(rings)
    }

    /// Takes no more requests, and waits until those in flight have been answered. May sleep, for as long as the
    /// storage takes.
    pub(crate) fn drain(&self) {
        // All at once, so that their last requests are waited for together.
        for ring in &self.rings {
            ring.stop();
        }
        for ring in &self.rings {
            ring.drain();
        }
    }

    /// Number of pages of each ring.
    pub(crate) fn ring_pages(&self) -> u32 {
        1u32.wrapping_shl(self.ring_order)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.drain();
        // Not before: the frontend may go on with the next backend, and has to hear of all answers.
        self.channels.clear();
        for ring in &self.rings {
            ring.unbind();
        }
        for ring in &self.rings {
            ring.shut_down();
        }
        self.gate.disconnect();
        // A work item or a completion, perhaps in an interrupt, may still have a reference to its ring. It must
        // not be the last, as what a ring owns is given back by functions that sleep, and the queue not in an
        // item of its own: ours are dropped after it.
        self.blocking.flush();
        wait_for_interrupts();
    }
}

/// Adds an element, for which there is room. A function of its own: in it the compiler sees that the
/// length does not wrap around, and leaves out the panic for that.
#[inline(never)]
fn add<T>(to: &mut KVec<T>, element: T) {
    let _ = to.push_within_capacity(element);
}

/// A ring, and its event channel if it could be bound.
type NewRing = (Arc<Ring>, Result<EventChannel<Ring>, Refusal>);

fn refusal(error: Error, what: fmt::Arguments<'_>) -> Refusal {
    Refusal {
        error,
        what: Message::new(what),
        cause: Cause::Setup,
    }
}

fn bogus(directory: &CStr, err: RingError) -> Refusal {
    refusal(
        EIO,
        fmt!("ring in {}: {}", directory, format_args!("{err}")),
    )
}

/// Sets up a ring: one of several, whose nodes are in a directory of its own, or the only one. The
/// ring has to be stopped, also if it has got no thread, or its event channel could not be bound.
fn new_ring(
    common: &Common<'_>,
    abi: Abi,
    frontend: &CStr,
    queue: Option<u32>,
    ring_order: Option<u32>,
) -> Result<NewRing, Refusal> {
    let dev = common.dev;
    let own;
    let directory = match queue {
        None => frontend,
        Some(queue) => {
            own = CString::try_from_fmt(fmt!("{}/queue-{}", frontend, queue))
                .map_err(|err| refusal(err, fmt!("naming a queue")))?;
            &own
        }
    };
    let memory = map_ring(dev, directory, ring_order)?;
    let port = number(directory, c"event-channel")?;
    let back =
        BackRing::attach(&memory, abi, memory.bytes()).map_err(|err| bogus(directory, err))?;
    let ring = Ring::new(common, queue.unwrap_or(0) as usize, memory, back)
        .map_err(|err| refusal(err, fmt!("allocating a ring")))?;
    let bound = prepare(dev, &ring).and_then(|()| {
        match EventChannel::bind(dev, port, ring.clone()) {
            // A driver before us that had requests in flight has answered them, and cannot answer any more.
            Ok(channel) => match ring.attach(abi) {
                Ok(()) => Ok(channel),
                Err(err) => Err(bogus(directory, err)),
            },
            Err(err) => Err(Refusal {
                cause: Cause::EventChannel,
                ..refusal(err, fmt!("binding {}/event-channel {}", directory, port))
            }),
        }
    });
    Ok((ring, bound))
}

/// Makes the ring's thread, whose name in ps(1) says whose it is: `3-51712.0`.
fn prepare(dev: &Device, ring: &Arc<Ring>) -> Result<(), Refusal> {
    let device = dev.name().to_bytes_with_nul();
    let device = device.strip_prefix(b"vbd-").unwrap_or(device);
    CString::try_from_fmt(fmt!(
        "{}.{}",
        CStr::from_bytes_with_nul(device).unwrap_or(c"vbd"),
        ring.number()
    ))
    .and_then(|name| ring.prepare(&name))
    .map_err(|err| refusal(err, fmt!("starting a thread")))
}

/// The layout that the frontend says its requests have.
fn abi(frontend: &CStr) -> Result<Abi, Refusal> {
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
fn number(frontend: &CStr, node: &CStr) -> Result<u32, Refusal> {
    xenstore::read(frontend, node)
        .and_then(|value| value.number())
        .map_err(|err| refusal(err, fmt!("reading {}/{}", frontend, node)))
}

/// Reads a feature, which a frontend that does not have it need not name.
fn is_set(frontend: &CStr, node: &CStr) -> bool {
    xenstore::read(frontend, node)
        .and_then(|value| value.number())
        .is_ok_and(|value| value != 0)
}

/// Reads a number that has to be in the range that was offered. `None` if there is none.
fn within(
    frontend: &CStr,
    node: &CStr,
    range: RangeInclusive<u32>,
) -> Result<Option<u32>, Refusal> {
    let value = xenstore::read_optional(frontend, node)
        .and_then(|value| value.map(|value| value.number()).transpose())
        .map_err(|err| refusal(err, fmt!("reading {}/{}", frontend, node)))?;
    match value {
        Some(value) if !range.contains(&value) => Err(refusal(
            EINVAL,
            fmt!(
                "{}/{} is {}, offered was {} to {}",
                frontend,
                node,
                value,
                *range.start(),
                *range.end()
            ),
        )),
        value => Ok(value),
    }
}

/// Maps the ring whose grants are named in `directory`. A ring of one page may be in either node:
/// without an order in that for one page, which a frontend before this one may have left beside the
/// other, and the reverse.
fn map_ring(dev: &Device, directory: &CStr, order: Option<u32>) -> Result<RingMemory, Refusal> {
    let mut grefs = [0; MAX_RING_PAGES];
    let pages = 1usize.wrapping_shl(order.unwrap_or(0));
    let Some(grefs) = grefs.get_mut(..pages) else {
        return Err(refusal(EINVAL, fmt!("a ring of {} pages", pages)));
    };
    match (order, &mut *grefs) {
        (None, [gref]) => {
            *gref = number(directory, c"ring-ref").or_else(|_| number(directory, c"ring-ref0"))?;
        }
        (Some(_), [gref]) => {
            *gref = number(directory, c"ring-ref0").or_else(|_| number(directory, c"ring-ref"))?;
        }
        (_, grefs) => {
            let mut index = 0u32;
            for gref in grefs {
                let node = CString::try_from_fmt(fmt!("ring-ref{}", index))
                    .map_err(|_| refusal(ENOMEM, fmt!("reading {}", directory)))?;
                *gref = number(directory, &node)?;
                index = index.wrapping_add(1);
            }
        }
    }
    RingMemory::map(dev, grefs)
        .map_err(|err| refusal(err, fmt!("mapping the ring in {}", directory)))
}
