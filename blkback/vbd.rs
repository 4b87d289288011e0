// SPDX-License-Identifier: GPL-2.0

//! The life of one disk, from its directory in xenstore to the end of it.
//!
//! All that happens to a disk happens in its control work item: opening, connecting, draining,
//! closing. The callbacks of the xenbus only say that there is something new. They share one thread
//! with all Xen devices of the machine, which must not wait for one disk's storage; only removal
//! waits, because it has to be over when it returns.
//!
//! Owns the medium and the connection. Lock order: [`Vbd::inner`], then that of the files in use, or
//! that of a ring.

#![forbid(unsafe_code)]

use blkif::{
    abi::MAX_INDIRECT_SEGMENTS,
    DiscardOffer, //
    Disk,
};
use kernel::{
    fmt, impl_has_delayed_work, impl_has_work, new_delayed_work, new_mutex, new_work,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
    time::msecs_to_jiffies,
    workqueue::{
        DelayedWork,
        Work,
        WorkItem, //
    },
};
use xen_bindings::{
    io::DiscardLimits,
    params,
    work::cancel_delayed_work,
    xenbus::{
        Device,
        InXenwatch,
        State,
        Watcher, //
    },
    xenstore::{
        self,
        Transaction, //
    },
};

use crate::{
    connection::{
        Connection,
        Offer, //
    },
    driver::Context,
    handover::{
        self,
        Change,
        Handover, //
    },
    medium::{
        DiskMode,
        FileMedium,
        Medium, //
    },
    stats::Stats, //
};

/// Bits of the node `info` (`VDISK_*`, xen/include/public/io/blkif.h).
const VDISK_CDROM: u32 = 1;
const VDISK_REMOVABLE: u32 = 2;
const VDISK_READONLY: u32 = 4;

/// Time between two looks at the size of a connected disk, in milliseconds.
const SIZE_PAUSE: u32 = 500;

/// A disk of a guest.
#[pin_data]
pub(crate) struct Vbd {
    context: Arc<Context>,
    dev: Device,
    /// Directory of the frontend.
    frontend: CString,
    offer: Offer,
    stats: Arc<Stats>,
    /// The state that the frontend was last seen in.
    frontend_state: Atomic<u32>,
    /// The node `params` has been written.
    params_changed: Atomic<bool>,
    /// Everything is torn down, and the toolstack wants the device gone.
    unregister: Atomic<bool>,
    #[pin]
    inner: Mutex<Inner>,
    #[pin]
    control: Work<Vbd>,
    #[pin]
    look_at_size: DelayedWork<Vbd, 1>,
}

impl_has_work! {
    impl HasWork<Self> for Vbd { self.control }
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self, 1> for Vbd { self.look_at_size }
}

struct Inner {
    source: Source,
    /// Dropped before the medium it uses.
    connection: Option<Connection>,
    mode: DiskMode,
    /// The size that the frontend has been told, in sectors.
    sectors: u64,
    /// `look_at_size` waits for its time, or runs.
    looking: bool,
}

/// How far the disk has come to its medium.
enum Source {
    /// Nothing has been looked at yet.
    New,
    /// A file has been opened; the toolstack has to say that it is ready.
    File(FileMedium),
    /// The toolstack's script has to name a block device.
    Script,
    /// There will never be a medium: whoever asked for it has been told why.
    Failed,
    Open(Arc<Medium>),
    /// The device is being removed; nothing may happen any more.
    Removed,
}

