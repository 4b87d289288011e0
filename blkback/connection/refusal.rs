// SPDX-License-Identifier: GPL-2.0

//! Why a frontend is not connected.

#![forbid(unsafe_code)]

use core::ops::RangeInclusive;

use blkif::RingError;
use kernel::{
    fmt::{
        self,
        Display, //
    },
    prelude::*,
};

/// Where a frontend has the nodes of a ring: with those of the disk, or in a directory for each queue.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) frontend: &'a CStr,
    pub(super) queue: Option<u32>,
}

impl<'a> Place<'a> {
    pub(super) fn refusal(self, error: Error, what: What) -> Refusal<'a> {
        Refusal {
            error,
            place: self,
            what,
        }
    }
}

impl Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self.frontend, f)?;
        match self.queue {
            None => Ok(()),
            Some(queue) => f.write_fmt(fmt!("/queue-{}", queue)),
        }
    }
}

/// Why there is no connection. Shown, it is what goes to the log and to the error node.
pub(crate) struct Refusal<'a> {
    pub(crate) error: Error,
    place: Place<'a>,
    what: What,
}

/// A node of a ring.
#[derive(Clone, Copy)]
pub(super) enum Node {
    Name(&'static CStr),
    /// With the grant of the page of this number, from 0.
    Grant(u32),
}

impl Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => Display::fmt(*name, f),
            Self::Grant(index) => f.write_fmt(fmt!("ring-ref{}", *index)),
        }
    }
}

/// What has failed, or what is wrong.
pub(super) enum What {
    /// There is no memory for this many rings.
    Rings(u32),
    Gate,
    Workqueue,
    Ring,
    Thread,
    /// There is no memory for the name of the directory.
    Directory,
    /// Reading a node.
    Read(Node),
    /// A node has a number that has not been offered.
    Range(&'static CStr, u32, RangeInclusive<u32>),
    Protocol,
    /// No ring has this many pages.
    Pages(usize),
    Map,
    /// What the ring has in it.
    Bogus(RingError),
    /// Binding the event channel of this number, which somebody else may have still.
    Bind(u32),
}

impl Refusal<'_> {
    /// Is it about an event channel that somebody else may have still?
    pub(crate) fn is_about_channel(&self) -> bool {
        matches!(self.what, What::Bind(_))
    }
}

impl Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = &self.place;
        match &self.what {
            What::Rings(count) => f.write_fmt(fmt!("allocating {} rings", *count)),
            What::Gate => f.write_str("allocating the rings' gate"),
            What::Workqueue => f.write_str("allocating a workqueue"),
            What::Ring => f.write_str("allocating a ring"),
            What::Thread => f.write_str("starting a thread"),
            What::Read(node) => f.write_fmt(fmt!("reading {}/{}", *place, *node)),
            What::Directory => f.write_fmt(fmt!("reading {}", *place)),
            What::Range(node, value, range) => f.write_fmt(fmt!(
                "{}/{} is {}, offered was {} to {}",
                *place,
                *node,
                *value,
                *range.start(),
                *range.end()
            )),
            What::Protocol => f.write_fmt(fmt!(
                "{}/protocol names a protocol that is not known",
                *place
            )),
            What::Pages(pages) => f.write_fmt(fmt!("a ring of {} pages", *pages)),
            What::Map => f.write_fmt(fmt!("mapping the ring in {}", *place)),
            What::Bogus(why) => f.write_fmt(fmt!("ring in {}: {}", *place, format_args!("{why}"))),
            What::Bind(port) => f.write_fmt(fmt!("binding {}/event-channel {}", *place, *port)),
        }
    }
}
