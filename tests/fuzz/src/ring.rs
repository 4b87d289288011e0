// SPDX-License-Identifier: GPL-2.0

//! A ring's two ends, in any order of their steps. The frontend is honest, or writes what it likes into the shared memory.
//!
//! With an honest one each request arrives once, in order and whole, each answer once, and whoever goes to sleep is woken.
//! Whatever the frontend does, the backend stays within the slots, answers what it has taken and nothing else, and writes
//! nothing but its own two indices and answers.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use blkif::{Abi, BackRing, RawSlot, Response, RingError, SharedRing, Status};

use crate::input::Input;
use crate::wire;

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 1;
const RSP_PROD: usize = 2;
const RSP_EVENT: usize = 3;
/// Words in front of the first slot.
const HEADER: usize = 16;
/// Bytes of the ring.
const BYTES: [usize; 3] = [4096, 176, 8192];

/// The shared memory, in words.
struct Memory {
    words: Vec<Cell<u32>>,
    slot: usize,
    entries: usize,
    /// What the backend has written since it was last looked at: word and value.
    written: RefCell<Vec<(usize, u32)>>,
}

impl Memory {
    fn new(abi: Abi, bytes: usize, first: u32) -> Self {
        let memory = Memory {
            words: (0..bytes / 4).map(|_| Cell::new(0)).collect(),
            slot: match abi {
                Abi::X86_32 => 108,
                Abi::Native | Abi::X86_64 => 112,
            },
            entries: 0,
            written: RefCell::new(Vec::new()),
        };
        let fit = (bytes - HEADER * 4) / memory.slot;
        for (word, value) in [
            (REQ_PROD, first),
            (REQ_EVENT, first + 1),
            (RSP_PROD, first),
            (RSP_EVENT, first + 1),
        ] {
            memory.words[word].set(value);
        }
        Memory {
            entries: 1 << fit.ilog2(),
            ..memory
        }
    }

    fn get(&self, word: usize) -> u32 {
        self.words[word].get()
    }

    /// The first word of the slot that an index selects.
    fn at(&self, index: u32) -> usize {
        HEADER + index as usize % self.entries * self.slot / 4
    }

    fn write(&self, word: usize, value: u32) {
        self.words[word].set(value);
        self.written.borrow_mut().push((word, value));
    }

    fn offset(&self, bytes: usize, words: usize) -> usize {
        assert!(
            bytes % self.slot == 0 && words * 4 <= self.slot && bytes / self.slot < self.entries
        );
        HEADER + bytes / 4
    }
}

impl SharedRing for Memory {
    fn req_prod(&self) -> u32 {
        self.get(REQ_PROD)
    }

    fn set_req_event(&self, index: u32) {
        self.write(REQ_EVENT, index);
    }

    fn rsp_prod(&self) -> u32 {
        self.get(RSP_PROD)
    }

    fn set_rsp_prod(&self, index: u32) {
        self.write(RSP_PROD, index);
    }

    fn rsp_event(&self) -> u32 {
        self.get(RSP_EVENT)
    }

    fn full_barrier(&self) {}

    fn read_slot(&self, byte_offset: usize, words: &mut [u32]) {
        assert_eq!(words.len() * 4, self.slot);
        let at = self.offset(byte_offset, words.len());
        for (number, word) in words.iter_mut().enumerate() {
            *word = self.get(at + number);
        }
    }

    fn write_slot(&self, byte_offset: usize, words: &[u32; 3]) {
        let at = self.offset(byte_offset, words.len());
        for (number, word) in words.iter().enumerate() {
            self.write(at + number, *word);
        }
    }
}