impl Vbd {
    pub(crate) fn new(context: Arc<Context>, dev: Device, frontend: &CStr) -> Result<Arc<Self>> {
        let frontend = CString::try_from(frontend)?;
        let stats = Arc::new(Stats::new()?, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                context,
                dev,
                frontend,
                offer: Offer {
                    queues: params::max_queues(),
                    ring_order: params::max_ring_page_order(),
                    persistent: params::feature_persistent(),
                },
                stats,
                frontend_state: Atomic::new(State::Initialising as u32),
                params_changed: Atomic::new(false),
                unregister: Atomic::new(false),
                inner <- new_mutex!(Inner {
                    source: Source::New,
                    connection: None,
                    mode: DiskMode::from_node(b"r"),
                    sectors: 0,
                    looking: false,
                }),
                control <- new_work!("Vbd::control"),
                look_at_size <- new_delayed_work!("Vbd::look_at_size"),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn device(&self) -> &Device {
        &self.dev
    }

    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Major and minor number of the medium, (0, 0) if there is none, or if it is a file. May sleep.
    pub(crate) fn physical_device(&self) -> (u32, u32) {
        match &self.inner.lock().source {
            Source::Open(medium) => medium.numbers(),
            _ => (0, 0),
        }
    }

    /// Whether the guest may write, as the toolstack writes it. May sleep.
    pub(crate) fn access_mode(&self) -> &'static CStr {
        self.inner.lock().mode.text()
    }

    fn name(&self) -> &CStr {
        self.dev.nodename()
    }

    /// What there is to know about the disk, a line each. May sleep.
    pub(crate) fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.lock();
        match &inner.source {
            Source::New | Source::File(_) | Source::Script => {
                f.write_str("medium: waits for the toolstack\n")?;
            }
            Source::Failed => f.write_str("medium: refused, see the kernel log\n")?,
            Source::Removed => f.write_str("medium: given up\n")?,
            Source::Open(medium) => medium.write(f)?,
        }
        writeln!(
            f,
            "mode: {}\nstate: {:?}, frontend: {:?}",
            inner.mode.text().to_str().unwrap_or(""),
            self.dev.state(),
            State::from_number(self.frontend_state.load(Relaxed)),
        )?;
        match &inner.connection {
            Some(connection) => connection.write(f),
            None => Ok(()),
        }
    }

    /// Has the control work item run. Any context.
    pub(crate) fn schedule(self: &Arc<Self>) {
        // An error means that it is scheduled already.
        let _ = self.context.control.enqueue::<Arc<Self>, 0>(self.clone());
    }

    /// The frontend is in another state. Does not wait for anything.
    pub(crate) fn frontend_changed(self: &Arc<Self>, state: State) {
        self.frontend_state.store(state as u32, Relaxed);
        self.schedule();
    }

    /// Memory is short: gives back what is not in use. Does not sleep; while something happens to
    /// the disk it does nothing.
    pub(crate) fn reclaim_memory(&self) {
        if let Some(inner) = self.inner.try_lock() {
            if let Some(connection) = &inner.connection {
                connection.reclaim();
            }
        }
    }

    /// Tears everything down. May sleep, for as long as requests are in flight.
    pub(crate) fn remove(self: &Arc<Self>) {
        let mut inner = self.inner.lock();
        inner.connection = None;
        inner.source = Source::Removed;
        drop(inner);
        // Without a connection it is not queued again.
        cancel_delayed_work::<Self, 1>(self);
    }

    /// The control work item: does whatever can be done now.
    fn advance(self: &Arc<Self>) {
        let mut inner = self.inner.lock();
        if let Source::New = inner.source {
            inner.source = self.take_over();
            self.publish_offer();
            self.dev.switch_state(State::InitWait);
        }
        self.open(&mut inner);
        if self.params_changed.xchg(false, Relaxed) {
            self.change_medium(&mut inner);
        }
        if !matches!(inner.source, Source::Removed) {
            self.follow_frontend(&mut inner);
        }
    }

    /// Looks at what the toolstack wants.
    fn take_over(&self) -> Source {
        match handover::take(&self.context, self.name(), self.dev.otherend_id()) {
            Ok(Handover::Script) => Source::Script,
            Ok(Handover::File(medium)) => Source::File(medium),
            Ok(Handover::Refused) => Source::Failed,
            Err(err) => {
                self.dev.fatal(err, c"reading the backend directory");
                Source::Failed
            }
        }
    }

    /// Publishes what the frontend has to know before it sets up its side.
    fn publish_offer(&self) {
        let offer = self.offer;
        for (node, value) in [
            (
                c"feature-max-indirect-segments",
                u32::from(MAX_INDIRECT_SEGMENTS),
            ),
            (c"multi-queue-max-queues", offer.queues),
            (c"max-ring-page-order", offer.ring_order),
            (c"feature-persistent", u32::from(offer.persistent)),
        ] {
            // Without the node a frontend uses less of what there is.
            if let Err(err) = xenstore::write(self.name(), node, fmt!("{}", value)) {
                pr_warn!("{}: writing {}: {:?}\n", self.name(), node, err);
            }
        }
    }

