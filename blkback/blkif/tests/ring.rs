// SPDX-License-Identifier: GPL-2.0

//! Ring indices: unit tests, and a comparison with a simple model under random orders of events.

mod common;

use std::collections::{
    HashMap,
    VecDeque, //
};

use blkif::{
    abi::*,
    parse,
    Abi,
    BackRing,
    Disk,
    Response,
    RingError,
    Status, //
};
use proptest::prelude::*;

use common::{
    next,
    response_of,
    Memory,
    OnWire,
    Wire,
    ABIS,
    DISK,
    FILLER, //
};

/// Indices at which rings start in these tests: a new one, and some that will wrap around.
const STARTS: [u32; 6] = [0, 1, 31, u32::MAX - 40, u32::MAX - 1, u32::MAX];

fn ok(id: u64) -> Response {
    Response {
        id,
        operation: OP_READ,
        status: Status::Okay,
    }
}

fn request(id: u64) -> Wire {
    Wire {
        id,
        ..Wire::new(OP_READ, id % 100, &[(id as u32, 1, 2)])
    }
}

fn overflow(req_prod: u32, rsp_prod: u32, entries: u32) -> RingError {
    RingError::RequestOverflow {
        req_prod,
        rsp_prod,
        entries,
    }
}

/// Bytes of a ring with this many slots.
fn ring_of(abi: Abi, slots: usize) -> usize {
    RING_HEADER_SIZE + slots * abi.slot_size()
}

#[test]
fn attach_needs_a_slot() {
    for abi in ABIS {
        let memory = Memory::new(4096, 0);
        for ring_bytes in [0, 1, 63, 64, ring_of(abi, 1) - 1] {
            assert_eq!(
                BackRing::attach(&memory, abi, ring_bytes).unwrap_err(),
                RingError::TooSmall { ring_bytes }
            );
        }
        for (ring_bytes, entries) in [(ring_of(abi, 1), 1), (ring_of(abi, 3), 2), (4096, 32)] {
            let ring = BackRing::attach(&memory, abi, ring_bytes).unwrap();
            assert_eq!((ring.entries(), ring.abi()), (entries, abi));
            assert_eq!(ring.outstanding(), 0);
        }
        assert_eq!(memory.stores.get(), 0);
    }
}

/// A ring in use goes on behind the last response.
#[test]
fn attach_resumes() {
    for abi in ABIS {
        for start in STARTS {
            let memory = Memory::new(4096, start);
            for waiting in 0..=32 {
                memory.set(REQ_PROD_OFFSET, start.wrapping_add(waiting));
                for i in 0..waiting {
                    let slot = start.wrapping_add(i) % 32;
                    memory.write_request(abi, slot as usize, &request(i.into()));
                }
                let mut ring = BackRing::attach(&memory, abi, 4096).unwrap();
                assert_eq!(ring.outstanding(), 0);
                for i in 0..waiting {
                    assert_eq!(ring.has_requests(&memory), Ok(true));
                    let slot = next(&mut ring, &memory).unwrap().unwrap();
                    assert_eq!(slot, request(i.into()).slot_of_ring(abi));
                    assert_eq!(ring.outstanding(), i + 1);
                }
                assert_eq!(next(&mut ring, &memory), Ok(None));
                assert_eq!(ring.has_requests(&memory), Ok(false));
            }
            for claimed in [33, 34, 64, 1 << 31, u32::MAX] {
                let req_prod = start.wrapping_add(claimed);
                memory.set(REQ_PROD_OFFSET, req_prod);
                assert_eq!(
                    BackRing::attach(&memory, abi, 4096).unwrap_err(),
                    overflow(req_prod, start, 32)
                );
            }
        }
    }
}

trait SlotOfRing {
    fn slot_of_ring(&self, abi: Abi) -> blkif::RawSlot;
}

impl SlotOfRing for Wire {
    /// The private copy of a request from a ring: as much as the request, and then zeroes.
    fn slot_of_ring(&self, abi: Abi) -> blkif::RawSlot {
        *common::raw_slot(&self.bytes(abi, FILLER)[..abi.request_size()])
    }
}

