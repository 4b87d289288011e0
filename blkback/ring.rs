// SPDX-License-Identifier: GPL-2.0

//! One ring and its worker; how the worker takes requests is in [`intake`], how it answers them in [`answer`].
//!
//! The worker is a thread that runs when there are events or completions: waking one costs less than
//! queueing a work item, and an administrator sees what each disk costs dom0, and can limit it. All
//! that the worker does, it does for several requests at a time: it takes some from the ring, maps
//! their grants together, submits them under one plug, and later unmaps what is done together, and
//! answers with one event. When it tells a busy frontend of answers is up to [`Moderation`].
//!
//! Owns the ring's memory, the pages for grants and the requests in flight.
//!
//! Lock order: [`Ring::state`], held by the worker while it works, then that of the [`Gate`];
//! completions take none. Nobody else takes a ring's state once it has been started, until it is drained: what it is
//! doing is in [`View`].

#![forbid(unsafe_code)]

use blkif::{
    abi::PAGE_SIZE,
    Abi,
    BackRing,
    Disk,
    Moderation,
    RawSlot,
    RingError, //
};
use kernel::{
    fmt, impl_has_delayed_work, new_delayed_work, new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc,
        Mutex,
        SetOnce, //
    },
    time::msecs_to_jiffies,
    workqueue::{
        DelayedWork,
        WorkItem, //
    },
};
use xen_bindings::{
    clock,
    completion::Completion,
    grants::{
        copy::Copier,
        Grants, //
    },
    mem,
    module::{
        log::Speaker,
        params, //
    },
    request::{
        list::{
            DoneList,
            List, //
        },
        memory::Spares,
        Done,
        Staged, //
    },
    thread::{
        Thread,
        Wanted,
        Worker, //
    },
    work::{
        self,
        cancel_delayed_work,
        OwnedQueue, //
    },
    xen::{
        device::Device,
        evtchn::{
            self,
            EventChannel, //
        },
        ring::RingMemory, //
    }, //
};

use crate::{
    guest::Wake,
    medium::Medium,
    stats::{
        Counts,
        Stats, //
    }, //
};

mod answer;
pub(crate) mod gate;
mod intake;
mod pending;
mod view;

use gate::{
    Gate,
    Seen, //
};
use pending::Pending;
use view::View;

/// Pause before grants are looked at again whose pages somebody still holds.
const HELD_PAUSE: kernel::time::Delta = kernel::time::Delta::from_millis(5);

/// Pause before a request is tried again that waits for memory while nothing is in flight that could bring some,
/// or for the pages that other guests, or whoever else maps pages, have mapped.
const SHORTAGE_PAUSE: kernel::time::Delta = kernel::time::Delta::from_millis(20);

/// When memory is short, what has not been used for this time is given back, in milliseconds, at most once in the same
/// time. The xenbus asks at each pass of the kernel's reclaim, as long as that goes on; what is in use
/// would have to be mapped and allocated again at once.
const RECLAIM_PAUSE: u32 = 1000;

/// After this many rounds of taking and answering requests the worker looks at what else there is to do.
const ROUNDS: u32 = 256;

/// Longest time between two looks at what has not been used for a while, in milliseconds: after so
/// long a change of the module's parameter takes effect.
const LONGEST_PAUSE: u32 = 5000;

/// A connected ring.
#[pin_data]
pub(crate) struct Ring {
    /// Requests of the disk that have to wait.
    blocking: Arc<OwnedQueue>,
    medium: Arc<Medium>,
    speaker: Arc<Speaker>,
    /// Among the rings of the disk.
    number: usize,
    gate: Arc<Gate>,
    stats: Arc<Stats>,
    domid: u16,
    /// Requests whose I/O is done, added in any context.
    done: DoneList<Pending>,
    /// The worker runs, and will look at `done` before it stops.
    busy: Atomic<bool>,
    /// An event has arrived that has not been acknowledged.
    event: Atomic<bool>,
    /// Memory that has not been used for a while is to be given back.
    idle: Atomic<bool>,
    /// Memory is short: all that is not in use is to be given back.
    reclaim: Atomic<bool>,
    /// When that was last asked for ([`clock::nanoseconds`]).
    reclaimed: Atomic<u64>,
    /// No more requests are taken.
    stopping: Atomic<bool>,
    /// The guest has room for it in its queue.
    joined: Atomic<bool>,
    #[pin]
    drained: Completion,
    #[pin]
    state: Mutex<WorkerState>,
    view: View,
    wanted: Wanted,
    /// Set by [`Ring::prepare`].
    thread: SetOnce<Thread<Ring>>,
    #[pin]
    give_back: DelayedWork<Ring>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for Ring { self.give_back }
}

