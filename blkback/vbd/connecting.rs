// SPDX-License-Identifier: GPL-2.0

//! What a frontend is told about a disk: what it can use, the disk's properties, and its size whenever
//! that has changed.
//!
//! Runs in the disk's control work item, and in the one that looks at the size; both hold the lock of
//! [`Lifecycle`].

#![forbid(unsafe_code)]

use blkif::{
    abi::MAX_INDIRECT_SEGMENTS,
    node::State,
    DiscardOffer,
    Disk, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    },
    time::msecs_to_jiffies, //
};
use xen_bindings::{
    clock,
    work::enqueue_delayed,
    xen::{
        ring::MAX_RING_ORDER,
        xenstore, //
    }, //
};

use super::{
    Lifecycle,
    Source,
    Vbd, //
};
use crate::{
    connection::{
        Connection,
        Offer,
        Refusal, //
    },
    medium::{
        Medium,
        Properties, //
    }, //
};

/// Bits of the node `info` (`VDISK_*`, xen/include/public/io/blkif.h).
const VDISK_CDROM: u32 = 1;
const VDISK_REMOVABLE: u32 = 2;
const VDISK_READONLY: u32 = 4;

/// Time between two looks at the size of a connected disk, in milliseconds.
const SIZE_PAUSE: u32 = 500;

/// How long a frontend that could not be connected has to wait before that is tried again, in nanoseconds, less
/// than [`SIZE_PAUSE`]: the xenbus writes a line to the log for each ring that cannot be mapped.
const REFUSAL_PAUSE: u64 = 400_000_000;

/// What that grows to, twice as long each time, while the frontend does not begin anew.
const REFUSAL_PAUSE_AT_MOST: u64 = 60_000_000_000;

/// How many times, in a minute, it is tried each time whether a driver before us has let go; then each tenth time.
/// Giving up would cost the guest its disk.
const FORMER_DRIVER_WAITS: u32 = 120;

/// The last time that a frontend was refused.
pub(super) struct Refused {
    /// By [`clock::nanoseconds`].
    at: u64,
    /// How long it is not tried again, in nanoseconds.
    pause: u64,
}

impl Refused {
    /// A frontend that closes is going to set up its side anew, so that it may be right the next time.
    pub(super) fn begin_anew(&mut self) {
        self.pause = REFUSAL_PAUSE;
    }
}

/// A node that is a number. `None` if there is none, or none that is one.
fn number(dir: &CStr, node: &CStr) -> Result<Option<u32>> {
    let value = xenstore::read_optional(dir, node)?;
    Ok(value.and_then(|value| value.number().ok()))
}

impl Vbd {
    /// A frontend that has set up its side with a driver before us goes by what that one has offered, and does
    /// not look again: it may have more queues than our parameter allows, and it takes a persistent grant for
    /// an error where none were offered.
    ///
    /// # Errors
    ///
    /// What xenstore answers with.
    pub(super) fn follow_former_driver(&self, life: &mut Lifecycle) -> Result {
        let state = self.frontend_state_now()?;
        if !matches!(state, State::Initialised | State::Connected) {
            return Ok(());
        }
        life.former = Some(0);
        let offer = &mut life.offer;
        let offered = |node| number(self.name(), node);
        offer.queues = offered(c"multi-queue-max-queues")?.unwrap_or(1).max(1);
        offer.ring_order = offered(c"max-ring-page-order")?.map_or(0, |it| it.min(MAX_RING_ORDER));
        offer.persistent &= offered(c"feature-persistent")?.is_some_and(|it| it != 0);
        Ok(())
    }

    /// Publishes what the frontend has to know before it sets up its side.
    pub(super) fn publish_offer(&self, offer: Offer) {
        let published = self.binding.publish(|xbt| {
            [
                (
                    c"feature-max-indirect-segments",
                    u32::from(MAX_INDIRECT_SEGMENTS),
                ),
                (c"multi-queue-max-queues", offer.queues),
                (c"max-ring-page-order", offer.ring_order),
                (c"feature-persistent", u32::from(offer.persistent)),
            ]
            .into_iter()
            .try_for_each(|(node, value)| xbt.write(self.name(), node, fmt!("{}", value)))
        });
        // Without the nodes a frontend uses less of what there is.
        if let Err(err) = published {
            self.speaker
                .warn(fmt!("writing what is offered: {:?}", err));
        }
    }