/// Each request is copied once, and nothing but it.
#[test]
fn one_copy() {
    for abi in ABIS {
        let memory = Memory::new(4096, 0);
        let mut ring = BackRing::attach(&memory, abi, 4096).unwrap();
        for i in 0..32 {
            memory.write_request(abi, i, &request(i as u64));
        }
        memory.set(REQ_PROD_OFFSET, 32);
        for i in 1..=32 {
            next(&mut ring, &memory).unwrap().unwrap();
            assert_eq!(memory.slot_reads.get(), i);
            assert_eq!(memory.read_bytes.get(), i * abi.request_size());
        }
        next(&mut ring, &memory).unwrap();
        assert_eq!(memory.slot_reads.get(), 32);
        assert_eq!(memory.stores.get(), 0);
    }
}

/// A `req_prod` that cannot be is refused whenever it is looked at, and does no harm.
#[test]
fn bogus_producer() {
    for start in STARTS {
        let memory = Memory::new(4096, start);
        let at = |offset: u32| start.wrapping_add(offset);
        let mut ring = BackRing::attach(&memory, Abi::Native, 4096).unwrap();
        memory.set(REQ_PROD_OFFSET, at(3));
        for _ in 0..3 {
            next(&mut ring, &memory).unwrap().unwrap();
        }
        assert!(ring.put_response(&memory, ok(0)));
        // One answered, two outstanding: indices 3 to 33 are possible.
        for bogus in [34, 35, 1 << 31, u32::MAX, 0, 1, 2] {
            memory.set(REQ_PROD_OFFSET, at(bogus));
            let error = overflow(at(bogus), at(1), 32);
            assert_eq!(next(&mut ring, &memory).unwrap_err(), error);
            assert_eq!(ring.has_requests(&memory), Err(error));
            assert_eq!(ring.final_check(&memory, 1), Err(error));
            assert_eq!(ring.outstanding(), 2);
        }
        assert_eq!(memory.get(REQ_EVENT_OFFSET), at(1), "nothing to wait for");
        // What was taken before can still be answered.
        assert!(ring.put_response(&memory, ok(1)));
        assert!(ring.publish(&memory));
        assert_eq!(memory.get(RSP_PROD_OFFSET), at(2));
        for possible in [3, 4, 34] {
            memory.set(REQ_PROD_OFFSET, at(possible));
            assert_eq!(ring.has_requests(&memory), Ok(possible != 3));
        }
    }
    assert_eq!(
        overflow(2, u32::MAX, 32).to_string(),
        "bogus ring requests (2 - 4294967295 = 3, ring size 32)"
    );
    assert_eq!(
        RingError::TooSmall { ring_bytes: 100 }.to_string(),
        "ring of 100 bytes has no room for a request"
    );
}

/// The frontend cannot make the backend take more than the ring holds.
#[test]
fn full_ring() {
    let memory = Memory::new(4096, 0);
    let mut ring = BackRing::attach(&memory, Abi::X86_32, 4096).unwrap();
    memory.set(REQ_PROD_OFFSET, 32);
    for _ in 0..32 {
        next(&mut ring, &memory).unwrap().unwrap();
    }
    assert_eq!(ring.outstanding(), 32);
    assert_eq!(next(&mut ring, &memory), Ok(None));
    memory.set(REQ_PROD_OFFSET, 33);
    let error = overflow(33, 0, 32);
    assert_eq!(next(&mut ring, &memory), Err(error));
    // The answer makes room, once it is on the ring.
    assert!(ring.put_response(&memory, ok(7)));
    assert!(next(&mut ring, &memory).unwrap().is_some());
    assert_eq!(ring.outstanding(), 32);
}

/// A surplus answer does not get onto the ring.
#[test]
fn answer_without_request() {
    let memory = Memory::new(4096, 5);
    let mut ring = BackRing::attach(&memory, Abi::Native, 4096).unwrap();
    assert!(!ring.put_response(&memory, ok(1)));
    assert!(!ring.publish(&memory));
    memory.set(REQ_PROD_OFFSET, 6);
    assert!(!ring.put_response(&memory, ok(1)), "not taken yet");
    next(&mut ring, &memory).unwrap().unwrap();
    assert_eq!(memory.stores.get(), 0);
    assert!(ring.put_response(&memory, ok(1)));
    assert!(!ring.put_response(&memory, ok(1)));
    assert_eq!(memory.stores.get(), 1);
    assert_eq!(ring.outstanding(), 0);
}