/// What the rings of a connection have in common.
pub(crate) struct Common<'a> {
    pub(crate) dev: &'a Device,
    pub(crate) speaker: &'a Arc<Speaker>,
    pub(crate) disk: Disk,
    pub(crate) medium: &'a Arc<Medium>,
    pub(crate) stats: &'a Arc<Stats>,
    pub(crate) gate: &'a Arc<Gate>,
    /// For requests that have to wait.
    pub(crate) blocking: &'a Arc<OwnedQueue>,
    /// Grants stay mapped.
    pub(crate) persistent: bool,
}

/// What only the worker uses.
struct WorkerState {
    /// None once the ring has been shut down.
    memory: Option<RingMemory>,
    /// From the start of the ring until [`Ring::unbind`]. It has a reference to the ring.
    channel: Option<EventChannel<Ring>>,
    back: BackRing,
    moderation: Moderation,
    /// What the frontend has been told; of the size, what it is now.
    disk: Disk,
    supplies: Supplies,
    /// No request has been taken since an event was acknowledged.
    unserved: bool,
    /// `give_back` waits for its time.
    giving_back: bool,
    /// Memory was short: what is in use now is to be given back at the next look, unless it is used again.
    reclaiming: bool,
    counts: Counts,
    /// Where requests are copied to from the ring.
    slot: RawSlot,
    parked: Parked,
    /// Requests that Xen had no room to map.
    no_room: List<Staged<Pending>>,
    seen: Seen,
    /// Requests that are done, but whose pages somebody still holds.
    held: List<Done<Pending>>,
    /// The frontend has broken the ring; nothing more is taken from it.
    broken: bool,
}

/// What requests are made from.
struct Supplies {
    grants: Grants,
    spares: Spares<Pending>,
    /// Made when the first indirect request arrives.
    copier: Option<Copier>,
}

/// A request taken from the ring that has to wait: none is taken behind it.
enum Parked {
    Nothing,
    /// Until there is what it is short of.
    Short(RawSlot, Shortage),
    /// A barrier: until all other requests of the disk have been answered, and there is what it was short of then.
    Barrier(RawSlot, Option<Shortage>),
}

impl Parked {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    fn missing(&self) -> Option<Shortage> {
        match self {
            Self::Nothing => None,
            Self::Short(_, missing) => Some(*missing),
            Self::Barrier(_, missing) => *missing,
        }
    }
}

/// What is missing for a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shortage {
    Memory,
    /// The guest has too much mapped.
    Mappings,
}

impl Ring {
    /// Prepares to serve the ring in `memory`. Nothing is served before [`Ring::start`]. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or `ENOSPC` if the guest has too much mapped already.
    pub(crate) fn new(
        common: &Common<'_>,
        number: usize,
        memory: RingMemory,
        back: BackRing,
    ) -> Result<Arc<Self>> {
        let stats = common.stats;
        let domid = common.dev.otherend_id();
        let pages = u32::try_from(memory.bytes().wrapping_div(PAGE_SIZE as usize))?;
        let grants = Grants::new(
            domid,
            common.persistent,
            pages,
            stats.guest.share().clone(),
            common.speaker.clone(),
        )
        .inspect_err(|err| {
            if *err == ENOSPC {
                common.speaker.warn_limited(fmt!(
                    "the guest has {} pages mapped, too many for another ring",
                    stats.guest.share().mapped(),
                ));
            }
        })?;
        let state = WorkerState {
            memory: Some(memory),
            channel: None,
            back,
            moderation: Moderation::new(),
            disk: common.disk,
            supplies: Supplies {
                grants,
                spares: Spares::new()?,
                copier: None,
            },
            unserved: true,
            giving_back: false,
            reclaiming: false,
            counts: Counts::default(),
            slot: RawSlot::new(),
            parked: Parked::Nothing,
            no_room: List::new(),
            seen: Seen::new(),
            held: List::new(),
            broken: false,
        };
        let ring = Arc::pin_init(
            pin_init!(Self {
                blocking: common.blocking.clone(),
                medium: common.medium.clone(),
                speaker: common.speaker.clone(),
                number,
                gate: common.gate.clone(),
                stats: stats.clone(),
                domid,
                done: DoneList::new(),
                busy: Atomic::new(false),
                event: Atomic::new(false),
                idle: Atomic::new(false),
                reclaim: Atomic::new(false),
                reclaimed: Atomic::new(0),
                stopping: Atomic::new(false),
                joined: Atomic::new(false),
                drained <- Completion::new(),
                state <- new_mutex!(state),
                view: View::new(),
                wanted: Wanted::default(),
                thread: SetOnce::new(),
                give_back <- new_delayed_work!("Ring::give_back"),
            }),
            GFP_KERNEL,
        )?;
        ring.stats.guest.join()?;
        ring.joined.store(true, Relaxed);
        Ok(ring)
    }

    pub(crate) fn name(&self) -> &CStr {
        self.speaker.name()
    }

