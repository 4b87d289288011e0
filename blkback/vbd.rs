// SPDX-License-Identifier: GPL-2.0

//! The life of one disk, from its directory in xenstore to the end of it.
//!
//! All that happens to a disk happens in its control work item: opening, connecting, draining,
//! closing. The callbacks of the xenbus only say that there is something new, removal included. They share one
//! thread with all Xen devices of the machine, which must not wait for one disk's storage, and neither must who reads a
//! file of ours. So a disk may live for a while after its driver has been unbound: its control work item lets go of it, and
//! the module's exit waits for that. How the disk gets its medium is in [`opening`], what the frontend is told about it in
//! [`connecting`].
//!
//! Owns the medium and the connection. Lock order: [`Vbd::life`], then that of the files in use, or that of a ring, or
//! [`Vbd::view`]. Nothing that waits is done, and nothing else locked, inside of [`Vbd::view`] and [`Vbd::attached`].
//! `life` is taken by the disk's work items only.

#![forbid(unsafe_code)]

mod connecting;
mod opening;

use blkif::node::State;
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
    module::{
        log::Speaker,
        params, //
    },
    work::{
        cancel_delayed_work,
        OnQueue,
        OwnedQueue, //
    },
    xen::{
        device::Device,
        xenbus::Binding,
        xenwatch::{
            InXenwatch,
            Watch,
            Watcher, //
        }, //
    }, //
};

use self::connecting::Refused;
use crate::{
    connection::{
        Connection,
        Offer,
        Overview, //
    },
    context::{
        Context,
        Counted, //
    },
    debug::{
        Files,
        Show, //
    },
    handover::{
        self,
        Handover, //
    },
    medium::Medium,
    stats::Stats, //
};

/// A disk of a guest.
#[pin_data]
pub(crate) struct Vbd {
    context: Counted,
    binding: Arc<Binding>,
    /// Directory of the frontend.
    frontend: CString,
    stats: Arc<Stats>,
    speaker: Arc<Speaker>,
    /// The state that the frontend was last seen in.
    frontend_state: Atomic<u32>,
    /// The node `params` has been written.
    params_changed: Atomic<bool>,
    /// The administrator wants no requests to be served.
    quiesce: Atomic<bool>,
    /// Everything is torn down, and the toolstack wants the device gone.
    unregister: Atomic<bool>,
    #[pin]
    view: Mutex<View>,
    #[pin]
    attached: Mutex<Attached>,
    #[pin]
    life: Mutex<Lifecycle>,
    #[pin]
    control: Work<Vbd>,
    #[pin]
    look_at_size: DelayedWork<Vbd, 1>,
    #[pin]
    hide: Work<Vbd, 2>,
}

impl_has_work! {
    impl HasWork<Self> for Vbd { self.control }
    impl HasWork<Self, 2> for Vbd { self.hide }
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self, 1> for Vbd { self.look_at_size }
}

impl OnQueue for Vbd {
    fn queue(&self) -> &OwnedQueue {
        &self.context.control
    }
}

/// What calls us: it has references to the disk, and goes before that does.
struct Attached {
    watch: Option<Watch<Vbd>>,
    files: Option<Files<Vbd>>,
}

/// What there is, for an administrator who must not wait for what happens to the disk.
struct View {
    medium: Shown,
    /// Of [`Lifecycle::connection`], and gone before that is.
    connection: Option<Overview>,
    /// No requests are served, as the administrator wants it, and none is in flight.
    quiesced: bool,
}

/// [`Source`], as an administrator sees it.
enum Shown {
    Waits,
    Refused,
    GivenUp,
    Open(Arc<Medium>),
}

struct Lifecycle {
    source: Source,
    offer: Offer,
    /// The frontend has set up its side with a driver before us, and nobody has connected it since: how often it has been
    /// looked whether that driver has answered its requests.
    former: Option<u32>,
    /// A frontend has been refused.
    refused: Option<Refused>,
    /// Dropped before the medium it uses.
    connection: Option<Connection>,
    /// The size that the frontend has been told, in sectors.
    sectors: u64,
    /// `look_at_size` waits for its time, or runs.
    looking: bool,
}