    /// Sets a connection up, and publishes what the frontend needs to know.
    pub(super) fn connect(self: &Arc<Self>, life: &mut Lifecycle) {
        // One that was there has a ring that the frontend has given up.
        self.disconnect(life);
        let Source::Open(medium) = &life.source else {
            return;
        };
        let seen = State::from_number(self.frontend_state.load(Relaxed));
        let now = clock::nanoseconds();
        if self.is_too_early(life, now) {
            return self.look_again(life);
        }
        let (disk, properties) = self.disk_of(medium);
        let connection = Connection::new(
            medium,
            disk,
            life.offer,
            &self.stats,
            &self.speaker,
            self.dev(),
            &self.frontend,
        );
        let connection = match connection {
            Ok(connection) => connection,
            Err(refusal) => return self.connect_later(life, now, seen, &refusal),
        };
        let overview = match connection.overview() {
            Ok(overview) => overview,
            Err(err) => {
                return self
                    .binding
                    .fatal(err, fmt!("allocating what describes the connection"))
            }
        };
        if let Err(err) = self.publish_properties(&properties, &disk) {
            return self
                .binding
                .fatal(err, fmt!("writing the properties of the disk"));
        }
        self.binding.switch_state(State::Connected);
        self.view.lock().connection = Some(overview);
        self.say_connected(&connection, &disk);
        let connection = life.connection.insert(connection);
        connection.start();
        life.former = None;
        if let Some(refused) = &mut life.refused {
            refused.begin_anew();
        }
        life.sectors = disk.sectors;
        self.look_again(life);
    }

    /// Has a frontend been refused so lately that it is not tried again yet? Of one that takes us for connected nothing is
    /// to be said.
    fn is_too_early(&self, life: &Lifecycle, now: u64) -> bool {
        let Some(Refused { at, pause }) = &life.refused else {
            return false;
        };
        if self.dev().state() == State::Connected {
            return false;
        }
        let since = now.saturating_sub(*at);
        // A line of the guest's limit is taken, but not waited for for ever.
        since < *pause || (since < REFUSAL_PAUSE_AT_MOST && !self.speaker.has_room())
    }

    /// The disk that a medium makes, as far as the toolstack allows.
    fn disk_of(&self, medium: &Medium) -> (Disk, Properties) {
        let mode = medium.mode();
        let mut properties = medium.properties();
        if !mode.writable || !self.discard_enabled() {
            properties.discard = None;
        }
        let disk = Disk {
            sectors: medium.sectors(),
            logical_block_size: properties.logical_block_size,
            readonly: !mode.writable,
            flush: properties.write_cache,
            barrier: properties.write_cache,
            discard: properties.discard.as_ref().map(|limits| DiscardOffer {
                secure: limits.secure,
            }),
            max_indirect_segments: MAX_INDIRECT_SEGMENTS,
        };
        (disk, properties)
    }

    /// A frontend could not be connected: it is refused, or a driver before us is waited for.
    fn connect_later(
        self: &Arc<Self>,
        life: &mut Lifecycle,
        now: u64,
        seen: State,
        refusal: &Refusal<'_>,
    ) {
        if refusal.is_about_channel() && life.former.is_some() {
            if life.former == Some(0) {
                self.speaker.info(fmt!(
                    "waits for the requests of the driver that had it before"
                ));
            }
            return self.look_again(life);
        }
        let pause = match &life.refused {
            // It may well be others that have the memory.
            Some(before) if refusal.error != ENOMEM => {
                before.pause.saturating_mul(2).min(REFUSAL_PAUSE_AT_MOST)
            }
            _ => REFUSAL_PAUSE,
        };
        life.refused = Some(Refused { at: now, pause });
        if self.has_moved_on(seen) {
            return self.look_again(life);
        }
        self.refuse(refusal.error, fmt!("{}", *refusal));
    }

    /// Is the frontend in another state than when we began, or not one that has set up its side? We are told of states
    /// later than they are written; then what could not be used was what a frontend is taking down or setting up, and to
    /// refuse that would make it give up.
    fn has_moved_on(&self, seen: State) -> bool {
        self.frontend_state_now().is_ok_and(|state| {
            state != seen || !matches!(state, State::Initialised | State::Connected)
        })
    }

    /// The state of the frontend as xenstore has it, [`State::Unknown`] if that is none.
    ///
    /// # Errors
    ///
    /// What xenstore answers with.
    fn frontend_state_now(&self) -> Result<State> {
        let state = number(&self.frontend, c"state")?;
        Ok(state.map_or(State::Unknown, State::from_number))
    }

    fn say_connected(&self, connection: &Connection, disk: &Disk) {
        self.speaker.info_limited(fmt!(
            "using {} queues of {} ring pages, protocol {}, {}{} sectors, {}",
            connection.queues(),
            connection.ring_pages(),
            connection.abi().name(),
            if connection.persistent() {
                "persistent grants, "
            } else {
                ""
            },
            disk.sectors,
            if disk.readonly {
                "read-only"
            } else {
                "writable"
            },
        ));
    }

