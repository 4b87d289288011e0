// SPDX-License-Identifier: GPL-2.0

//! A disk: what the backend offers, and the way through the xenbus states to a connection and back.

use std::time::{Duration, Instant};

use blkif::abi::Abi;
pub use blkif::node::State;
use serde_json::{json, Value};

use crate::error::{fail, Error, Result};
use crate::ring::Ring;
use crate::xenstore::Store;

/// How to connect.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Number of the virtual device.
    pub device: u32,
    /// Layout of the rings.
    pub abi: Abi,
    /// Whether to leave out the node that names the layout.
    pub anonymous_abi: bool,
    /// Logarithm of the number of pages of each ring.
    pub ring_order: u32,
    /// Number of rings.
    pub queues: u32,
    /// Whether to promise that pages stay granted.
    pub persistent: bool,
    /// Where the ring's indices start.
    pub first_index: u32,
    /// How long the backend may take for a step.
    pub timeout: Duration,
}

/// What the backend says about the disk.
#[derive(Clone, Debug, Default)]
pub struct Properties {
    /// Size in units of 512 bytes.
    pub sectors: u64,
    /// Logical block size in bytes.
    pub sector_size: u32,
    /// The disk must not be written.
    pub readonly: bool,
    /// `feature-flush-cache`
    pub flush: bool,
    /// `feature-barrier`
    pub barrier: bool,
    /// `feature-discard`
    pub discard: bool,
    /// `discard-granularity` in bytes, 0 if not given.
    pub discard_granularity: u32,
    /// `feature-max-indirect-segments`, 0 without.
    pub indirect: u32,
    /// `feature-persistent`
    pub persistent: bool,
    /// `multi-queue-max-queues`, 1 without.
    pub max_queues: u32,
    /// `max-ring-page-order`, 0 without.
    pub max_ring_order: u32,
}

impl Properties {
    /// For the reports.
    pub fn json(&self) -> Value {
        json!({
            "sectors": self.sectors,
            "sector_size": self.sector_size,
            "readonly": self.readonly,
            "flush": self.flush,
            "barrier": self.barrier,
            "discard": self.discard,
            "discard_granularity": self.discard_granularity,
            "indirect": self.indirect,
            "persistent": self.persistent,
            "max_queues": self.max_queues,
            "max_ring_order": self.max_ring_order,
        })
    }
}

/// `VDISK_READONLY` of the node `info`.
const INFO_READONLY: u32 = 4;

/// A connected disk.
pub struct Device {
    store: Store,
    front: String,
    back: String,
    config: Config,
    /// What the backend offers.
    pub properties: Properties,
    /// The backend's domain.
    pub backend_id: u16,
    /// Its rings.
    pub rings: Vec<Ring>,
}

impl Device {
    /// Connects to a disk, whatever state a former run has left it in.
    pub fn connect(config: Config) -> Result<Device> {
        let mut device = Device::offer(config)?;
        device.establish()?;
        Ok(device)
    }

    /// Prepares rings and writes the nodes that say where they are, but does not tell the backend yet.
    pub fn offer(config: Config) -> Result<Device> {
        let mut device = Device::find(config)?;
        device.reset()?;
        device.offer_rings()?;
        Ok(device)
    }

    /// Finds a disk, and leaves it in the state that it is in.
    pub fn find(config: Config) -> Result<Device> {
        let mut store = Store::open()?;
        let front = format!("device/vbd/{}", config.device);
        let Some(back) = store.read(&format!("{front}/backend"))? else {
            let disks = store.list("device/vbd")?.join(" ");
            fail!("xenstore: there is no {front}/backend: choose another --device; the guest has: {disks}");
        };
        let backend_id = store
            .number(&format!("{front}/backend-id"))?
            .ok_or_else(|| format!("xenstore: there is no {front}/backend-id"))?;
        Ok(Device {
            store,
            front,
            back,
            config,
            properties: Properties::default(),
            backend_id,
            rings: Vec::new(),
        })
    }

    /// Closes the connection: the backend has let go of every page when this returns without an error.
    pub fn disconnect(mut self) -> Result<()> {
        let abandoned: u32 = self.rings.iter().map(Ring::in_flight).sum();
        self.close()?;
        if abandoned > 0 {
            fail!("disconnected with {abandoned} requests in flight");
        }
        Ok(())
    }