/// How far the disk has come to its medium.
enum Source {
    /// Nothing has been looked at yet.
    New,
    /// A file has been opened, or a drive is empty; the toolstack has to say that it is ready.
    Ready(Medium),
    /// The toolstack's script has to name a block device, or an absolute path.
    Script,
    /// There will never be a medium: whoever asked for it has been told why.
    Failed,
    Open(Arc<Medium>),
    /// The device is being removed; nothing may happen any more.
    Removed,
}

impl View {
    /// The mode of the medium (`r`, `w` or `w!`), empty without one.
    fn mode(&self) -> &'static CStr {
        match &self.medium {
            Shown::Open(medium) => medium.mode().text(),
            Shown::Waits | Shown::Refused | Shown::GivenUp => c"r",
        }
    }
}

impl Vbd {
    /// The disk of a device that is being bound. Nothing happens to it before [`Vbd::schedule`]; until then, and only
    /// then, it may just be dropped. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or what xenstore answers with.
    pub(crate) fn new(
        context: Arc<Context>,
        binding: &Arc<Binding>,
        frontend: &CStr,
    ) -> Result<Arc<Self>> {
        let frontend = CString::try_from(frontend)?;
        let domid = binding.device().otherend_id();
        let guest = context.guests.of_disk(domid)?;
        let stats = Arc::new(Stats::new(guest), GFP_KERNEL)?;
        let speaker = Speaker::new(binding.device().nodename(), domid)?;
        let binding = binding.clone();
        let vbd = Arc::pin_init(
            pin_init!(Self {
                context: Counted::new(context),
                binding,
                frontend,
                stats,
                speaker,
                frontend_state: Atomic::new(State::Initialising as u32),
                params_changed: Atomic::new(false),
                quiesce: Atomic::new(false),
                unregister: Atomic::new(false),
                view <- new_mutex!(View {
                    medium: Shown::Waits,
                    connection: None,
                    quiesced: false,
                }),
                attached <- new_mutex!(Attached {
                    watch: None,
                    files: None,
                }),
                life <- new_mutex!(Lifecycle {
                    source: Source::New,
                    offer: Offer {
                        queues: params::max_queues(),
                        ring_order: params::max_ring_page_order(),
                        persistent: params::feature_persistent(),
                    },
                    former: None,
                    refused: None,
                    connection: None,
                    sectors: 0,
                    looking: false,
                }),
                control <- new_work!("Vbd::control"),
                look_at_size <- new_delayed_work!("Vbd::look_at_size"),
                hide <- new_work!("Vbd::hide"),
            }),
            GFP_KERNEL,
        )?;
        // The last that can fail: the watch has a reference to the disk.
        let watch = Watch::new(vbd.name(), vbd.clone())?;
        vbd.attached.lock().watch = Some(watch);
        Ok(vbd)
    }

    fn dev(&self) -> &Device {
        self.binding.device()
    }

    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Major and minor number of the medium, (0, 0) if there is none, or if it is a file. May sleep, but waits for
    /// nothing that takes its time.
    pub(crate) fn physical_device(&self) -> (u32, u32) {
        match &self.view.lock().medium {
            Shown::Open(medium) => medium.numbers(),
            _ => (0, 0),
        }
    }

