// SPDX-License-Identifier: GPL-2.0

//! The frontend's end of a ring, with its event channel.
//!
//! The backend is not trusted: what it publishes is checked against what is in flight, since a response too many is
//! one of the errors to be found.

use std::sync::atomic::{fence, Ordering};
use std::time::{Duration, Instant};

use blkif::abi::{
    Abi, REQ_EVENT_OFFSET, REQ_PROD_OFFSET, RING_HEADER_SIZE, RSP_EVENT_OFFSET, RSP_PROD_OFFSET,
};
use blkif::RawSlot;

use crate::error::{fail, Error, Result};
use crate::sys::{EventChannel, Words, PAGE};

/// A response as it was found in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// Which request is meant.
    pub id: u64,
    /// Operation of the request.
    pub operation: u8,
    /// Result; see `blkif::Status`.
    pub status: i16,
    /// Index of its slot, for a look at the bytes around.
    pub index: u32,
}

/// A ring and its event channel.
pub struct Ring {
    pages: Words,
    /// The way to tell the backend, and to be told.
    pub channel: EventChannel,
    abi: Abi,
    entries: u32,
    /// Index of the next request to write.
    req_prod_pvt: u32,
    /// Index up to which requests are published.
    req_prod: u32,
    /// Index of the next response to take.
    rsp_cons: u32,
    /// The backend's `rsp_prod`, as last seen.
    rsp_prod: u32,
}

impl Ring {
    /// A ring of `1 << order` pages granted to `domain`, whose indices start at `first`.
    pub fn new(domain: u16, abi: Abi, order: u32, first: u32) -> Result<Ring> {
        let count = 1usize << order;
        let mut ring = Ring {
            pages: Words::grant(domain, count, true)?,
            channel: EventChannel::new(domain)?,
            abi,
            entries: abi.ring_entries(count * PAGE),
            req_prod_pvt: first,
            req_prod: first,
            rsp_cons: first,
            rsp_prod: first,
        };
        ring.begin(first);
        Ok(ring)
    }

    /// Begins anew at the index `first`, on the same pages. Meant for a ring that no backend uses.
    pub fn begin(&mut self, first: u32) {
        for (offset, value) in [
            (REQ_PROD_OFFSET, first),
            (REQ_EVENT_OFFSET, first.wrapping_add(1)),
            (RSP_PROD_OFFSET, first),
            (RSP_EVENT_OFFSET, first.wrapping_add(1)),
        ] {
            self.pages.word(offset).store(value, Ordering::Release);
        }
        self.req_prod_pvt = first;
        self.req_prod = first;
        self.rsp_cons = first;
        self.rsp_prod = first;
    }

    /// Its pages, for who writes into them behind the ring's back.
    pub fn memory(&self) -> Words {
        self.pages.clone()
    }

    /// Grant references of its pages.
    pub fn grefs(&self) -> &[u32] {
        self.pages.grefs()
    }

    /// The layout of its slots.
    pub fn abi(&self) -> Abi {
        self.abi
    }

    /// Number of slots.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Requests that have been put and not been answered.
    pub fn in_flight(&self) -> u32 {
        self.req_prod_pvt.wrapping_sub(self.rsp_cons)
    }

    /// Slots that are free for requests.
    pub fn free(&self) -> u32 {
        self.entries - self.in_flight()
    }

    /// Where in its pages the slot is that an index selects.
    pub fn slot(&self, index: u32) -> usize {
        RING_HEADER_SIZE + (index & (self.entries - 1)) as usize * self.abi.slot_size()
    }

    /// Writes a request into the next slot, which must be free. The backend does not see it before `publish`.
    pub fn put(&mut self, request: &RawSlot) {
        assert!(self.free() > 0, "the ring is full");
        let start = self.slot(self.req_prod_pvt);
        for (number, word) in request
            .words()
            .iter()
            .take(self.abi.request_size() / 4)
            .enumerate()
        {
            self.pages
                .word(start + 4 * number)
                .store(*word, Ordering::Relaxed);
        }
        self.req_prod_pvt = self.req_prod_pvt.wrapping_add(1);
    }

