// SPDX-License-Identifier: GPL-2.0

//! `blkif`, the Xen block interface, seen from the backend.
//!
//! A guest (the frontend) uses a disk that another domain (the backend) keeps. They share a ring
//! of slots in memory and an event channel; the frontend puts requests on the ring, the backend
//! answers each by a response. The data do not pass through the ring: a request names pages by
//! grant references, and the backend maps or copies those pages.
//!
//! This crate knows the ring, the requests, the responses and the nodes that both sides write, and nothing else. It depends on no
//! kernel and allocates nothing; it contains no unsafe code; and no input makes it panic. The
//! kernel module contains it as it is, and a host tests it with `cargo test`.
//!
//! # The protocol in a page
//!
//! **Setting up.** The frontend grants the backend one page for the ring, or a power of two of
//! them, writes the grant references, an event channel and the name of its layout (node
//! `protocol`, see [`Abi`]) to xenstore, and zeroes the ring's indices but the two event fields,
//! which it sets to 1. The backend attaches ([`BackRing::attach`]).
//!
//! **The ring** begins with a header of 64 bytes, followed by slots:
//!
//! ```text
//!  0        4         8        12        16      64        64 + slot_size
//!  +--------+---------+--------+---------+-------+---------+---------+----
//!  |req_prod|req_event|rsp_prod|rsp_event|       | slot 0  | slot 1  | ...
//!  +--------+---------+--------+---------+-------+---------+---------+----
//!   frontend  backend   backend  frontend          both
//! ```
//!
//! The number of slots is the largest power of two that fits, 32 in one page. Requests and
//! responses share the slots: the n-th response takes the slot of the n-th request, no matter
//! which request it answers. Requests may thus be answered in any order; `id` says which is
//! meant. Counted as indices that never go back, and with `size` slots,
//!
//! ```text
//!  frontend's rsp_cons <= rsp_prod <= backend's req_cons <= req_prod <= rsp_cons + size
//! ```
//!
//! must hold. [`BackRing`] keeps to its part, and stops when the frontend breaks its own. How
//! both sides avoid needless events is explained in [`ring`].
//!
//! **A request** (`struct blkif_request`) has these fields; offsets in bytes for both layouts:
//!
//! | x86_64 | x86_32 | size | field                | meaning                                    |
//! |--------|--------|------|----------------------|--------------------------------------------|
//! | 0      | 0      | 1    | `operation`          | `OP_*` in [`abi`]                          |
//! | 1      | 1      | 1    | `nr_segments`        | how many of `seg` are used, up to 11       |
//! | 2      | 2      | 2    | `handle`             | number of the disk; not used               |
//! | 8      | 4      | 8    | `id`                 | repeated in the response                   |
//! | 16     | 12     | 8    | `sector_number`      | first sector on the disk                   |
//! | 24     | 20     | 11×8 | `seg`                | segments                                   |
//! | 112    | 108    |      |                      | end                                        |
//!
//! and each segment (`struct blkif_request_segment`)
//!
//! | offset | size | field        | meaning                                                     |
//! |--------|------|--------------|-------------------------------------------------------------|
//! | 0      | 4    | `gref`       | grant reference of a page of 4096 bytes                     |
//! | 4      | 1    | `first_sect` | first sector of the page to transfer, 0 to 7                |
//! | 5      | 1    | `last_sect`  | last sector of the page to transfer, `first_sect` to 7      |
//!
//! The segments follow one another on the disk. A sector is 512 bytes, also on disks with larger
//! blocks. Segments of one request can have any of these lengths, so that the data of a request
//! may have gaps in memory, but never on the disk.
//!
//! **A discard** (`struct blkif_request_discard`) names sectors whose contents are no longer
//! needed. It has other fields behind the first one:
//!
//! | x86_64 | x86_32 | size | field                | meaning                                    |
//! |--------|--------|------|----------------------|--------------------------------------------|
//! | 0      | 0      | 1    | `operation`          | `OP_DISCARD`                               |
//! | 1      | 1      | 1    | `flag`               | bit 0: so that nobody can recover them     |
//! | 2      | 2      | 2    | `handle`             | number of the disk; not used               |
//! | 8      | 4      | 8    | `id`                 | repeated in the response                   |
//! | 16     | 12     | 8    | `sector_number`      | first sector on the disk                   |
//! | 24     | 20     | 8    | `nr_sectors`         | number of sectors                          |
//!
//! **An indirect request** (`struct blkif_request_indirect`) is a read or a write of more data
//! than eleven segments hold. The slot names pages in which the segments stand, one after the
//! other, 512 in a page, each as above:
//!
//! | x86_64 | x86_32 | size | field                | meaning                                    |
//! |--------|--------|------|----------------------|--------------------------------------------|
//! | 0      | 0      | 1    | `operation`          | `OP_INDIRECT`                              |
//! | 1      | 1      | 1    | `indirect_op`        | `OP_READ` or `OP_WRITE`                    |
//! | 2      | 2      | 2    | `nr_segments`        | number of segments in all pages            |
//! | 8      | 4      | 8    | `id`                 | repeated in the response                   |
//! | 16     | 12     | 8    | `sector_number`      | first sector on the disk                   |
//! | 24     | 20     | 2    | `handle`             | number of the disk; not used               |
//! | 28     | 24     | 8×4  | `indirect_grefs`     | grant references of the pages of segments  |
//!
//! **Operations.** Reads and writes are always possible; with segments in the slot, that is. What
//! else a backend offers, it announces in its directory in xenstore; requests that it did not
//! offer it answers as not supported.
//!
//! | operation | announced by                    | what it does                                   |
//! |-----------|---------------------------------|------------------------------------------------|
//! | read      |                                 | disk to pages                                  |
//! | write     |                                 | pages to disk                                  |
//! | flush     | `feature-flush-cache` = 1       | makes answered writes durable; then writes     |
//! | barrier   | `feature-barrier` = 1           | as a flush; no other request passes it         |
//! | discard   | `feature-discard` = 1           | forgets sectors                                |
//! |           | `discard-secure` = 1            | the same, so that nobody can recover them      |
//! | indirect  | `feature-max-indirect-segments` | a read or a write, with up to this many segments |
//!
//! Flushes and barriers need no segment. But for barriers, requests take effect in no particular
//! order: a frontend that wants one waits for the response to the other.
//!
//! **A response** (`struct blkif_response`) is the same for both layouts:
//!
//! | offset | size | field       | meaning                                                      |
//! |--------|------|-------------|--------------------------------------------------------------|
//! | 0      | 8    | `id`        | of the request                                               |
//! | 8      | 1    | `operation` | of the request; for an indirect one, its `indirect_op`       |
//! | 10     | 2    | `status`    | 0: done, -1: failed, -2: not supported ([`Status`])          |
//!
//! # Trust
//!
//! A frontend may be malicious and write to the ring at any moment. Each slot is copied once into
//! private memory ([`RawSlot`]), and only the copy is judged ([`parse`]). A page of segments is as
//! open to the frontend as the ring: each word of it is read once and judged by
//! [`IndirectSegments`]. The types of what comes out ([`Transfer`], [`Segment`], [`Discard`],
//! [`Indirect`], [`Extent`]) cannot be built in any other way, and cannot hold a value that
//! violates a rule.
//!
//! # Life of a request
//!
//! ```
//! use blkif::{parse, BackRing, Disk, RawSlot, Request, RingError, SharedRing, Status};
//!
//! /// Serves all requests that are waiting; returns whether to send an event.
//! fn serve(
//!     ring: &mut BackRing,
//!     shared: &impl SharedRing,
//!     disk: &Disk,
//!     mut execute: impl FnMut(&Request<'_>) -> Status,
//! ) -> Result<bool, RingError> {
//!     let mut notify = false;
//!     let mut slot = RawSlot::new();
//!     loop {
//!         while ring.next_request(shared, &mut slot)? {
//!             let response = match parse(ring.abi(), &slot, disk) {
//!                 Ok(parsed) => parsed.response(execute(&parsed.command)),
//!                 Err(rejected) => rejected.response(),
//!             };
//!             ring.put_response(shared, response);
//!         }
//!         notify |= ring.publish(shared);
//!         if !ring.final_check(shared, 1)? {
//!             return Ok(notify);
//!         }
//!     }
//! }
//! ```

// The kernel's build passes `no_std` itself.
#![cfg_attr(not(any(test, CONFIG_RUST)), no_std)]
#![forbid(unsafe_code)]

pub mod abi;
pub mod disk;
pub mod moderation;
pub mod node;
pub mod persistent;
pub mod request;
pub mod response;
pub mod ring;
pub mod segment;
pub mod share;

pub use crate::{
    abi::{
        Abi,
        UnknownProtocol, //
    },
    disk::{
        Direction,
        DiscardOffer,
        Disk, //
    },
    moderation::Moderation,
    request::{
        parse,
        Discard,
        Parsed,
        Request, //
    },
    response::{
        Reject,
        Rejected,
        Response,
        Status, //
    },
    ring::{
        BackRing,
        RawSlot,
        RingError,
        SharedRing, //
    },
    segment::{
        Extent,
        Indirect,
        IndirectSegments,
        Segment,
        Transfer, //
    }, //
};