    /// The mode of the medium (`r`, `w` or `w!`), empty without one.
    pub(crate) fn access_mode(&self) -> &'static CStr {
        self.view.lock().mode()
    }

    /// Has the disk been quiesced? `no`, `draining` while requests are in flight, `yes`. As above.
    pub(crate) fn quiescence(&self) -> &'static CStr {
        match (self.quiesce.load(Relaxed), self.view.lock().quiesced) {
            (false, _) => c"no",
            (true, false) => c"draining",
            (true, true) => c"yes",
        }
    }

    /// Has the disk serve no more requests, let those in flight end and let go of the rings, or go on. Does not wait for
    /// it.
    pub(crate) fn set_quiesce(self: &Arc<Self>, quiesce: bool) {
        self.quiesce.store(quiesce, Relaxed);
        self.schedule();
    }

    fn name(&self) -> &CStr {
        self.dev().nodename()
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

    /// Memory is short: gives back what is not in use. Does not sleep; while somebody looks at the disk it does
    /// nothing.
    pub(crate) fn reclaim_memory(&self) {
        if let Some(view) = self.view.try_lock() {
            if let Some(connection) = &view.connection {
                connection.reclaim();
            }
        }
    }

    /// The driver has been unbound: has everything torn down. Waits for nothing.
    pub(crate) fn remove(self: &Arc<Self>) {
        // The control work item may have to wait for storage first, and the next driver may be this one again.
        let _ = self.context.control.enqueue::<Arc<Self>, 2>(self.clone());
        self.schedule();
    }

    /// The control work item: does whatever can be done now.
    fn advance(self: &Arc<Self>) {
        let mut life = self.life.lock();
        if !self.binding.is_over() {
            self.follow(&mut life);
        }
        if !self.binding.is_over() {
            return;
        }
        self.disconnect(&mut life);
        life.source = Source::Removed;
        self.show(&life);
        drop(life);
        // After it, nobody has the disk's work items queued any more; both have references to the disk.
        let watch = self.attached.lock().watch.take();
        drop(watch);
        self.hide();
        cancel_delayed_work::<Self, 1>(self);
    }

    /// Does what the toolstack, the frontend and the administrator want.
    fn follow(self: &Arc<Self>, life: &mut Lifecycle) {
        if let Source::New = life.source {
            // Nothing may be published for a device that another driver gets.
            if !self.binding.settle() {
                return;
            }
            self.make_files();
            if let Err(err) = self.begin(life) {
                life.source = self.give_up(err);
            }
        }
        if matches!(life.source, Source::Script) && self.params_changed.xchg(false, Relaxed) {
            // Our helper has found out which file is meant.
            life.source = self.take_over().unwrap_or_else(|err| self.give_up(err));
        }
        let by_script = self.open(life);
        self.show(life);
        if by_script
            || (matches!(life.source, Source::Open(_)) && self.params_changed.xchg(false, Relaxed))
        {
            self.change_medium(life);
        }
        if self.quiesce.load(Relaxed) {
            self.disconnect(life);
            self.view.lock().quiesced = true;
        }
        if !matches!(life.source, Source::Removed) && !self.binding.is_over() {
            self.follow_frontend(life);
        }
    }

    /// Looks at what there is, and has the toolstack and the frontend do their part.
    fn begin(&self, life: &mut Lifecycle) -> Result {
        life.source = self.take_over()?;
        self.follow_former_driver(life)?;
        self.publish_offer(life.offer);
        self.binding.switch_state(State::InitWait);
        Ok(())
    }

    /// Makes the files in debugfs, unless the driver has been unbound.
    fn make_files(self: &Arc<Self>) {
        let files = Files::new(&self.context.debugfs, self.dev().name(), self);
        let mut attached = self.attached.lock();
        // Whoever is going to hide them finds them, or we find that it is over.
        if !self.binding.is_over() {
            attached.files = files.ok();
        }
    }

    /// Removes the files in debugfs. May have to wait for who reads them.
    fn hide(&self) {
        let files = self.attached.lock().files.take();
        drop(files);
    }

    /// Has everybody see what there is now, and lets go of what is not there any more. May sleep, as a medium may be
    /// closed.
    fn show(&self, life: &Lifecycle) {
        let medium = match &life.source {
            Source::New | Source::Ready(_) | Source::Script => Shown::Waits,
            Source::Failed => Shown::Refused,
            Source::Removed => Shown::GivenUp,
            Source::Open(medium) => Shown::Open(medium.clone()),
        };
        let mut view = self.view.lock();
        let before = core::mem::replace(&mut view.medium, medium);
        drop(view);
        drop(before);
    }

    /// Takes no more requests from the frontend, waits for those in flight, and lets go of the rings. May sleep, for as
    /// long as the storage takes.
    fn disconnect(&self, life: &mut Lifecycle) {
        if let Some(connection) = life.connection.take() {
            connection.drain();
            let overview = self.view.lock().connection.take();
            drop(overview);
            drop(connection);
        }
    }

    /// Looks at what the toolstack wants.
    fn take_over(&self) -> Result<Source> {
        Ok(
            match handover::take(&self.context.files, &self.binding, &self.speaker)? {
                Handover::Script => Source::Script,
                Handover::Medium(medium) => Source::Ready(medium),
                Handover::Refused => Source::Failed,
            },
        )
    }

    /// Says that xenstore gave an error for what is asked first, and closes the disk.
    fn give_up(&self, err: Error) -> Source {
        self.binding
            .fatal(err, fmt!("reading the backend directory"));
        Source::Failed
    }

    /// Does what the state of the frontend asks for.
    fn follow_frontend(self: &Arc<Self>, life: &mut Lifecycle) {
        match State::from_number(self.frontend_state.load(Relaxed)) {
            State::Initialising => match self.dev().state() {
                State::InitWait | State::Initialising => {}
                // There is nothing to connect to.
                _ if matches!(life.source, Source::Failed) => {}
                State::Closed | State::Closing | State::Connected => {
                    // A new kernel in the guest, or a new driver.
                    self.disconnect(life);
                    self.speaker.info_limited(fmt!("prepare for reconnect"));
                    self.binding.switch_state(State::InitWait);
                }
                _ => {}
            },
            State::InitWait => {}
            State::Initialised | State::Connected => {
                if self.quiesce.load(Relaxed) {
                    return;
                }
                let resumed = core::mem::take(&mut self.view.lock().quiesced);
                if self.dev().state() != State::Connected {
                    self.connect(life);
                } else if resumed {
                    self.connect_again(life);
                }
            }
            State::Closing => self.binding.switch_state(State::Closing),
            State::Closed => {
                self.disconnect(life);
                life.former = None;
                if let Some(refused) = &mut life.refused {
                    refused.begin_anew();
                }
                let online = self.dev().is_online();
                if online == Ok(false) {
                    return self.leave(life);
                }
                self.binding.switch_state(State::Closed);
                if online.is_err() || self.dev().state() != State::Closed {
                    // The toolstack or the frontend may be waiting for what we could not do.
                    self.look_again(life);
                }
            }
            State::Unknown => {
                self.disconnect(life);
                self.leave(life);
            }
            State::Reconfiguring | State::Reconfigured | State::Invalid => {
                self.refuse(
                    EINVAL,
                    fmt!("the frontend is in a state that it cannot be in"),
                );
            }
        }
    }

    /// Does not serve the frontend as it is, and says why: in the log unless the guest has caused too many lines there, in
    /// the node `error` each time that it is about to close.
    fn refuse(&self, err: Error, why: fmt::Arguments<'_>) {
        if self.speaker.permits() {
            self.binding.fatal(err, why);
        } else if self.dev().state() != State::Closing {
            self.binding.fatal_unlogged(err, why);
        }
    }

    /// The disk is closed and nobody wants it any more: publishes that, and has the device removed.
    fn leave(self: &Arc<Self>, life: &mut Lifecycle) {
        life.source = Source::Removed;
        self.show(life);
        self.unregister.store(true, Relaxed);
        // Devices are unregistered in the xenwatch thread. Writing the state brings us there: the
        // watch of our directory fires, even if the value is the one that was there.
        let written = if self.dev().state() != State::Closed {
            self.binding.switch_state(State::Closed);
            self.dev().state() == State::Closed
        } else {
            // Without the directory, the xenbus removes the device by itself.
            self.binding
                .publish(|xbt| xbt.write(self.name(), c"state", fmt!("{}", State::Closed as u32)))
                .is_ok()
        };
        if !written {
            self.look_later();
        }
    }
}