    /// As [`Vbd::connect`], while the frontend takes us for connected: it goes on with the requests that have not been
    /// taken from its rings, and is told of another size.
    pub(super) fn connect_again(self: &Arc<Self>, life: &mut Lifecycle) {
        let sectors = life.sectors;
        self.connect(life);
        // It has not been told: our state is what it was.
        life.sectors = sectors;
        self.tell_size(life);
    }

    /// Has it looked again after a while for what nobody tells us of, such as storage that grows, and tried again what could
    /// not be done.
    pub(super) fn look_again(self: &Arc<Self>, life: &mut Lifecycle) {
        if !life.looking {
            life.looking = true;
            self.look_later();
        }
    }

    pub(super) fn look_later(self: &Arc<Self>) {
        let _ = enqueue_delayed::<Self, 1>(self.clone(), msecs_to_jiffies(SIZE_PAUSE));
    }

    /// Looks whether the medium has another size, or whether a driver before us has let go.
    pub(super) fn follow_size(self: &Arc<Self>) {
        // The control work item may be waiting for storage. Waiting for it in turn would occupy a thread.
        let Some(mut life) = self.life.try_lock() else {
            return self.look_later();
        };
        life.looking = false;
        if self.binding.is_over() {
            return;
        }
        if self.unregister.load(Relaxed) {
            // The device could not be removed the last time, or nothing be written for it.
            return self.leave(&mut life);
        }
        if life.connection.is_some() {
            self.tell_size(&mut life);
            self.look_again(&mut life);
        } else if let (Some(times), false) = (life.former, self.quiesce.load(Relaxed)) {
            life.former = Some(times.saturating_add(1));
            if times < FORMER_DRIVER_WAITS || times % 10 == 0 {
                self.follow_frontend(&mut life);
            } else {
                self.look_again(&mut life);
            }
        } else if !matches!(life.source, Source::Removed) {
            self.follow_frontend(&mut life);
        }
    }

    /// Tells the frontend if the medium has another size than it knows.
    pub(super) fn tell_size(&self, life: &mut Lifecycle) {
        let Source::Open(medium) = &life.source else {
            return;
        };
        let (before, sectors) = (life.sectors, medium.sectors());
        if sectors == before || self.dev().state() != State::Connected {
            return;
        }
        let name = self.name();
        self.speaker
            .info(fmt!("size changed from {} to {} sectors", before, sectors));
        let told = self.binding.publish(|xbt| {
            xbt.write(name, c"sectors", fmt!("{}", sectors))?;
            // The frontend looks at it when our state is written, even if it is the same.
            xbt.write(name, c"state", fmt!("{}", State::Connected as u32))
        });
        match told {
            Ok(_) => life.sectors = sectors,
            Err(err) => self.speaker.warn(fmt!("writing sectors: {:?}", err)),
        }
    }

    /// Does the toolstack allow to give up parts of the disk? (xl-disk-configuration(5), `discard`)
    fn discard_enabled(&self) -> bool {
        match xenstore::read_optional(self.name(), c"discard-enable") {
            Ok(None) => true,
            Ok(Some(value)) => value.number().is_ok_and(|enabled| enabled != 0),
            Err(_) => false,
        }
    }

    /// Publishes the properties of the disk.
    fn publish_properties(&self, properties: &Properties, disk: &Disk) -> Result<bool> {
        let cdrom = properties.cdrom
            || xenstore::read_optional(&self.frontend, c"device-type")?
                .is_some_and(|kind| kind.as_bytes() == b"cdrom");
        let mut info = 0;
        for (set, bit) in [
            (cdrom, VDISK_CDROM),
            (properties.removable, VDISK_REMOVABLE),
            (disk.readonly, VDISK_READONLY),
        ] {
            if set {
                info |= bit;
            }
        }
        let name = self.name();
        self.binding.publish(|xbt| {
            xbt.write(
                name,
                c"feature-flush-cache",
                fmt!("{}", u8::from(disk.flush)),
            )?;
            xbt.write(name, c"feature-barrier", fmt!("{}", u8::from(disk.barrier)))?;
            if let Some(limits) = &properties.discard {
                xbt.write(name, c"discard-granularity", fmt!("{}", limits.granularity))?;
                xbt.write(name, c"discard-alignment", fmt!("{}", limits.alignment))?;
                xbt.write(name, c"discard-secure", fmt!("{}", u8::from(limits.secure)))?;
            }
            xbt.write(
                name,
                c"feature-discard",
                fmt!("{}", u8::from(properties.discard.is_some())),
            )?;
            xbt.write(name, c"sectors", fmt!("{}", disk.sectors))?;
            xbt.write(name, c"info", fmt!("{}", info))?;
            xbt.write(name, c"sector-size", fmt!("{}", disk.logical_block_size))?;
            xbt.write(
                name,
                c"physical-sector-size",
                fmt!("{}", properties.physical_block_size),
            )
        })
    }
}