/// Both ends, and what has passed between them. Indices are counted from the ring's beginning, without wrapping.
struct Ends {
    abi: Abi,
    memory: Memory,
    back: BackRing,
    first: u32,
    honest: bool,
    /// The frontend's: requests written and made visible, answers taken.
    put: u64,
    pushed: u64,
    consumed: u64,
    /// The backend's: requests taken, answers written and made visible.
    taken: u64,
    answered: u64,
    published: u64,
    /// Identifiers of requests that have been taken and not answered, and of all that have been answered.
    open: VecDeque<u64>,
    answers: Vec<u64>,
    /// The backend sleeps until there is an event with this request.
    sleeps: Option<u64>,
    /// It has found the ring to be broken.
    stopped: bool,
}

/// Layout, size, honesty, first index; then steps.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let [abi, size, honest] = input.take();
    let (abi, first) = (wire::abi(abi), input.u32());
    // Nobody waits for an index before the beginning.
    let first = first.min(u32::MAX - 1);
    let bytes = BYTES[usize::from(size) % BYTES.len()];
    let memory = Memory::new(abi, bytes, first);
    let back = BackRing::attach(&memory, abi, bytes).expect("a ring without requests");
    assert_eq!(back.entries() as usize, memory.entries);
    assert!(memory.written.borrow().is_empty());
    let mut ends = Ends {
        abi,
        memory,
        back,
        first,
        honest: honest % 2 == 0,
        put: 0,
        pushed: 0,
        consumed: 0,
        taken: 0,
        answered: 0,
        published: 0,
        open: VecDeque::new(),
        answers: Vec::new(),
        sleeps: None,
        stopped: false,
    };
    for _ in 0..4096 {
        if input.is_empty() {
            break;
        }
        ends.step(&mut input);
        ends.hold();
    }
    if ends.honest {
        ends.finish();
    }
}

impl Ends {
    fn index(&self, count: u64) -> u32 {
        self.first.wrapping_add(count as u32)
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let byte = input.u8();
        let argument = u32::from(byte >> 4);
        match byte & 15 {
            0 | 1 => self.put(argument),
            2 => self.push(),
            3 => self.consume(argument),
            4..=6 => self.take(),
            7 | 8 => {
                self.answer(argument);
            }
            9 => self.publish(),
            10 => self.sleep(argument),
            11 => self.attach(),
            12 => self.too_many_answers(),
            13 if !self.honest => self.memory.words[argument as usize % 4].set(input.u32()),
            14 if !self.honest => {
                let word = usize::from(input.u16()) % self.memory.words.len();
                self.memory.words[word].set(input.u32());
            }
            15 if !self.honest => {
                // Close to what is right.
                let near = self
                    .index(self.answered)
                    .wrapping_add(argument)
                    .wrapping_sub(8);
                self.memory.words[REQ_PROD].set(near.wrapping_add(u32::from(input.u8())));
            }
            _ => {}
        }
    }

    // The frontend.

    /// Writes a request into the next slot, if there is room.
    fn put(&mut self, operation: u32) {
        if self.put - self.consumed == self.memory.entries as u64 {
            return;
        }
        let bytes = wire::request(
            self.abi,
            operation as u8,
            self.put,
            !self.put,
            &[(self.put as u32, 0, 7)],
        );
        let at = self.memory.at(self.index(self.put));
        for (number, word) in bytes[..self.memory.slot].chunks_exact(4).enumerate() {
            self.memory.words[at + number].set(wire::u32_at(word, 0));
        }
        self.put += 1;
    }

    /// Makes the requests visible, and sends an event if the backend wants one (`RING_PUSH_REQUESTS_AND_CHECK_NOTIFY`).
    fn push(&mut self) {
        let (old, new) = (self.index(self.pushed), self.index(self.put));
        self.memory.words[REQ_PROD].set(new);
        let wanted = new.wrapping_sub(self.memory.get(REQ_EVENT)) < new.wrapping_sub(old);
        self.pushed = self.put;
        if self.honest && self.sleeps.is_some_and(|request| self.pushed >= request) {
            assert!(
                wanted,
                "nobody wakes the backend, for which {} requests are waiting",
                self.pushed - self.taken
            );
            self.sleeps = None;
        }
    }