    /// Shows the backend all requests put so far; returns whether it wants an event for them.
    #[must_use = "the backend waits for the event"]
    pub fn publish(&mut self) -> bool {
        let published = self.req_prod_pvt.wrapping_sub(self.req_prod);
        if published == 0 {
            return false;
        }
        self.pages
            .word(REQ_PROD_OFFSET)
            .store(self.req_prod_pvt, Ordering::Release);
        self.req_prod = self.req_prod_pvt;
        // Our index before the backend's, as seen by both sides: else both could go to sleep.
        fence(Ordering::SeqCst);
        self.req_prod.wrapping_sub(self.req_event()) < published
    }

    /// `publish`, and the event if the backend wants one.
    pub fn push(&mut self) -> Result<()> {
        if self.publish() {
            self.channel.notify()?;
        }
        Ok(())
    }

    /// The index at which the backend wants an event.
    pub fn req_event(&self) -> u32 {
        self.pages.word(REQ_EVENT_OFFSET).load(Ordering::Acquire)
    }

    /// Index up to which requests have been published.
    pub fn req_prod(&self) -> u32 {
        self.req_prod
    }

    /// Takes the next response, if there is one.
    pub fn next_response(&mut self) -> Result<Option<Response>> {
        if self.rsp_cons == self.rsp_prod {
            let rsp_prod = self.pages.word(RSP_PROD_OFFSET).load(Ordering::Acquire);
            let new = rsp_prod.wrapping_sub(self.rsp_cons);
            if new > self.req_prod.wrapping_sub(self.rsp_cons) {
                fail!(
                    "the backend published response {rsp_prod:#x}, but only requests up to {:#x} have been put and \
                     responses up to {:#x} been taken: it answered a request twice",
                    self.req_prod,
                    self.rsp_cons
                );
            }
            self.rsp_prod = rsp_prod;
            if new == 0 {
                return Ok(None);
            }
        }
        let [id0, id1, rest, _] = self.words(self.rsp_cons);
        let [operation, _, status @ ..] = rest.to_le_bytes();
        let response = Response {
            id: u64::from(id0) | (u64::from(id1) << 32),
            operation,
            status: i16::from_le_bytes(status),
            index: self.rsp_cons,
        };
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Ok(Some(response))
    }

    /// The first words of the slot that an index selects.
    pub fn words<const N: usize>(&self, index: u32) -> [u32; N] {
        let start = self.slot(index);
        std::array::from_fn(|number| self.pages.word(start + 4 * number).load(Ordering::Relaxed))
    }

    /// Asks for an event with the `ahead`-th response from now; returns whether that one is there already.
    pub fn ask_event(&mut self, ahead: u32) -> bool {
        self.pages
            .word(RSP_EVENT_OFFSET)
            .store(self.rsp_cons.wrapping_add(ahead), Ordering::Release);
        fence(Ordering::SeqCst);
        let rsp_prod = self.pages.word(RSP_PROD_OFFSET).load(Ordering::Acquire);
        rsp_prod.wrapping_sub(self.rsp_cons) >= ahead
    }

    /// Waits for the next response. The error says what the backend was asked when it did not answer in time.
    pub fn wait_response(&mut self, timeout: Duration) -> Result<Response> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(response) = self.next_response()? {
                return Ok(response);
            }
            if !self.ask_event(1) && !self.channel.wait(deadline)? {
                return Err(self.overdue(timeout));
            }
        }
    }

    /// The error when no event has come in time. A response that is there without its event is another one than
    /// none at all.
    pub fn overdue(&mut self, timeout: Duration) -> Error {
        match self.next_response() {
            Ok(None) => self.silence(timeout),
            Ok(Some(response)) => Error::Failed(format!(
                "the response to id {:#x} came without the event that rsp_event had asked for",
                response.id
            )),
            Err(error) => error,
        }
    }

    fn silence(&self, timeout: Duration) -> Error {
        Error::Failed(format!(
            "no response for {} s with {} requests in flight (req_prod {:#x}, rsp_cons {:#x}, the backend's req_event \
             {:#x}); look at dom0's kernel log",
            timeout.as_secs(),
            self.in_flight(),
            self.req_prod,
            self.rsp_cons,
            self.req_event()
        ))
    }
}