/// A response appears with `publish` and not before, and changes no byte behind its fields.
#[test]
fn response_bytes() {
    for abi in ABIS {
        for start in [0, 31, u32::MAX] {
            let memory = Memory::new(4096, start);
            let slot = (start % 32) as usize;
            memory.write_request(abi, slot, &request(1));
            memory.set(REQ_PROD_OFFSET, start.wrapping_add(1));
            let before = memory.slot_bytes(abi, slot);
            let mut ring = BackRing::attach(&memory, abi, 4096).unwrap();
            next(&mut ring, &memory).unwrap().unwrap();
            assert_eq!(memory.slot_bytes(abi, slot), before);

            ring.put_response(
                &memory,
                Response {
                    id: 0x1122_3344_5566_7788,
                    operation: 0xfe,
                    status: Status::NotSupported,
                },
            );
            assert_eq!(memory.get(RSP_PROD_OFFSET), start);
            let after = memory.slot_bytes(abi, slot);
            assert_eq!(response_of(&after), (0x1122_3344_5566_7788, 0xfe, -2));
            assert_eq!(after[9], 0);
            assert_eq!(after[12..], before[12..]);
            assert!(ring.publish(&memory));
            assert_eq!(memory.get(RSP_PROD_OFFSET), start.wrapping_add(1));
            assert_eq!(memory.slot_bytes(abi, slot), after);
            memory.assert_surroundings(abi);
        }
    }
}

/// An event is due if and only if `rsp_event` is one of the indices just published.
#[test]
fn publish_notifies() {
    for start in STARTS {
        for count in 0..=4u32 {
            for event in -8..=8 {
                let memory = Memory::new(4096, start);
                let mut ring = BackRing::attach(&memory, Abi::Native, 4096).unwrap();
                memory.set(REQ_PROD_OFFSET, start.wrapping_add(8));
                for id in 0..8 {
                    next(&mut ring, &memory).unwrap().unwrap();
                    if id < count {
                        ring.put_response(&memory, ok(id.into()));
                    }
                }
                memory.set(RSP_EVENT_OFFSET, start.wrapping_add_signed(event));
                // A frontend may write what it wants where the backend has published.
                memory.set(RSP_PROD_OFFSET, 0x5555_5555);
                let due = (1..=count as i32).contains(&event);
                assert_eq!(ring.publish(&memory), due, "{start} {count} {event}");
                if count > 0 {
                    assert_eq!(memory.get(RSP_PROD_OFFSET), start.wrapping_add(count));
                    assert_eq!(memory.barriers.get(), 1);
                }
                assert!(!ring.publish(&memory), "nothing new");
            }
        }
    }
}

#[test]
fn final_check_asks_for_an_event() {
    for start in STARTS {
        let memory = Memory::new(4096, start);
        let mut ring = BackRing::attach(&memory, Abi::Native, 4096).unwrap();
        memory.set(REQ_EVENT_OFFSET, 0x5555_5555);
        memory.set(REQ_PROD_OFFSET, start.wrapping_add(2));
        assert_eq!(ring.final_check(&memory, 1), Ok(true));
        next(&mut ring, &memory).unwrap().unwrap();
        assert_eq!(ring.final_check(&memory, 1), Ok(true));
        assert_eq!(memory.get(REQ_EVENT_OFFSET), 0x5555_5555, "not asleep yet");
        next(&mut ring, &memory).unwrap().unwrap();
        assert_eq!(ring.final_check(&memory, 1), Ok(false));
        assert_eq!(memory.get(REQ_EVENT_OFFSET), start.wrapping_add(3));
        assert_eq!(memory.barriers.get(), 1);
    }
}

#[test]
fn final_check_asks_for_a_later_event() {
    for start in STARTS {
        let memory = Memory::new(4096, start);
        let mut ring = BackRing::attach(&memory, Abi::Native, 4096).unwrap();
        for (nth, then) in [(5, 5), (1, 1), (0, 1)] {
            assert_eq!(ring.final_check(&memory, nth), Ok(false));
            assert_eq!(memory.get(REQ_EVENT_OFFSET), start.wrapping_add(then));
        }
    }
}