    /// Its number among the rings of the disk.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Makes the worker. May sleep.
    ///
    /// # Errors
    ///
    /// As [`Thread::new`].
    pub(crate) fn prepare(self: &Arc<Self>, name: &CStr) -> Result {
        self.thread.populate(Thread::new(self.clone(), name)?);
        Ok(())
    }

    /// Looks anew where the ring stands. To be called before [`Ring::start`] only. May sleep.
    ///
    /// # Errors
    ///
    /// As [`BackRing::attach`].
    pub(crate) fn attach(&self, abi: Abi) -> Result<(), RingError> {
        let mut state = self.state.lock();
        if let Some(memory) = &state.memory {
            state.back = BackRing::attach(memory, abi, memory.bytes())?;
        }
        self.view.update(&state);
        Ok(())
    }

    /// Begins to serve requests, with an event channel whose handler it is. May sleep.
    pub(crate) fn start(&self, channel: EventChannel<Ring>) {
        // A backend before us may have answered when it could not tell the frontend any more.
        self.state.lock().channel.insert(channel).notify();
        // The frontend may have sent requests before we listened.
        self.schedule();
    }

    /// Takes no more requests. Any context.
    pub(crate) fn stop(self: &Arc<Self>) {
        self.stopping.store(true, Relaxed);
        self.schedule();
    }

    /// After [`Ring::stop`], waits until the requests in flight are answered. May sleep, for as long
    /// as the storage takes.
    pub(crate) fn drain(&self) {
        if self.thread.as_ref().is_some() {
            self.drained.wait();
        }
    }

    /// After [`Ring::drain`], unbinds the event channel: there are no more events. May sleep.
    pub(crate) fn unbind(&self) {
        let channel = self.state.lock().channel.take();
        drop(channel);
    }

    /// After [`Ring::unbind`], unmaps the ring. May sleep.
    pub(crate) fn shut_down(self: &Arc<Self>) {
        cancel_delayed_work::<Self, 0>(self);
        if let Some(thread) = self.thread.as_ref() {
            thread.stop();
        }
        if self.joined.xchg(false, Relaxed) {
            self.stats.guest.leave(&**self);
        }
        let mut state = self.state.lock();
        state.memory = None;
        while !state.supplies.grants.give_back(0) {
            // Somebody still holds a page, as a network card that sends it again.
            kernel::time::delay::fsleep(HELD_PAUSE);
        }
    }

