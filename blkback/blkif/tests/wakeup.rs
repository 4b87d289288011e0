// SPDX-License-Identifier: GPL-2.0

//! No wakeup is lost: a model checker for the event protocol.
//!
//! The backend is the real [`BackRing`] in the loop that the crate documentation shows. Before
//! each of its accesses to shared memory, a frontend may run, in steps of one access each. The
//! backend's stores stay in a store buffer, as on x86, until a full barrier, or until the checker
//! decides to let the oldest one out. So a missing barrier is found, like any other mistake, by
//! both ends sleeping for good.
//!
//! One test tries all schedules with a limited number of switches, another one tries random ones.

use std::{
    cell::RefCell,
    collections::VecDeque, //
};

use blkif::{
    parse,
    Abi,
    BackRing,
    Disk,
    RawSlot,
    SharedRing,
    Status, //
};

const ABI: Abi = Abi::Native;

/// Makes the decisions of one run.
trait Choose {
    /// Returns a number below `options`.
    fn choose(&mut self, options: usize) -> usize;
}

/// Goes through all sequences of decisions, one for each run.
#[derive(Default)]
struct Exhaustive {
    /// For each decision what was taken and of how many.
    trail: Vec<(usize, usize)>,
    position: usize,
}

impl Choose for Exhaustive {
    fn choose(&mut self, options: usize) -> usize {
        if self.position == self.trail.len() {
            self.trail.push((0, options));
        }
        let (chosen, of) = self.trail[self.position];
        assert_eq!(of, options, "runs are reproducible");
        self.position += 1;
        chosen
    }
}

impl Exhaustive {
    /// Prepares the next run; false if there is none.
    fn advance(&mut self) -> bool {
        self.position = 0;
        while let Some((chosen, of)) = self.trail.pop() {
            if chosen + 1 < of {
                self.trail.push((chosen + 1, of));
                return true;
            }
        }
        false
    }
}

/// Decides at random (xorshift64).
struct Random(u64);

impl Choose for Random {
    fn choose(&mut self, options: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % options
    }
}

/// Where the frontend is. Each state is left by one step of at most one shared access.
#[derive(Clone, Copy, PartialEq, Debug)]
enum At {
    /// Write a request to its slot.
    Write,
    /// Store `req_prod`.
    Push,
    /// Load `req_event`; send an event if it is wanted.
    CheckNotify { old: u32 },
    /// Load `rsp_prod` and take the responses up to there.
    Collect,
    /// Store `rsp_event`.
    SetEvent,
    /// Load `rsp_prod` once more.
    FinalCheck,
    /// Wait for an event.
    Sleep,
}

#[derive(Clone, Copy)]
enum Store {
    ReqEvent(u32),
    RspProd(u32),
    Slot(usize, [u32; 3]),
}

struct World<'a> {
    choices: &'a mut dyn Choose,
    /// How many switches between the two ends are left; none are counted if `None`.
    switches: Option<u32>,
    frontend_was_last: bool,

    req_prod: u32,
    req_event: u32,
    rsp_prod: u32,
    rsp_event: u32,
    slots: Vec<[u32; 28]>,
    /// The backend's stores that nobody else sees yet.
    buffer: VecDeque<Store>,
    event_for_backend: bool,
    event_for_frontend: bool,

    at: At,
    /// How many requests the frontend sends in all.
    total: u32,
    sent: u32,
    req_prod_pvt: u32,
    rsp_cons: u32,
    unanswered: Vec<u32>,
}