    /// Takes the answers that are there, and says how many more it wants before the next event.
    fn consume(&mut self, more: u32) {
        let until = self.memory.get(RSP_PROD);
        while self.honest && self.index(self.consumed) != until {
            assert!(self.consumed < self.published, "an answer too many");
            let at = self.memory.at(self.index(self.consumed));
            let id = u64::from(self.memory.get(at)) | u64::from(self.memory.get(at + 1)) << 32;
            assert_eq!(id, self.answers[self.consumed as usize]);
            self.consumed += 1;
        }
        self.memory.words[RSP_EVENT].set(until.wrapping_add(more).wrapping_add(1));
    }

    // The backend.

    fn take(&mut self) {
        let mut slot = RawSlot::new();
        let known = self.back.open() as u64 - (self.taken - self.published);
        let at = self.memory.at(self.index(self.taken));
        match self.back.next_request(&self.memory, &mut slot) {
            Ok(true) => {
                assert!(self.taken - self.answered < self.memory.entries as u64);
                let words = self.memory.slot / 4;
                assert!(
                    (0..words).all(|number| slot.words()[number] == self.memory.get(at + number))
                );
                assert!(slot.words()[words..].iter().all(|&word| word == 0));
                let (id_at, ..) = wire::offsets(self.abi);
                let id = u64::from(slot.words()[id_at / 4])
                    | u64::from(slot.words()[id_at / 4 + 1]) << 32;
                if self.honest {
                    assert!(self.taken < self.pushed);
                    assert_eq!(id, self.taken);
                }
                self.open.push_back(id);
                self.taken += 1;
                self.sleeps = None;
            }
            Ok(false) => {
                assert!(known == 0 && self.index(self.taken) == self.memory.get(REQ_PROD));
                assert!(
                    !self.honest || self.taken == self.pushed,
                    "a request is not seen"
                );
            }
            Err(why) => self.broken(why),
        }
    }

    /// The backend is right to take the ring for broken.
    fn broken(&mut self, why: RingError) {
        assert!(!self.honest, "{why}");
        let RingError::RequestOverflow {
            req_prod,
            rsp_prod,
            entries,
        } = why
        else {
            panic!("{why}");
        };
        assert_eq!(
            (req_prod, rsp_prod),
            (self.memory.get(REQ_PROD), self.index(self.answered))
        );
        assert_eq!(entries as usize, self.memory.entries);
        let waiting = u64::from(req_prod.wrapping_sub(rsp_prod));
        assert!(
            waiting > entries.into() || waiting < self.taken - self.answered,
            "{why}"
        );
        assert!(!why.to_string().is_empty());
        self.stopped = true;
    }

    /// Answers one of the requests that have been taken.
    fn answer(&mut self, which: u32) -> bool {
        if self.open.is_empty() {
            return false;
        }
        let id = self
            .open
            .remove(which as usize % self.open.len())
            .expect("it is there");
        let response = Response {
            id,
            operation: 1,
            status: Status::Error,
        };
        let at = self.memory.at(self.index(self.answered));
        self.memory.written.take();
        assert!(self.back.put_response(&self.memory, response));
        let words = response.words();
        assert_eq!(
            *self.memory.written.borrow(),
            [(at, words[0]), (at + 1, words[1]), (at + 2, words[2])]
        );
        self.memory.written.take();
        self.answered += 1;
        self.answers.push(id);
        true
    }

    fn publish(&mut self) {
        let rsp_event = self.memory.get(RSP_EVENT);
        let (old, new) = (self.index(self.published), self.index(self.answered));
        let wants = self.back.wants_event(&self.memory);
        let event = self.back.publish(&self.memory);
        assert_eq!(event, wants);
        assert_eq!(
            event,
            new.wrapping_sub(rsp_event) < new.wrapping_sub(old),
            "an event for answers to {old}..{new}, asked for {rsp_event}"
        );
        let written = self.memory.written.take();
        assert_eq!(
            written,
            if old == new {
                vec![]
            } else {
                vec![(RSP_PROD, new)]
            }
        );
        self.published = self.answered;
    }

