// SPDX-License-Identifier: GPL-2.0

//! The life of one disk, from its directory in xenstore to the end of it.
//!
//! All that happens to a disk happens in its control work item: opening, connecting, draining,
//! closing. The callbacks of the xenbus only say that there is something new. They share one thread
//! with all Xen devices of the machine, which must not wait for one disk's storage; only removal
//! waits, because it has to be over when it returns. How the disk gets its medium is in [`opening`], what
//! the frontend is told about it in [`connecting`].
//!
//! Owns the medium and the connection. Lock order: [`Vbd::inner`], then that of the files in use, or
//! that of a ring.

#![forbid(unsafe_code)]

mod connecting;
mod opening;

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
    workqueue::{
        DelayedWork,
        Work,
        WorkItem, //
    },
};
use xen_bindings::{
    params,
    work::cancel_delayed_work,
    xenbus::{
        Device,
        InXenwatch,
        State,
        Watcher, //
    },
    xenstore::Transaction, //
};

use crate::{
    connection::{
        Connection,
        Offer, //
    },
    driver::Context,
    handover::{
        self,
        Handover, //
    },
    medium::{
        DiskMode,
        FileMedium,
        Medium, //
    },
    stats::Stats, //
};

/// A disk of a guest.
#[pin_data]
pub(crate) struct Vbd {
    context: Arc<Context>,
    dev: Device,
    /// Directory of the frontend.
    frontend: CString,
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
    offer: Offer,
    /// How many more times a driver before us is waited for, which has requests in flight.
    waits: u32,
    /// When a frontend was last refused ([`clock::nanoseconds`]), until one is connected.
    ///
    /// [`clock::nanoseconds`]: xen_bindings::clock::nanoseconds
    refused: Option<u64>,
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
                stats,
                frontend_state: Atomic::new(State::Initialising as u32),
                params_changed: Atomic::new(false),
                unregister: Atomic::new(false),
                inner <- new_mutex!(Inner {
                    source: Source::New,
                    offer: Offer {
                        queues: params::max_queues(),
                        ring_order: params::max_ring_page_order(),
                        persistent: params::feature_persistent(),
                    },
                    waits: 0,
                    refused: None,
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
        // It is not queued again.
        cancel_delayed_work::<Self, 1>(self);
    }

    /// The control work item: does whatever can be done now.
    fn advance(self: &Arc<Self>) {
        let mut inner = self.inner.lock();
        if let Source::New = inner.source {
            inner.source = self.take_over();
            self.follow_former_driver(&mut inner);
            self.publish_offer(inner.offer);
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
                inner.waits = 0;
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