impl World<'_> {
    fn drain_one(&mut self) {
        match self.buffer.pop_front() {
            Some(Store::ReqEvent(index)) => self.req_event = index,
            Some(Store::RspProd(index)) => self.rsp_prod = index,
            Some(Store::Slot(slot, words)) => self.slots[slot][..3].copy_from_slice(&words),
            None => {}
        }
    }

    fn drain(&mut self) {
        while !self.buffer.is_empty() {
            self.drain_one();
        }
    }

    fn slot(&self, index: u32) -> usize {
        index as usize & (self.slots.len() - 1)
    }

    fn can_write(&self) -> bool {
        let used = self.req_prod_pvt.wrapping_sub(self.rsp_cons) as usize;
        self.sent < self.total && used < self.slots.len()
    }

    fn all_done(&self) -> bool {
        self.sent == self.total && self.unanswered.is_empty()
    }

    fn frontend_can_run(&self) -> bool {
        self.at != At::Sleep || self.event_for_frontend
    }

    /// Runs one step of the frontend.
    fn frontend(&mut self) {
        self.at = match self.at {
            At::Write => {
                let slot = self.slot(self.req_prod_pvt);
                // Reads of one sector; `id` says which of the requests it is.
                self.slots[slot][..8].copy_from_slice(&[0x0100, 0, self.sent, 0, 1, 0, 5, 0]);
                self.unanswered.push(self.sent);
                self.sent += 1;
                self.req_prod_pvt = self.req_prod_pvt.wrapping_add(1);
                if self.can_write() && self.choices.choose(2) == 1 {
                    At::Write
                } else {
                    At::Push
                }
            }
            At::Push => {
                let old = self.req_prod;
                self.req_prod = self.req_prod_pvt;
                At::CheckNotify { old }
            }
            At::CheckNotify { old } => {
                let new = self.req_prod_pvt;
                if new.wrapping_sub(self.req_event) < new.wrapping_sub(old) {
                    self.event_for_backend = true;
                }
                At::Collect
            }
            At::Collect => {
                while self.rsp_cons != self.rsp_prod {
                    let [id, _, rest, ..] = self.slots[self.slot(self.rsp_cons)];
                    let place = self.unanswered.iter().position(|&sent| sent == id);
                    self.unanswered
                        .remove(place.unwrap_or_else(|| panic!("{id} was not asked for")));
                    assert_eq!(rest, 0, "operation and status");
                    self.rsp_cons = self.rsp_cons.wrapping_add(1);
                }
                // Without anything to wait for, it goes on; otherwise it may do so.
                if self.can_write() && (self.unanswered.is_empty() || self.choices.choose(2) == 0) {
                    At::Write
                } else {
                    At::SetEvent
                }
            }
            At::SetEvent => {
                self.rsp_event = self.rsp_cons.wrapping_add(1);
                At::FinalCheck
            }
            At::FinalCheck if self.rsp_prod != self.rsp_cons => At::Collect,
            At::FinalCheck => At::Sleep,
            At::Sleep => {
                assert!(self.event_for_frontend);
                self.event_for_frontend = false;
                At::Collect
            }
        };
    }

    /// Lets the frontend run, and stores come out of the buffer, before an access of the backend.
    fn interleave(&mut self) {
        loop {
            let frontend = self.frontend_can_run();
            let buffered = !self.buffer.is_empty();
            let switches = self.switches != Some(0);
            // The first option is to go on with the end that ran last.
            let mut options = Vec::new();
            if self.frontend_was_last && frontend {
                options.push('f');
            }
            if !self.frontend_was_last || !frontend || switches {
                options.push('b');
            }
            if !self.frontend_was_last && frontend && switches {
                options.push('f');
            }
            if buffered && switches {
                options.push('s');
            }
            let chosen = match options.len() {
                1 => 0,
                many => self.choices.choose(many),
            };
            if let (Some(switches), 1..) = (self.switches.as_mut(), chosen) {
                *switches -= 1;
            }
            match options[chosen] {
                'f' => {
                    self.frontend_was_last = true;
                    self.frontend();
                }
                's' => self.drain_one(),
                _ => {
                    self.frontend_was_last = false;
                    return;
                }
            }
        }
    }
}

struct Shared<'a>(RefCell<World<'a>>);

