// SPDX-License-Identifier: GPL-2.0

//! The backend's end of a shared ring.
//!
//! The rules come from `xen/include/public/io/ring.h`; the names of its macros are given where
//! something here takes their place. All four indices are `u32`, count without end and wrap
//! around at 2^32; only the low bits of an index select a slot. Differences of indices are
//! therefore taken modulo 2^32 throughout.
//!
//! # Sleeping and waking
//!
//! An event costs a hypercall and an interrupt, so both sides say when they want one:
//!
//! - The backend goes to sleep by [`BackRing::final_check`]: it sets `req_event` to the index
//!   behind the next request and then looks for requests once more. A frontend that publishes
//!   requests sends an event if `req_event` is among the indices that it has just published.
//! - The frontend does the same with `rsp_event`; [`BackRing::publish`] tells whether it wants
//!   an event.
//!
//! Each side first stores its own index and then loads the other's. With a full barrier between
//! the two, at least one side sees what the other one has stored, and no wakeup is lost.

use core::fmt;

use crate::{
    abi::{
        Abi,
        RESPONSE_WORDS,
        SLOT_WORDS, //
    },
    response::Response, //
};

/// The memory that frontend and backend share, as the ring logic needs it.
///
/// The frontend may change every byte at any time. An implementation therefore performs exactly
/// one access for each call, and for `read_slot` exactly one for each word: nothing may be
/// fetched a second time (XSA-155), which in a kernel means volatile accesses.
///
/// The index fields are at the offsets that [`abi`](crate::abi) gives. Slot offsets are in
/// bytes, multiples of 4, and relative to the first slot, that is to byte
/// [`RING_HEADER_SIZE`](crate::abi::RING_HEADER_SIZE) of the ring. [`BackRing`] uses only slots
/// that lie within the size that it was attached with.
pub trait SharedRing {
    /// Loads `req_prod` with acquire semantics: slots are read after it.
    fn req_prod(&self) -> u32;

    /// Stores `req_event`.
    fn set_req_event(&self, index: u32);

    /// Loads `rsp_prod`.
    fn rsp_prod(&self) -> u32;

    /// Stores `rsp_prod` with release semantics: slots have been written before it.
    fn set_rsp_prod(&self, index: u32);

    /// Loads `rsp_event`.
    fn rsp_event(&self) -> u32;

    /// Orders all accesses before it against all accesses after it, stores against later loads
    /// included (`virt_mb()`).
    fn full_barrier(&self);

    /// Copies `words.len()` 32-bit words out of the ring, beginning at `byte_offset`.
    fn read_slot(&self, byte_offset: usize, words: &mut [u32]);

    /// Copies `words` into the ring, beginning at `byte_offset`.
    fn write_slot(&self, byte_offset: usize, words: &[u32; RESPONSE_WORDS]);
}

/// Private copy of one request slot, not looked at yet.
///
/// It consists of 32-bit words as the CPU loads them, because that is the largest unit which
/// every slot of every layout is aligned to and a multiple of. Use [`parse`](crate::parse) to
/// learn what it says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RawSlot {
    words: [u32; SLOT_WORDS],
}

impl RawSlot {
    /// Creates a slot of zeroes.
    pub const fn new() -> Self {
        RawSlot {
            words: [0; SLOT_WORDS],
        }
    }

    /// Returns the words of the slot. An x86_32 request leaves the last one unused.
    pub const fn words(&self) -> &[u32; SLOT_WORDS] {
        &self.words
    }

    /// Returns the words of the slot for filling it in.
    pub fn words_mut(&mut self) -> &mut [u32; SLOT_WORDS] {
        &mut self.words
    }

    /// Returns the part of the slot that a request of the given layout occupies.
    fn request_mut(&mut self, abi: Abi) -> &mut [u32] {
        match (abi, &mut self.words) {
            (Abi::X86_32, [request @ .., _]) => request,
            (Abi::Native | Abi::X86_64, request) => request,
        }
    }
}