impl Show for Vbd {
    fn state(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.view.lock();
        match &view.medium {
            Shown::Waits => f.write_str("medium: waits for the toolstack\n")?,
            Shown::Refused => f.write_str("medium: refused, see the kernel log\n")?,
            Shown::GivenUp => f.write_str("medium: given up\n")?,
            Shown::Open(medium) => medium.write(f)?,
        }
        writeln!(
            f,
            "mode: {}\nstate: {:?}, frontend: {:?}",
            view.mode().to_str().unwrap_or(""),
            self.dev().state(),
            State::from_number(self.frontend_state.load(Relaxed)),
        )?;
        match &view.connection {
            Some(connection) => connection.write(f),
            None => Ok(()),
        }
    }

    fn latency(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stats.latency.write(f)
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

impl WorkItem<2> for Vbd {
    type Pointer = Arc<Vbd>;

    fn run(this: Arc<Vbd>) {
        this.hide();
    }
}

impl Watcher for Vbd {
    fn changed(this: Arc<Self>, path: &[u8], ctx: &InXenwatch) {
        if this.binding.is_over() {
            return;
        }
        match path.rsplit(|byte| *byte == b'/').next() {
            Some(b"state") => {
                if this.unregister.load(Relaxed) && !this.binding.unregister(ctx) {
                    this.look_later();
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