    /// Publishes the state of this end.
    pub fn set(&mut self, state: State) -> Result<()> {
        self.store.write(
            &format!("{}/state", self.front),
            &(state as u32).to_string(),
        )
    }

    /// The backend's state, `None` if there is none that makes sense.
    pub fn backend_state(&mut self) -> Result<Option<State>> {
        let number = self.store.number::<u32>(&format!("{}/state", self.back))?;
        let state = number.map(State::from_number);
        Ok(state.filter(|state| !matches!(state, State::Unknown | State::Invalid)))
    }

    /// Waits for one of the states `wanted`; fails at once in a state of `wrong`.
    fn await_backend(&mut self, wanted: &[State], wrong: &[State], why: &str) -> Result<()> {
        let deadline = Instant::now() + self.config.timeout;
        loop {
            let state = self.backend_state()?;
            let name = state.map_or("missing or unknown".to_owned(), |state| {
                format!("{} ({state:?})", state as u32)
            });
            match state {
                Some(state) if wanted.contains(&state) => return Ok(()),
                Some(state) if wrong.contains(&state) => fail!(
                    "{}/state went to {name} instead of {wanted:?} {why}: the backend refused; its reason is in dom0's \
                     kernel log and in the node error/{}/error of its domain",
                    self.back,
                    self.back.trim_start_matches(&format!("/local/domain/{}/", self.backend_id))
                ),
                None if self.store.read(&format!("{}/online", self.back))?.is_none() => {
                    fail!("{} is gone {why}: the disk was detached", self.back)
                }
                _ => {}
            }
            if Instant::now() > deadline {
                let online = self
                    .store
                    .read(&format!("{}/online", self.back))?
                    .unwrap_or_default();
                fail!(
                    "{}/state is {name}, expected {wanted:?} within {} s {why}: the backend does not answer; is its driver \
                     loaded in dom0, and is the disk being detached (online is {online:?})? --timeout gives it longer",
                    self.back,
                    self.config.timeout.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Writes one of this end's nodes.
    pub fn write(&mut self, node: &str, value: &str) -> Result<()> {
        self.store.write(&format!("{}/{node}", self.front), value)
    }

    /// Removes one of this end's nodes, and all below it.
    pub fn remove(&mut self, node: &str) -> Result<()> {
        self.store.remove(&format!("{}/{node}", self.front))
    }

    /// Brings both ends to the beginning.
    pub fn reset(&mut self) -> Result<()> {
        let own = self
            .store
            .number::<u32>(&format!("{}/state", self.front))?
            .map(State::from_number);
        let fresh = own == Some(State::Initialising)
            && matches!(
                self.backend_state()?,
                Some(State::Initialising | State::InitWait)
            );
        if !fresh {
            self.close()?;
            self.set(State::Initialising)?;
        }
        self.await_offer()
    }

    /// Waits until the backend has said what it offers.
    pub fn await_offer(&mut self) -> Result<()> {
        self.await_backend(&[State::InitWait], &[], "after the frontend's Initialising")
    }

    /// Leaves all as it is: the pages stay granted until the program ends.
    pub fn abandon(self) {
        std::mem::forget(self);
    }

    /// Through Closing and Closed; ends with rings and their pages given up.
    pub fn close(&mut self) -> Result<()> {
        if self.backend_state()? != Some(State::Closed) {
            self.set(State::Closing)?;
            self.await_backend(
                &[State::Closing, State::Closed],
                &[],
                "after the frontend's Closing",
            )?;
        }
        self.set(State::Closed)?;
        self.await_closed()?;
        self.rings.clear();
        Ok(())
    }

    /// Waits until the backend has let go.
    pub fn await_closed(&mut self) -> Result<()> {
        self.await_backend(&[State::Closed], &[], "after the frontend's Closed")
    }

    fn backend_number<T: std::str::FromStr>(&mut self, name: &str) -> Result<Option<T>> {
        let path = format!("{}/{name}", self.back);
        self.store.number(&path)
    }

    fn backend_flag(&mut self, name: &str) -> Result<bool> {
        Ok(self.backend_number::<u32>(name)?.unwrap_or(0) != 0)
    }

    /// Prepares what the backend will need, in InitWait.
    fn offer_rings(&mut self) -> Result<()> {
        let Config {
            abi,
            ring_order,
            queues,
            first_index,
            ..
        } = self.config;
        let max_queues = self.backend_number("multi-queue-max-queues")?.unwrap_or(1);
        let max_ring_order = self.backend_number("max-ring-page-order")?.unwrap_or(0);
        self.properties.max_queues = max_queues;
        self.properties.max_ring_order = max_ring_order;
        self.offered("multi-queue-max-queues", max_queues, queues, "--queues")?;
        self.offered(
            "max-ring-page-order",
            max_ring_order,
            ring_order,
            "--ring-order",
        )?;
        for _ in 0..queues {
            self.rings
                .push(Ring::new(self.backend_id, abi, ring_order, first_index)?);
        }
        self.write_nodes()
    }

    /// From InitWait, with what has been offered, to Connected.
    pub fn establish(&mut self) -> Result<()> {
        self.set(State::Initialised)?;
        let wrong = [State::Closing, State::Closed];
        self.await_backend(
            &[State::Connected],
            &wrong,
            "after the frontend's Initialised",
        )?;
        let info: u32 = self.backend_number("info")?.unwrap_or(0);
        let mode = self
            .store
            .read(&format!("{}/mode", self.back))?
            .unwrap_or_default();
        self.properties = Properties {
            sectors: self.backend_number("sectors")?.ok_or_else(|| {
                format!(
                    "{}/sectors is missing although the backend is Connected",
                    self.back
                )
            })?,
            sector_size: self.backend_number("sector-size")?.unwrap_or(512),
            readonly: info & INFO_READONLY != 0 || !mode.contains('w'),
            flush: self.backend_flag("feature-flush-cache")?,
            barrier: self.backend_flag("feature-barrier")?,
            discard: self.backend_flag("feature-discard")?,
            discard_granularity: self.backend_number("discard-granularity")?.unwrap_or(0),
            indirect: self
                .backend_number("feature-max-indirect-segments")?
                .unwrap_or(0),
            persistent: self.backend_flag("feature-persistent")?,
            ..self.properties
        };
        self.set(State::Connected)
    }

    fn offered(&self, node: &str, offer: u32, wanted: u32, option: &str) -> Result<()> {
        if wanted > offer {
            return Err(Error::NotOffered(format!(
                "{}/{node} offers {offer}, {option} asks for {wanted}",
                self.back
            )));
        }
        Ok(())
    }

    /// Where the rings are. Nodes of a former run go first: some of them change what the others mean.
    pub fn write_nodes(&mut self) -> Result<()> {
        for name in self.store.list(&self.front)? {
            let ours = [
                "ring-ref",
                "ring-page-order",
                "event-channel",
                "queue-",
                "multi-queue-",
                "feature-",
                "protocol",
            ];
            if ours.iter().any(|prefix| name.starts_with(prefix)) {
                self.store.remove(&format!("{}/{name}", self.front))?;
            }
        }
        let mut nodes: Vec<(String, String)> = Vec::new();
        if !self.config.anonymous_abi {
            nodes.push(("protocol".into(), self.config.abi.name().into()));
        }
        if self.config.persistent {
            nodes.push(("feature-persistent".into(), "1".into()));
        }
        if self.config.ring_order > 0 {
            nodes.push(("ring-page-order".into(), self.config.ring_order.to_string()));
        }
        if self.config.queues > 1 {
            nodes.push((
                "multi-queue-num-queues".into(),
                self.config.queues.to_string(),
            ));
        }
        for (number, ring) in self.rings.iter().enumerate() {
            let directory = if self.config.queues > 1 {
                format!("queue-{number}/")
            } else {
                String::new()
            };
            for (page, gref) in ring.grefs().iter().enumerate() {
                let suffix = if self.config.ring_order > 0 {
                    page.to_string()
                } else {
                    String::new()
                };
                nodes.push((format!("{directory}ring-ref{suffix}"), gref.to_string()));
            }
            nodes.push((
                format!("{directory}event-channel"),
                ring.channel.port().to_string(),
            ));
        }
        for (name, value) in nodes {
            self.store
                .write(&format!("{}/{name}", self.front), &value)?;
        }
        Ok(())
    }
}

impl Drop for Device {
    /// After an error, too, the backend is asked to let go before the pages are given up. The error that led here
    /// says more than one from here would.
    fn drop(&mut self) {
        if !self.rings.is_empty() {
            let _ = self.close();
        }
    }
}