/// Why a ring cannot be used, or not any longer.
///
/// After [`RingError::RequestOverflow`] the frontend's `req_prod` means nothing; the backend has
/// to stop taking requests until the frontend reconnects. Requests taken before remain valid and
/// may still be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingError {
    /// There is no room for a single slot.
    TooSmall {
        /// Size of the ring, header included, in bytes.
        ring_bytes: usize,
    },
    /// The frontend claims more unanswered requests than the ring has slots
    /// (`RING_REQUEST_PROD_OVERFLOW`).
    RequestOverflow {
        /// Index that the frontend has published.
        req_prod: u32,
        /// Index of the backend's next response.
        rsp_prod: u32,
        /// Number of slots.
        entries: u32,
    },
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            RingError::TooSmall { ring_bytes } => {
                write!(f, "ring of {ring_bytes} bytes has no room for a request")
            }
            RingError::RequestOverflow {
                req_prod,
                rsp_prod,
                entries,
            } => write!(
                f,
                "bogus ring requests ({req_prod} - {rsp_prod} = {}, ring size {entries})",
                req_prod.wrapping_sub(rsp_prod)
            ),
        }
    }
}

/// The backend's private end of a ring (`struct blkif_back_ring`).
///
/// Each request that [`BackRing::next_request`] hands out has to be answered by exactly one
/// [`BackRing::put_response`], in any order. Responses become visible to the frontend in batches,
/// by [`BackRing::publish`].
///
/// # Invariants
///
/// - `entries` is a power of two, not zero. That many slots of the layout `abi` fit, behind a
///   ring header, into the size that was given to [`BackRing::attach`].
/// - In the circular order of indices,
///   `rsp_prod <= rsp_prod_pvt <= req_cons <= req_prod <= rsp_prod_pvt + entries`.
#[derive(Debug)]
pub struct BackRing {
    abi: Abi,
    /// Number of slots.
    entries: u32,
    /// The last `req_prod` of the frontend that has been found plausible.
    req_prod: u32,
    /// Index of the next request to take.
    req_cons: u32,
    /// Index of the next response to write.
    rsp_prod_pvt: u32,
    /// Index up to which responses have been published; never read back from shared memory.
    rsp_prod: u32,
}

impl BackRing {
    /// Begins to serve the ring `shared`, which occupies `ring_bytes` bytes, header included.
    ///
    /// Indices start at the ring's `rsp_prod` (`BACK_RING_ATTACH`). That is 0 for a new ring. On
    /// a ring that has been in use, a former backend has answered all that precedes it, and all
    /// that follows is still to be done. Because requests may be waiting already, for which no
    /// event comes any more, the caller looks for requests once after attaching.
    ///
    /// # Errors
    ///
    /// - [`RingError::TooSmall`] if there is no room for a slot.
    /// - [`RingError::RequestOverflow`] if more requests are waiting than the ring has slots.
    pub fn attach(
        shared: &impl SharedRing,
        abi: Abi,
        ring_bytes: usize,
    ) -> Result<BackRing, RingError> {
        let entries = abi.ring_entries(ring_bytes);
        if entries == 0 {
            return Err(RingError::TooSmall { ring_bytes });
        }
        let rsp_prod = shared.rsp_prod();
        // INVARIANT: `ring_entries` gives a power of two that fits. All indices are equal.
        let mut ring = BackRing {
            abi,
            entries,
            req_prod: rsp_prod,
            req_cons: rsp_prod,
            rsp_prod_pvt: rsp_prod,
            rsp_prod,
        };
        ring.update_req_prod(shared)?;
        Ok(ring)
    }

    /// Returns the layout of the ring.
    pub const fn abi(&self) -> Abi {
        self.abi
    }

    /// Returns the number of slots.
    pub const fn entries(&self) -> u32 {
        self.entries
    }

    /// Returns the number of requests that have been taken and not been answered yet; at most
    /// [`BackRing::entries`].
    pub const fn outstanding(&self) -> u32 {
        self.req_cons.wrapping_sub(self.rsp_prod_pvt)
    }

    /// Returns the number of responses that have been written and not been published yet.
    pub const fn unpublished(&self) -> u32 {
        self.rsp_prod_pvt.wrapping_sub(self.rsp_prod)
    }

    /// Returns the number of requests, as far as they are known, for which no response has been
    /// published.
    pub const fn open(&self) -> u32 {
        self.req_prod.wrapping_sub(self.rsp_prod)
    }

    /// Takes the next request, if there is one: copies its slot, once, into private memory.
    ///
    /// `req_prod` is looked at only when the requests known so far have been taken.
    ///
    /// # Errors
    ///
    /// [`RingError::RequestOverflow`] if the frontend's `req_prod` is impossible.
    #[inline]
    pub fn next_request(
        &mut self,
        shared: &impl SharedRing,
        slot: &mut RawSlot,
    ) -> Result<bool, RingError> {
        if !self.has_requests(shared)? {
            return Ok(false);
        }
        let offset = self.slot_offset(self.req_cons);
        shared.read_slot(offset, slot.request_mut(self.abi));
        // INVARIANT: `req_cons` was different from `req_prod`, thus less.
        self.req_cons = self.req_cons.wrapping_add(1);
        Ok(true)
    }