impl SharedRing for Shared<'_> {
    fn req_prod(&self) -> u32 {
        let mut world = self.0.borrow_mut();
        world.interleave();
        world.req_prod
    }

    fn set_req_event(&self, index: u32) {
        let mut world = self.0.borrow_mut();
        world.interleave();
        world.buffer.push_back(Store::ReqEvent(index));
    }

    fn rsp_prod(&self) -> u32 {
        let mut world = self.0.borrow_mut();
        world.interleave();
        world.rsp_prod
    }

    fn set_rsp_prod(&self, index: u32) {
        let mut world = self.0.borrow_mut();
        world.interleave();
        world.buffer.push_back(Store::RspProd(index));
    }

    fn rsp_event(&self) -> u32 {
        let mut world = self.0.borrow_mut();
        world.interleave();
        world.rsp_event
    }

    fn full_barrier(&self) {
        let mut world = self.0.borrow_mut();
        world.interleave();
        world.drain();
    }

    fn read_slot(&self, byte_offset: usize, words: &mut [u32]) {
        let mut world = self.0.borrow_mut();
        world.interleave();
        words.copy_from_slice(&world.slots[byte_offset / ABI.slot_size()]);
    }

    fn write_slot(&self, byte_offset: usize, words: &[u32; 3]) {
        let mut world = self.0.borrow_mut();
        world.interleave();
        let slot = byte_offset / ABI.slot_size();
        world.buffer.push_back(Store::Slot(slot, *words));
    }
}

/// Runs `total` requests over a ring of `slots` slots to the end.
fn run(
    choices: &mut dyn Choose,
    switches: Option<u32>,
    slots: usize,
    start: u32,
    total: u32,
    publish_each: bool,
) {
    let shared = Shared(RefCell::new(World {
        choices,
        switches,
        frontend_was_last: false,
        req_prod: start,
        req_event: start.wrapping_add(1),
        rsp_prod: start,
        rsp_event: start.wrapping_add(1),
        slots: vec![[0; 28]; slots],
        buffer: VecDeque::new(),
        event_for_backend: false,
        event_for_frontend: false,
        at: At::Write,
        total,
        sent: 0,
        req_prod_pvt: start,
        rsp_cons: start,
        unanswered: Vec::new(),
    }));
    let disk = Disk {
        sectors: 10,
        logical_block_size: 512,
        readonly: false,
        flush: false,
        barrier: false,
        discard: None,
        max_indirect_segments: 0,
    };
    let send_event = || {
        // A hypercall orders everything.
        let mut world = shared.0.borrow_mut();
        world.interleave();
        world.drain();
        world.event_for_frontend = true;
    };

    let ring_bytes = 64 + slots * ABI.slot_size();
    let mut ring = BackRing::attach(&shared, ABI, ring_bytes).unwrap();
    let mut slot = RawSlot::new();
    loop {
        while ring.next_request(&shared, &mut slot).unwrap() {
            let parsed = parse(ABI, &slot, &disk).unwrap();
            assert!(ring.put_response(&shared, parsed.response(Status::Okay)));
            if publish_each && ring.publish(&shared) {
                send_event();
            }
        }
        if ring.publish(&shared) {
            send_event();
        }
        if ring.final_check(&shared, 1).unwrap() {
            continue;
        }

        // The backend sleeps. Its stores get out, perhaps a little later, and the frontend goes on.
        let mut world = shared.0.borrow_mut();
        world.interleave();
        world.drain();
        while !world.event_for_backend {
            if !world.frontend_can_run() {
                assert!(world.all_done(), "lost wakeup: both ends sleep");
                return;
            }
            world.frontend_was_last = true;
            world.frontend();
        }
        world.event_for_backend = false;
    }
}

/// All schedules with up to four switches (a store that leaves the buffer early counts as one).
#[test]
fn all_schedules() {
    let mut runs = 0u32;
    for (slots, total, switches) in [(1, 2, 4), (2, 2, 4), (2, 3, 3), (4, 3, 3)] {
        for start in [0, u32::MAX - 1] {
            for publish_each in [false, true] {
                let mut choices = Exhaustive::default();
                loop {
                    run(
                        &mut choices,
                        Some(switches),
                        slots,
                        start,
                        total,
                        publish_each,
                    );
                    runs += 1;
                    if !choices.advance() {
                        break;
                    }
                }
            }
        }
    }
    assert!(runs > 10_000, "only {runs} schedules");
    println!("{runs} schedules");
}

/// Long runs with any number of switches, over the wrap-around of the indices.
#[test]
fn random_schedules() {
    for seed in 1..=1500u64 {
        let mut choices = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let slots = 1 << (seed % 4);
        let start = u32::MAX - (seed % 50) as u32;
        run(&mut choices, None, slots, start, 60, seed % 3 == 0);
    }
}