    /// Gets the medium, as soon as the toolstack has done its part.
    fn open(&self, inner: &mut Inner) {
        let source = core::mem::replace(&mut inner.source, Source::Failed);
        inner.source = match source {
            Source::File(medium) => {
                if self.toolstack_ready() {
                    if let Ok(mode) = self.mode() {
                        inner.mode = mode;
                    }
                    match Arc::new(Medium::File(medium), GFP_KERNEL) {
                        Ok(medium) => Source::Open(medium),
                        Err(_) => {
                            self.dev.fatal(ENOMEM, c"opening a file");
                            Source::Failed
                        }
                    }
                } else {
                    Source::File(medium)
                }
            }
            Source::Script => match self.open_device(inner) {
                Ok(None) => Source::Script,
                Ok(Some(medium)) => Source::Open(medium),
                Err(_) => Source::Failed,
            },
            source => source,
        };
    }

    /// Has the hotplug helper run?
    fn toolstack_ready(&self) -> bool {
        xenstore::read(self.name(), c"hotplug-status")
            .is_ok_and(|status| status.as_bytes() == b"connected")
    }

    fn mode(&self) -> Result<DiskMode> {
        let mode = xenstore::read(self.name(), c"mode").inspect_err(|err| {
            self.dev.fatal(*err, c"reading mode");
        })?;
        Ok(DiskMode::from_node(mode.as_bytes()))
    }

    /// Opens the block device that a script has named, if it has. Errors have been reported.
    fn open_device(&self, inner: &mut Inner) -> Result<Option<Arc<Medium>>> {
        let fatal = |err: Error, what: &CStr| {
            self.dev.fatal(err, what);
            err
        };
        let Some(node) = xenstore::read_optional(self.name(), c"physical-device")
            .map_err(|err| fatal(err, c"reading physical-device"))?
        else {
            return Ok(None);
        };
        let (major, minor) = device_numbers(node.as_bytes())
            .map_err(|err| fatal(err, c"physical-device is not of the form major:minor"))?;
        let mode = self.mode()?;
        inner.mode = mode;
        let medium = Medium::open_device(major, minor, mode).map_err(|err| {
            let access = if mode.writable { "writing" } else { "reading" };
            let hint = if err == EBUSY {
                ", which is mounted or otherwise claimed in this domain"
            } else {
                ""
            };
            match CString::try_from_fmt(fmt!(
                "opening block device {major:x}:{minor:x} for {access}{hint}"
            )) {
                Ok(what) => fatal(err, &what),
                Err(_) => fatal(err, c"opening a block device"),
            }
        })?;
        Ok(Some(
            Arc::new(medium, GFP_KERNEL).map_err(|_| fatal(ENOMEM, c"opening a block device"))?,
        ))
    }

    /// Puts another medium into a drive, or takes it out.
    fn change_medium(self: &Arc<Self>, inner: &mut Inner) {
        let Source::Open(medium) = &inner.source else {
            return;
        };
        if !self.has_removable_medium() || matches!(**medium, Medium::Block(_)) {
            return;
        }
        let change = handover::change(
            &self.context,
            self.name(),
            medium.path(),
            self.dev.otherend_id(),
        );
        let medium = match change {
            Ok(Change::None) => return,
            Ok(Change::Eject) => Medium::Empty,
            Ok(Change::Insert(medium)) => Medium::File(medium),
            Err(message) => return self.dev.error(EINVAL, &message),
        };
        let medium = match Arc::new(medium, GFP_KERNEL) {
            Ok(medium) => medium,
            Err(_) => return self.dev.error(ENOMEM, c"changing the medium"),
        };
        match medium.path() {
            Some(path) => pr_info!("{}: medium changed to file {}\n", self.name(), path),
            None => pr_info!("{}: medium taken out\n", self.name()),
        }
        // What is in flight ends on the old medium. The rings are attached to anew, at the requests
        // that have not been taken.
        let connected = inner.connection.is_some();
        inner.connection = None;
        inner.source = Source::Open(medium);
        if connected {
            let sectors = inner.sectors;
            self.connect(inner);
            // It has not been told: our state is what it was.
            inner.sectors = sectors;
            self.tell_size(inner);
        }
    }

    /// Does the toolstack say that the medium can be changed?
    fn has_removable_medium(&self) -> bool {
        let is = |node, value: &[u8]| {
            xenstore::read(self.name(), node).is_ok_and(|found| found.as_bytes() == value)
        };
        is(c"device-type", b"cdrom") || is(c"removable", b"1")
    }