    /// Returns whether a request is waiting (`RING_HAS_UNCONSUMED_REQUESTS`).
    ///
    /// # Errors
    ///
    /// As [`BackRing::next_request`].
    #[inline]
    pub fn has_requests(&mut self, shared: &impl SharedRing) -> Result<bool, RingError> {
        if self.req_cons == self.req_prod {
            self.update_req_prod(shared)?;
        }
        Ok(self.req_cons != self.req_prod)
    }

    /// Looks for requests a last time before the backend goes to sleep
    /// (`RING_FINAL_CHECK_FOR_REQUESTS`).
    ///
    /// If the result is false, no request is waiting, and the frontend sends an event with the
    /// `nth` one from now, at least 1. If it is true, the backend goes on with [`BackRing::next_request`].
    ///
    /// # Errors
    ///
    /// As [`BackRing::next_request`].
    pub fn final_check(&mut self, shared: &impl SharedRing, nth: u32) -> Result<bool, RingError> {
        if self.has_requests(shared)? {
            return Ok(true);
        }
        shared.set_req_event(self.req_cons.wrapping_add(nth.max(1)));
        shared.full_barrier();
        self.has_requests(shared)
    }

    /// Writes a response into the next slot. The frontend does not see it before
    /// [`BackRing::publish`].
    ///
    /// The slot still holds an old request of the frontend, whose bytes the response overwrites
    /// as far as its fields reach; the padding among them becomes 0. Nothing else of the
    /// backend's memory gets into the ring (compare XSA-216).
    ///
    /// Returns false, and leaves the ring alone, if every request has been answered already:
    /// the caller has answered one twice.
    pub fn put_response(&mut self, shared: &impl SharedRing, response: Response) -> bool {
        if self.outstanding() == 0 {
            return false;
        }
        let offset = self.slot_offset(self.rsp_prod_pvt);
        shared.write_slot(offset, &response.words());
        // INVARIANT: `rsp_prod_pvt` was less than `req_cons`.
        self.rsp_prod_pvt = self.rsp_prod_pvt.wrapping_add(1);
        true
    }

    /// Makes all responses written so far visible, and returns whether the frontend wants an
    /// event for them (`RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`).
    #[must_use = "the frontend waits for the event"]
    pub fn publish(&mut self, shared: &impl SharedRing) -> bool {
        let published = self.unpublished();
        if published == 0 {
            return false;
        }
        shared.set_rsp_prod(self.rsp_prod_pvt);
        // INVARIANT: `rsp_prod` becomes equal to `rsp_prod_pvt`.
        self.rsp_prod = self.rsp_prod_pvt;
        shared.full_barrier();
        self.event_is_among(shared, published)
    }

    /// Returns whether the frontend, as it looks now, will want an event when responses are published.
    #[inline]
    pub fn wants_event(&self, shared: &impl SharedRing) -> bool {
        self.event_is_among(shared, self.unpublished())
    }

    /// Returns whether the frontend wants an event at one of the last `responses` responses written: whether
    /// `rsp_event` is among the indices behind them.
    #[inline]
    fn event_is_among(&self, shared: &impl SharedRing, responses: u32) -> bool {
        self.rsp_prod_pvt.wrapping_sub(shared.rsp_event()) < responses
    }

    /// Loads the frontend's `req_prod` and keeps it if it is possible.
    fn update_req_prod(&mut self, shared: &impl SharedRing) -> Result<(), RingError> {
        let req_prod = shared.req_prod();
        let unanswered = req_prod.wrapping_sub(self.rsp_prod_pvt);
        // Below `outstanding()` lies a `req_prod` that has moved backwards, behind `req_cons`.
        if unanswered > self.entries || unanswered < self.outstanding() {
            return Err(RingError::RequestOverflow {
                req_prod,
                rsp_prod: self.rsp_prod_pvt,
                entries: self.entries,
            });
        }
        // INVARIANT: `req_cons <= req_prod <= rsp_prod_pvt + entries` has just been checked.
        self.req_prod = req_prod;
        Ok(())
    }

    /// Returns the offset of the slot that an index selects, in bytes from the first slot.
    fn slot_offset(&self, index: u32) -> usize {
        let slot = index & self.entries.wrapping_sub(1);
        // By the invariant of `entries` this is within the ring, and does not wrap.
        (slot as usize).wrapping_mul(self.abi.slot_size())
    }
}
