// SPDX-License-Identifier: GPL-2.0

//! What is set up with a frontend that has published its side: the rings and their event channels.
//!
//! Everything read here was written by the guest.

#![forbid(unsafe_code)]

mod refusal;

use core::ops::RangeInclusive;

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
        xenstore::{
            self,
            Value, //
        }, //
    }, //
};

use crate::{
    medium::Medium,
    ring::{
        gate::Gate,
        Common,
        Ring, //
    },
    stats::Stats, //
};
pub(crate) use refusal::Refusal;
use refusal::{
    Node,
    Place,
    What, //
};

/// Requests of a disk that wait for the storage at a time, each in a kernel thread: as many as four rings of
/// one page hold, so that the writes to a file system that is frozen leave room for reads.
const BLOCKING_AT_ONCE: u32 = 128;

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
    pub(crate) fn new<'a>(
        medium: &Arc<Medium>,
        disk: Disk,
        offer: Offer,
        stats: &Arc<Stats>,
        speaker: &Arc<Speaker>,
        dev: &Device,
        frontend: &'a CStr,
    ) -> Result<Self, Refusal<'a>> {
        let place = Place {
            frontend,
            queue: None,
        };
        let nodes = Nodes::new(place)?;
        let abi = nodes.abi()?;
        let queues = nodes.within(c"multi-queue-num-queues", 1..=offer.queues)?;
        let ring_order = nodes.within(c"ring-page-order", 0..=offer.ring_order)?;
        let persistent = offer.persistent && nodes.is_set(c"feature-persistent");
        let count = queues.unwrap_or(1);
        let no_memory = |_| place.refusal(ENOMEM, What::Rings(count));
        // From here on, what has been set up is taken down again if the rest fails.
        let mut connection = Self {
            channels: KVec::with_capacity(count as usize, GFP_KERNEL).map_err(no_memory)?,
            rings: KVec::with_capacity(count as usize, GFP_KERNEL).map_err(no_memory)?,
            gate: Gate::new().map_err(|err| place.refusal(err, What::Gate))?,
            blocking: OwnedQueue::new(c"xen-blkback-io", BLOCKING_AT_ONCE)
                .and_then(|queue| Ok(Arc::new(queue, GFP_KERNEL)?))
                .map_err(|err| place.refusal(err, What::Workqueue))?,
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
            let own;
            let nodes = if count == 1 {
                &nodes
            } else {
                let queue = Some(queue);
                own = Nodes::new(Place { queue, ..place })?;
                &own
            };
            let (ring, bound) = new_ring(&common, abi, nodes, ring_order)?;
            add(&mut connection.rings, ring);
            add(&mut connection.channels, bound?);
        }
        let rings = connection
            .all_rings()
            .map_err(|err| place.refusal(err, What::Gate))?;
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
type NewRing<'a> = (Arc<Ring>, Result<EventChannel<Ring>, Refusal<'a>>);

/// Sets up the ring with these nodes. It has to be stopped, also if it has got no thread, or its event
/// channel could not be bound.
fn new_ring<'a>(
    common: &Common<'_>,
    abi: Abi,
    nodes: &Nodes<'a>,
    ring_order: Option<u32>,
) -> Result<NewRing<'a>, Refusal<'a>> {
    let place = nodes.place;
    let memory = map_ring(common.dev, nodes, ring_order)?;
    let port = nodes.number(Node::Name(c"event-channel"))?;
    let back = BackRing::attach(&memory, abi, memory.bytes())
        .map_err(|err| place.refusal(EIO, What::Bogus(err)))?;
    let number = place.queue.unwrap_or(0) as usize;
    let ring =
        Ring::new(common, number, memory, back).map_err(|err| place.refusal(err, What::Ring))?;
    let bound = bind(common.dev, &ring, abi, place, port);
    Ok((ring, bound))
}

/// Makes a ring's thread and binds its event channel.
fn bind<'a>(
    dev: &Device,
    ring: &Arc<Ring>,
    abi: Abi,
    place: Place<'a>,
    port: u32,
) -> Result<EventChannel<Ring>, Refusal<'a>> {
    prepare(dev, ring).map_err(|err| place.refusal(err, What::Thread))?;
    let channel = EventChannel::bind(dev, port, ring.clone())
        .map_err(|err| place.refusal(err, What::Bind(port)))?;
    // A driver before us that had requests in flight has answered them, and cannot answer any more.
    ring.attach(abi)
        .map_err(|err| place.refusal(EIO, What::Bogus(err)))?;
    Ok(channel)
}