    /// Does what the state of the frontend asks for.
    fn follow_frontend(self: &Arc<Self>, inner: &mut Inner) {
        match State::from_number(self.frontend_state.load(Relaxed)) {
            State::Initialising => match self.dev.state() {
                State::InitWait | State::Initialising => {}
                State::Closed | State::Closing | State::Connected => {
                    // A new kernel in the guest, or a new driver.
                    inner.connection = None;
                    if self.stats.log.permits(self.name()) {
                        pr_info!("{}: prepare for reconnect\n", self.name());
                    }
                    self.dev.switch_state(State::InitWait);
                }
                _ => {}
            },
            State::InitWait => {}
            State::Initialised | State::Connected => {
                if self.dev.state() != State::Connected {
                    self.connect(inner);
                }
            }
            State::Closing => self.dev.switch_state(State::Closing),
            State::Closed => {
                inner.connection = None;
                if self.dev.is_online() {
                    self.dev.switch_state(State::Closed);
                } else {
                    self.leave(inner);
                }
            }
            State::Unknown => {
                inner.connection = None;
                self.leave(inner);
            }
            State::Reconfiguring | State::Reconfigured | State::Invalid => {
                self.refuse(EINVAL, c"the frontend is in a state that it cannot be in");
            }
        }
    }

    /// Does not serve the frontend as it is, and says why unless it has caused too many lines in the log.
    fn refuse(&self, err: Error, why: &CStr) {
        if self.stats.log.permits(self.name()) {
            self.dev.fatal(err, why);
        } else {
            self.dev.switch_state(State::Closing);
        }
    }

    /// Sets a connection up, and publishes what the frontend needs to know.
    fn connect(self: &Arc<Self>, inner: &mut Inner) {
        // One that was there has a ring that the frontend has given up.
        inner.connection = None;
        let Source::Open(medium) = &inner.source else {
            return;
        };
        let discard = if inner.mode.writable && self.discard_enabled() {
            medium.discard()
        } else {
            None
        };
        let disk = Disk {
            sectors: medium.sectors(),
            logical_block_size: medium.logical_block_size(),
            readonly: !inner.mode.writable,
            flush: medium.has_write_cache(),
            barrier: medium.has_write_cache(),
            discard: discard.map(|limits| DiscardOffer {
                secure: limits.secure,
            }),
            max_indirect_segments: MAX_INDIRECT_SEGMENTS,
        };
        let connection = match Connection::new(
            &self.context,
            medium,
            disk,
            self.offer,
            &self.stats,
            &self.dev,
            &self.frontend,
        ) {
            Ok(connection) => connection,
            Err(refusal) => {
                self.refuse(refusal.error, &refusal.what);
                return;
            }
        };
        if let Err(err) = self.publish(medium, &disk, discard) {
            self.dev.fatal(err, c"writing the properties of the disk");
            return;
        }
        self.dev.switch_state(State::Connected);
        connection.start();
        if self.stats.log.permits(self.name()) {
            pr_info!(
                "{}: using {} queues of {} ring pages, protocol {}, {}{} sectors, {}\n",
                self.name(),
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
            );
        }
        inner.connection = Some(connection);
        inner.sectors = disk.sectors;
        self.look_again(inner);
    }

    /// Has the size looked at after a while. No storage tells us when it grows.
    fn look_again(self: &Arc<Self>, inner: &mut Inner) {
        if !inner.looking {
            inner.looking = true;
            let _ = self
                .context
                .control
                .enqueue_delayed::<Arc<Self>, 1>(self.clone(), msecs_to_jiffies(SIZE_PAUSE));
        }
    }

    /// Looks whether the medium has another size.
    fn follow_size(self: &Arc<Self>) {
        let mut inner = self.inner.lock();
        inner.looking = false;
        if inner.connection.is_some() {
            self.tell_size(&mut inner);
            self.look_again(&mut inner);
        }
    }