#[test]
fn unpublished_responses_are_of_open_requests() {
    for start in STARTS {
        let memory = Memory::new(4096, start);
        let mut ring = BackRing::attach(&memory, Abi::Native, 4096).unwrap();
        memory.set(REQ_PROD_OFFSET, start.wrapping_add(3));
        memory.set(RSP_EVENT_OFFSET, start.wrapping_add(2));
        for answered in 1..=2 {
            assert!(!ring.wants_event(&memory));
            next(&mut ring, &memory).unwrap().unwrap();
            assert!(ring.put_response(&memory, ok(u64::from(answered))));
            assert_eq!((ring.unpublished(), ring.open()), (answered, 3));
        }
        assert!(ring.wants_event(&memory));
        assert!(ring.publish(&memory));
        assert!(!ring.wants_event(&memory));
        assert_eq!((ring.unpublished(), ring.open()), (0, 1));
    }
}

/// What can happen on a ring; numbers select among what is possible.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The frontend writes requests.
    Write(u8),
    /// The frontend publishes them.
    Push,
    /// The frontend takes all responses.
    Collect,
    /// The backend takes requests.
    Take(u8),
    /// The backend answers one request of those taken.
    Answer(u8),
    /// The backend publishes responses.
    Publish,
    /// The backend looks for requests before sleeping.
    FinalCheck,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..12u8).prop_map(Step::Write),
        3 => Just(Step::Push),
        2 => Just(Step::Collect),
        3 => (1..12u8).prop_map(Step::Take),
        9 => any::<u8>().prop_map(Step::Answer),
        3 => Just(Step::Publish),
        1 => Just(Step::FinalCheck),
    ]
}

/// Both ends of a ring, and what must be true of them.
struct Model<'a> {
    abi: Abi,
    memory: &'a Memory,
    ring: BackRing,
    /// Frontend's private indices.
    req_prod_pvt: u32,
    rsp_cons: u32,
    next_id: u64,
    /// Requests by where they are.
    written: VecDeque<u64>,
    pushed: VecDeque<u64>,
    taken: Vec<u64>,
    answered: VecDeque<(u64, i16)>,
    published: VecDeque<(u64, i16)>,
    /// How often each request was answered, as the frontend sees it.
    answers: HashMap<u64, u32>,
}