    /// What it is doing, for an administrator. Waits for nothing.
    pub(crate) fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.view.write(f, self.number, self.stopping.load(Relaxed))
    }

    /// Memory is short: has the ring return what it does not use. Any context.
    pub(crate) fn reclaim(self: &Arc<Self>) {
        let now = clock::nanoseconds();
        let since = now.saturating_sub(self.reclaimed.load(Relaxed));
        if since >= u64::from(RECLAIM_PAUSE).wrapping_mul(1_000_000) {
            self.reclaimed.store(now, Relaxed);
            self.reclaim.store(true, Relaxed);
            self.schedule();
        }
    }

    /// Has the worker run, once it has been prepared. Any context.
    pub(crate) fn schedule(&self) {
        if let Some(thread) = self.thread.as_ref() {
            thread.wake(self);
        }
    }

    /// Takes a request whose I/O is done. Any context.
    pub(crate) fn completed(self: &Arc<Self>, done: Done<Pending>) {
        // The addition is fully ordered against the load, as the worker's store is against its look
        // at the list: either it sees the request, or we see that it does not run.
        self.done.push(done);
        if !self.busy.load(Relaxed) {
            self.schedule();
        }
    }

    /// The worker. After how many nanoseconds it has to look again, whether woken or not.
    fn serve(self: &Arc<Self>) -> Option<u64> {
        let mut state = self.state.lock();
        if state.channel.is_none() && !self.stopping.load(Relaxed) {
            // An event before the start, which will acknowledge it.
            return None;
        }
        self.busy.store(true, Relaxed);
        let event = self.event.xchg(false, Full);
        let mut rounds = 0u32;
        let mut look_at_held = !state.held.is_empty();
        self.map_again(&mut state);
        let mut hold;
        loop {
            let mut answered = self.answer(&mut state, look_at_held);
            look_at_held = false;
            if self.take(&mut state) {
                state.unserved = false;
                // Some devices are done at once.
                self.answer(&mut state, false);
                answered = true;
            }
            if answered {
                mem::cond_resched();
                rounds = rounds.wrapping_add(1);
                self.view.in_flight.store(state.back.outstanding(), Relaxed);
                if rounds == ROUNDS {
                    // The house has to be kept, too.
                    self.publish(&mut state);
                    self.stats.add(&mut state.counts);
                    hold = None;
                    self.busy.store(false, Relaxed);
                    self.schedule();
                    break;
                }
                if self.can_go_on(&mut state) {
                    continue;
                }
            }
            // Tell what has not been told, ask for an event, and look once more.
            hold = self.tell(&mut state);
            if self.more_requests(&mut state, hold) {
                continue;
            }
            // Fully ordered against the load, as is the addition to the list in `completed`.
            self.busy.xchg(false, Full);
            if self.done.is_empty() {
                break;
            }
            self.busy.store(true, Relaxed);
        }
        if self.gate.is_closed() || state.is_held_up() {
            // Not for want of requests.
            state.unserved = false;
            self.stats.add(&mut state.counts);
        }
        if self.gate.is_closed() {
            let own = u32::from(matches!(state.parked, Parked::Barrier(..)));
            if state.back.outstanding() == own {
                self.gate.quiet(self.number, &mut state.seen);
            }
        }
        self.keep_house(&mut state);
        if event {
            if let Some(channel) = &state.channel {
                channel.eoi(state.unserved);
                state.unserved = true;
            }
        }
        if self.stopping.load(Relaxed)
            && state.back.outstanding() == 0
            && state.back.unpublished() == 0
        {
            self.drained.complete_all();
        }
        self.view.update(&state);
        let held = (!state.held.is_empty()).then_some(HELD_PAUSE);
        let short = match state.parked.missing() {
            // Nobody tells when Xen has room again.
            _ if !state.no_room.is_empty() => true,
            // What is in flight brings memory when it is done.
            Some(Shortage::Memory) => state.back.outstanding() <= 1,
            // The others in the queue are woken when it is their turn.
            Some(Shortage::Mappings) => self.stats.guest.may_ask(&**self),
            None => false,
        };
        let [held, short] = [held, short.then_some(SHORTAGE_PAUSE)]
            .map(|pause| pause.map(|pause| pause.as_nanos().unsigned_abs()));
        let hold = hold.map(|hold| hold.nanoseconds);
        [hold, held, short].into_iter().flatten().min()
    }

    /// Is there something to do, as far as is known without asking for an event?
    fn can_go_on(&self, state: &mut WorkerState) -> bool {
        let WorkerState {
            memory: Some(memory),
            back,
            parked,
            no_room,
            ..
        } = state
        else {
            return false;
        };
        if !no_room.is_empty() {
            return !self.done.is_empty();
        }
        !parked.is_empty() || !self.done.is_empty() || back.has_requests(memory).unwrap_or(true)
    }

    /// Returns memory and persistent grants that the ring can do without.
    fn keep_house(self: &Arc<Self>, state: &mut WorkerState) {
        let waiting = u32::from(!state.parked.is_empty());
        let idle = state.back.outstanding() == waiting;
        let Supplies { grants, spares, .. } = &mut state.supplies;
        grants.purge();
        if idle {
            grants.settle(true);
            self.stats.guest.wake_others(&**self);
        }
        if self.reclaim.load(Relaxed) {
            self.reclaim.store(false, Relaxed);
            grants.give_back(msecs_to_jiffies(RECLAIM_PAUSE));
            spares.trim();
            state.reclaiming = true;
        }
        let unused = if state.reclaiming {
            Some(msecs_to_jiffies(RECLAIM_PAUSE))
        } else {
            params::persistent_grant_unused()
        };
        if self.idle.load(Relaxed) {
            self.idle.store(false, Relaxed);
            state.giving_back = false;
            state.reclaiming = false;
            if let Some(unused) = unused {
                grants.give_back(unused);
                spares.trim();
            }
        }
        if let (false, Some(unused)) = (state.giving_back, unused) {
            let unused = unused.min(msecs_to_jiffies(LONGEST_PAUSE));
            if (grants.has_spare() || spares.has_spare()) && !self.stopping.load(Relaxed) {
                state.giving_back = true;
                // Not the disk's queue, in which all may wait for the storage.
                let _ = work::shared().enqueue_delayed::<Arc<Self>, 0>(self.clone(), unused);
            }
        }
    }
}

impl WorkerState {
    /// Does a request that has been taken hold up those behind it?
    fn is_held_up(&self) -> bool {
        !self.parked.is_empty() || !self.no_room.is_empty()
    }
}

impl Wake for Ring {
    fn wake(&self) {
        self.schedule();
    }
}

impl Worker for Ring {
    fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    fn work(this: &Arc<Ring>) -> Option<u64> {
        this.serve()
    }
}

impl WorkItem for Ring {
    type Pointer = Arc<Ring>;

    fn run(this: Arc<Ring>) {
        this.idle.store(true, Relaxed);
        this.schedule();
    }
}

impl evtchn::Handler for Ring {
    // As the in-tree driver's.
    const NAME: &'static CStr = c"blkif-backend";

    fn event(this: &Arc<Self>) {
        this.event.store(true, Relaxed);
        this.schedule();
    }
}