    /// Tells the frontend if the medium has another size than it knows.
    fn tell_size(&self, inner: &mut Inner) {
        let Source::Open(medium) = &inner.source else {
            return;
        };
        let (before, sectors) = (inner.sectors, medium.sectors());
        if sectors == before || self.dev.state() != State::Connected {
            return;
        }
        let name = self.name();
        pr_info!("{name}: size changed from {before} to {sectors} sectors\n");
        let told = Transaction::run(|xbt| {
            // A directory that the toolstack has removed must not come back.
            if !xbt.exists(name, c"state") {
                return Ok(());
            }
            xbt.write(name, c"sectors", fmt!("{}", sectors))?;
            // The frontend looks at it when our state is written, even if it is the same.
            xbt.write(name, c"state", fmt!("{}", State::Connected as u32))
        });
        match told {
            Ok(()) => inner.sectors = sectors,
            Err(err) => pr_warn!("{name}: writing sectors: {err:?}\n"),
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

    fn publish(&self, medium: &Medium, disk: &Disk, discard: Option<DiscardLimits>) -> Result {
        let cdrom = medium.is_cdrom()
            || xenstore::read(&self.frontend, c"device-type")
                .is_ok_and(|kind| kind.as_bytes() == b"cdrom");
        let mut info = 0;
        for (set, bit) in [
            (cdrom, VDISK_CDROM),
            (medium.is_removable(), VDISK_REMOVABLE),
            (disk.readonly, VDISK_READONLY),
        ] {
            if set {
                info |= bit;
            }
        }
        let name = self.name();
        Transaction::run(|xbt| {
            xbt.write(
                name,
                c"feature-flush-cache",
                fmt!("{}", u8::from(disk.flush)),
            )?;
            xbt.write(name, c"feature-barrier", fmt!("{}", u8::from(disk.barrier)))?;
            if let Some(limits) = discard {
                xbt.write(name, c"discard-granularity", fmt!("{}", limits.granularity))?;
                xbt.write(name, c"discard-alignment", fmt!("{}", limits.alignment))?;
                xbt.write(name, c"discard-secure", fmt!("{}", u8::from(limits.secure)))?;
            }
            xbt.write(
                name,
                c"feature-discard",
                fmt!("{}", u8::from(discard.is_some())),
            )?;
            xbt.write(name, c"sectors", fmt!("{}", disk.sectors))?;
            xbt.write(name, c"info", fmt!("{}", info))?;
            xbt.write(name, c"sector-size", fmt!("{}", disk.logical_block_size))?;
            xbt.write(
                name,
                c"physical-sector-size",
                fmt!("{}", medium.physical_block_size()),
            )
        })
    }

    /// The disk is closed and nobody wants it any more: publishes that, and has the device removed.
    fn leave(&self, inner: &mut Inner) {
        inner.source = Source::Removed;
        self.unregister.store(true, Relaxed);
        // Devices are unregistered in the xenwatch thread. Writing the state brings us there: the
        // watch of our directory fires, even if the value is the one that was there.
        if self.dev.state() != State::Closed {
            return self.dev.switch_state(State::Closed);
        }
        // A directory that the toolstack has removed must not come back; without it, the xenbus
        // removes the device by itself.
        let _ = Transaction::run(|xbt| {
            if xbt.exists(self.name(), c"state") {
                xbt.write(self.name(), c"state", fmt!("{}", State::Closed as u32))?;
            }
            Ok(())
        });
    }
}

/// Reads `major:minor`, both hexadecimal.
fn device_numbers(node: &[u8]) -> Result<(u32, u32)> {
    let mut parts = node.splitn(2, |byte| *byte == b':');
    let (Some(major), Some(minor)) = (parts.next(), parts.next()) else {
        return Err(EINVAL);
    };
    Ok((
        xenstore::parse_number(major, 16)?,
        xenstore::parse_number(minor, 16)?,
    ))
}

impl WorkItem for Vbd {
    type Pointer = Arc<Vbd>;

    fn run(this: Arc<Vbd>) {
        this.advance();
    }
}

impl WorkItem<1> for Vbd {
    type Pointer = Arc<Vbd>;

    fn run(this: Arc<Vbd>) {
        this.follow_size();
    }
}

impl Watcher for Vbd {
    fn changed(this: Arc<Self>, path: &[u8], ctx: &InXenwatch) {
        match path.rsplit(|byte| *byte == b'/').next() {
            Some(b"state") => {
                if this.unregister.xchg(false, Relaxed) {
                    ctx.unregister(&this.dev);
                }
            }
            Some(b"physical-device" | b"hotplug-status") => this.schedule(),
            Some(b"params") => {
                this.params_changed.store(true, Relaxed);
                this.schedule();
            }
            _ => {}
        }
    }
}