impl Model<'_> {
    fn slot(&self, index: u32) -> usize {
        (index % self.ring.entries()) as usize
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(count) => {
                for _ in 0..count {
                    if self.req_prod_pvt.wrapping_sub(self.rsp_cons) == self.ring.entries() {
                        break;
                    }
                    let slot = self.slot(self.req_prod_pvt);
                    self.memory
                        .write_request(self.abi, slot, &request(self.next_id));
                    self.written.push_back(self.next_id);
                    self.next_id += 1;
                    self.req_prod_pvt = self.req_prod_pvt.wrapping_add(1);
                }
            }
            Step::Push => {
                self.memory.set(REQ_PROD_OFFSET, self.req_prod_pvt);
                self.pushed.append(&mut self.written);
            }
            Step::Collect => {
                while self.rsp_cons != self.memory.get(RSP_PROD_OFFSET) {
                    let bytes = self.memory.slot_bytes(self.abi, self.slot(self.rsp_cons));
                    let (id, operation, status) = response_of(&bytes);
                    assert_eq!(Some((id, status)), self.published.pop_front());
                    assert_eq!(operation, OP_READ);
                    *self.answers.entry(id).or_default() += 1;
                    self.rsp_cons = self.rsp_cons.wrapping_add(1);
                }
                assert!(self.published.is_empty());
            }
            Step::Take(count) => {
                for _ in 0..count {
                    let has = self.ring.has_requests(self.memory).unwrap();
                    assert_eq!(has, !self.pushed.is_empty());
                    let slot = next(&mut self.ring, self.memory).unwrap();
                    let expected = self.pushed.pop_front();
                    assert_eq!(slot, expected.map(|id| request(id).slot_of_ring(self.abi)));
                    self.taken.extend(expected);
                }
            }
            Step::Answer(which) => {
                if self.taken.is_empty() {
                    assert!(!self.ring.put_response(self.memory, ok(u64::MAX)));
                    return;
                }
                let id = self
                    .taken
                    .swap_remove(usize::from(which) % self.taken.len());
                let status = [Status::Okay, Status::Error][id as usize % 2];
                let response = Response { status, ..ok(id) };
                assert!(self.ring.put_response(self.memory, response));
                self.answered.push_back((id, status as i16));
            }
            Step::Publish => {
                let due = !self.answered.is_empty();
                // Always wanted by this frontend.
                let next = self.memory.get(RSP_PROD_OFFSET).wrapping_add(1);
                self.memory.set(RSP_EVENT_OFFSET, next);
                assert_eq!(self.ring.publish(self.memory), due);
                self.published.append(&mut self.answered);
            }
            Step::FinalCheck => {
                let more = self.ring.final_check(self.memory, 1).unwrap();
                assert_eq!(more, !self.pushed.is_empty());
                if !more {
                    let waiting = self.written.len() as u32;
                    let next = self.req_prod_pvt.wrapping_sub(waiting).wrapping_add(1);
                    assert_eq!(self.memory.get(REQ_EVENT_OFFSET), next);
                }
            }
        }
        assert_eq!(self.ring.outstanding() as usize, self.taken.len());
        assert!(self.ring.outstanding() <= self.ring.entries());
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever the order of events, every request arrives as it was written and is answered
    /// exactly once.
    #[test]
    fn every_request_is_answered_once(
        abi in prop::sample::select(&ABIS[..]),
        slots in prop::sample::select(&[1usize, 2, 3, 4, 7, 8, 32][..]),
        start in prop_oneof![any::<u32>(), u32::MAX - 60..=u32::MAX, 0..3u32],
        steps in prop::collection::vec(any_step(), 1..400),
    ) {
        let ring_bytes = ring_of(abi, slots);
        let memory = Memory::new(ring_bytes, start);
        let ring = BackRing::attach(&memory, abi, ring_bytes).unwrap();
        prop_assert!(ring.entries() as usize <= slots);
        let mut model = Model {
            abi,
            memory: &memory,
            ring,
            req_prod_pvt: start,
            rsp_cons: start,
            next_id: 0,
            written: VecDeque::new(),
            pushed: VecDeque::new(),
            taken: Vec::new(),
            answered: VecDeque::new(),
            published: VecDeque::new(),
            answers: HashMap::new(),
        };
        for step in steps {
            model.step(step);
        }
        // Finish everything.
        model.step(Step::Push);
        model.step(Step::Take(33));
        while !model.taken.is_empty() {
            model.step(Step::Answer(0));
        }
        model.step(Step::Publish);
        model.step(Step::Collect);
        model.step(Step::FinalCheck);
        prop_assert_eq!(model.answers.len() as u64, model.next_id);
        prop_assert!(model.answers.values().all(|&count| count == 1));
        memory.assert_surroundings(abi);
    }

    /// A frontend that writes anything anywhere at any time gets errors and nonsense, but the
    /// backend keeps its bounds.
    #[test]
    fn hostile_frontend(
        abi in prop::sample::select(&ABIS[..]),
        start: u32,
        writes in prop::collection::vec((0..1024usize, any::<u32>(), 0..6u8), 1..300),
    ) {
        let disk = Disk { sectors: 100, ..DISK };
        let memory = Memory::new(4096, start);
        let mut ring = BackRing::attach(&memory, abi, 4096).unwrap();
        let mut taken = 0u32;
        let mut answered = 0u32;
        for (word, value, kind) in writes {
            match kind {
                // Plausible indices let it get further.
                0..=2 => memory.set(REQ_PROD_OFFSET, start.wrapping_add(taken + value % 40)),
                // Only words of the ring: the memory behind it is not the frontend's.
                _ if 4 * word >= 16 => memory.set(4 * word, value),
                _ => memory.set(4 * (word % 4), value),
            }
            for _ in 0..40 {
                let Ok(Some(slot)) = next(&mut ring, &memory) else { break };
                taken += 1;
                let response = match parse(abi, &slot, &disk) {
                    Ok(parsed) => parsed.response(Status::Okay),
                    Err(rejected) => rejected.response(),
                };
                if value % 3 != 0 {
                    prop_assert!(ring.put_response(&memory, response));
                    answered += 1;
                }
            }
            prop_assert_eq!(ring.outstanding(), taken - answered);
            prop_assert!(ring.outstanding() <= 32);
            let _ = ring.publish(&memory);
            let _ = ring.final_check(&memory, 1);
        }
    }
}