    /// The backend has nothing to do: it looks a last time.
    fn sleep(&mut self, nth: u32) {
        match self.back.final_check(&self.memory, nth) {
            Ok(true) => assert!(!self.honest || self.pushed > self.taken),
            Ok(false) => {
                assert_eq!(
                    self.memory.get(REQ_EVENT),
                    self.index(self.taken + u64::from(nth.max(1)))
                );
                assert!(
                    !self.honest || self.pushed == self.taken,
                    "it sleeps while requests are waiting"
                );
                self.sleeps = Some(self.taken + u64::from(nth.max(1)));
            }
            Err(why) => self.broken(why),
        }
        assert!(self
            .memory
            .written
            .take()
            .iter()
            .all(|&(word, _)| word == REQ_EVENT));
    }

    /// Another backend goes on where this one has published answers; what it had taken is to be done again.
    fn attach(&mut self) {
        if self.answered != self.published || !self.honest {
            return;
        }
        let bytes = self.memory.words.len() * 4;
        self.back = BackRing::attach(&self.memory, self.abi, bytes).expect("an honest ring");
        self.taken = self.published;
        self.open.clear();
        self.sleeps = None;
        // Answers may come in another order: a request that this one answers may have been answered before, under
        // another's index. Such a ring cannot be taken over, and is not.
        self.honest &= self
            .answers
            .iter()
            .enumerate()
            .all(|(index, &id)| id == index as u64);
    }

    /// All have been answered: one more is refused, and nothing is written.
    fn too_many_answers(&mut self) {
        if self.open.is_empty() {
            let response = Response {
                id: 1,
                operation: 2,
                status: Status::Okay,
            };
            assert!(!self.back.put_response(&self.memory, response));
            assert!(self.memory.written.borrow().is_empty());
        }
    }

    /// What holds after each step.
    fn hold(&self) {
        assert_eq!(
            u64::from(self.back.outstanding()),
            self.taken - self.answered
        );
        assert_eq!(
            u64::from(self.back.unpublished()),
            self.answered - self.published
        );
        assert_eq!(self.open.len() as u64, self.taken - self.answered);
        assert!(self.back.outstanding() <= self.back.entries());
        assert!(self.back.open() <= self.back.entries() + self.back.unpublished());
        assert!(self.memory.written.borrow().is_empty());
    }

    /// Every request of an honest frontend gets its answer, once.
    fn finish(&mut self) {
        self.push();
        while self.taken < self.pushed {
            self.take();
        }
        while self.answer(0) {}
        self.publish();
        self.consume(0);
        assert_eq!((self.consumed, self.published), (self.put, self.put));
        assert!(!self.stopped);
        self.answers.sort_unstable();
        assert!(self.answers.iter().copied().eq(0..self.put));
    }
}

/// An honest round, in each layout; indices that wrap; a frontend that is not honest.
pub fn seeds() -> Vec<Vec<u8>> {
    let round = [
        0, 0x10, 0, 2, 4, 4, 4, 4, 10, 0x17, 7, 9, 3, 7, 9, 12, 3, 10, 0, 2, 11, 4, 7, 9, 0x53,
    ];
    let mut seeds = Vec::new();
    for abi in 0..3 {
        for (size, honest, first) in [(0, 0, 0u32), (1, 0, u32::MAX - 2), (2, 1, 0x7fff_ffff)] {
            let mut seed = vec![abi, size, honest];
            seed.extend(first.to_le_bytes());
            seed.extend(round.repeat(3));
            if honest == 1 {
                seed.extend([
                    0x0d, 1, 2, 3, 4, 4, 10, 0x8f, 3, 4, 7, 9, 14, 20, 0, 9, 9, 9, 9, 4,
                ]);
            }
            seeds.push(seed);
        }
    }
    seeds
}