/// Makes the ring's thread, whose name in ps(1) says whose it is: `3-51712.0`.
fn prepare(dev: &Device, ring: &Arc<Ring>) -> Result {
    let device = dev.name().to_bytes_with_nul();
    let device = device.strip_prefix(b"vbd-").unwrap_or(device);
    let name = CString::try_from_fmt(fmt!(
        "{}.{}",
        CStr::from_bytes_with_nul(device).unwrap_or(c"vbd"),
        ring.number()
    ))?;
    ring.prepare(&name)
}

/// The nodes of a ring, or those of the whole disk.
struct Nodes<'a> {
    place: Place<'a>,
    directory: CString,
}

impl<'a> Nodes<'a> {
    fn new(place: Place<'a>) -> Result<Self, Refusal<'a>> {
        Ok(Self {
            place,
            directory: CString::try_from_fmt(fmt!("{}", place))
                .map_err(|err| place.refusal(err, What::Directory))?,
        })
    }

    /// Reads one that may be missing.
    fn read(&self, node: Node) -> Result<Option<Value>, Refusal<'a>> {
        let read = |name: &CStr| xenstore::read_optional(&self.directory, name);
        match node {
            Node::Name(name) => read(name),
            Node::Grant(index) => {
                CString::try_from_fmt(fmt!("ring-ref{}", index)).and_then(|name| read(&name))
            }
        }
        .map_err(|err| self.place.refusal(err, What::Read(node)))
    }

    /// Reads a number, which may be missing.
    fn number_if_any(&self, node: Node) -> Result<Option<u32>, Refusal<'a>> {
        self.read(node)?
            .map(|value| value.number())
            .transpose()
            .map_err(|err| self.place.refusal(err, What::Read(node)))
    }

    /// Reads a number that has to be there.
    fn number(&self, node: Node) -> Result<u32, Refusal<'a>> {
        self.number_if_any(node)?
            .ok_or_else(|| self.place.refusal(ENOENT, What::Read(node)))
    }

    /// Reads a feature, which a frontend that does not have it need not name.
    fn is_set(&self, name: &'static CStr) -> bool {
        self.number(Node::Name(name)).is_ok_and(|value| value != 0)
    }

    /// Reads a number that has to be in the range that was offered. `None` if there is none.
    fn within(
        &self,
        name: &'static CStr,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>, Refusal<'a>> {
        match self.number_if_any(Node::Name(name))? {
            Some(value) if !range.contains(&value) => {
                Err(self.place.refusal(EINVAL, What::Range(name, value, range)))
            }
            value => Ok(value),
        }
    }

    /// The layout that the frontend says its requests have.
    fn abi(&self) -> Result<Abi, Refusal<'a>> {
        let node = self.read(Node::Name(c"protocol"))?;
        Abi::from_node(node.as_ref().map(Value::as_bytes))
            .map_err(|_| self.place.refusal(EINVAL, What::Protocol))
    }
}

/// Maps the ring whose grants are named in the nodes. A ring of one page may be in either node:
/// without an order in that for one page, which a frontend before this one may have left besides the
/// other, and the reverse.
fn map_ring<'a>(
    dev: &Device,
    nodes: &Nodes<'a>,
    order: Option<u32>,
) -> Result<RingMemory, Refusal<'a>> {
    let place = nodes.place;
    let mut grefs = [0; MAX_RING_PAGES];
    let pages = 1usize.wrapping_shl(order.unwrap_or(0));
    let Some(grefs) = grefs.get_mut(..pages) else {
        return Err(place.refusal(EINVAL, What::Pages(pages)));
    };
    let (only, first) = (Node::Name(c"ring-ref"), Node::Grant(0));
    match (order, &mut *grefs) {
        (None, [gref]) => *gref = nodes.number(only).or_else(|_| nodes.number(first))?,
        (Some(_), [gref]) => *gref = nodes.number(first).or_else(|_| nodes.number(only))?,
        (_, grefs) => {
            let mut index = 0u32;
            for gref in grefs {
                *gref = nodes.number(Node::Grant(index))?;
                index = index.wrapping_add(1);
            }
        }
    }
    RingMemory::map(dev, grefs).map_err(|err| place.refusal(err, What::Map))
}
