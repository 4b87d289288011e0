// SPDX-License-Identifier: GPL-2.0

//! What a disk has done, for its files in sysfs and debugfs.
//!
//! A ring counts what it answers in [`Counts`] of its own, and adds them to the disk's [`Stats`]
//! once for each batch; how long a request took goes into a [`Latency`] at once.

#![forbid(unsafe_code)]

use core::{
    array,
    marker::PhantomData, //
};

use blkif::abi::SECTOR_SIZE;
use kernel::{
    fmt,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};
use xen_bindings::{
    grants::PageCounts,
    sysfs::{
        Attribute,
        Content, //
    }, //
};

use crate::{
    guest::GuestOfDisk,
    task::{
        Action,
        Way, //
    }, //
};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $file:literal,)*) => {
        /// Numbers of a disk, from its first connection on.
        pub(crate) struct Stats {
            $($(#[$doc])* $name: Atomic<i64>,)*
            pub(crate) latency: Latency,
            /// Whose disk it is.
            pub(crate) guest: GuestOfDisk,
        }

        /// Numbers of a batch.
        #[derive(Default)]
        pub(crate) struct Counts {
            $(pub(crate) $name: i64,)*
        }

        impl Stats {
            /// Those of a disk of `guest`.
            pub(crate) fn new(guest: GuestOfDisk) -> Self {
                Self {
                    guest,
                    $($name: Atomic::new(0),)*
                    latency: Latency::new(),
                }
            }

            /// Adds what has been counted, and begins anew.
            #[inline]
            pub(crate) fn add(&self, counts: &mut Counts) {
                $(
                    if counts.$name != 0 {
                        self.$name.fetch_add(counts.$name, Relaxed);
                        counts.$name = 0;
                    }
                )*
            }
        }

        /// Files of the counters of what a `D` is.
        pub(crate) struct Counters<D>(PhantomData<D>);

        impl<D: AsRef<Stats> + 'static> Counters<D> {
            pub(crate) const FILES: &'static [Attribute<D>] = &[
                $(Attribute {
                    name: $file,
                    show: |data| Content::Number(data.as_ref().$name.load(Relaxed).unsigned_abs()),
                    store: None,
                },)*
            ];
        }
    };
}

// Up to the sectors, the files have the names and meanings of xen-blkback's.
counters! {
    /// Times that a request had to wait for memory.
    starved: c"oo_req",
    reads: c"rd_req",
    writes: c"wr_req",
    /// Flushes and barriers.
    flushes: c"f_req",
    discards: c"ds_req",
    /// Sectors of 512 bytes.
    sectors_read: c"rd_sect",
    sectors_written: c"wr_sect",
    /// Of the requests, those that the storage did not do.
    read_errors: c"rd_err",
    write_errors: c"wr_err",
    flush_errors: c"f_err",
    discard_errors: c"ds_err",
    /// Of the requests, those that went through the page cache of a file.
    buffered: c"buffered_req",
    /// Requests that are not counted above: they are against the protocol, or for something that
    /// was not offered.
    refused: c"refused",
    /// Pages of the guest that were mapped for a request, copied, or mapped already.
    mapped: c"pages_mapped",
    copied: c"pages_copied",
    persistent: c"pages_persistent",
    /// Times that a request had to wait because too much of its guest, or of all guests, was mapped.
    map_waits: c"map_waits",
    /// Events that told the frontend of answers.
    events: c"events_sent",
}

/// Counters of a histogram. Counter n is for times below 2^n microseconds that are not in the one
/// before; the last one is also for all longer ones, from 8 seconds on.
const TIMES: usize = 25;

/// Kinds of requests that have a histogram, as in [`Latency::row`].
const KINDS: usize = 4;

/// How many requests took how long, from being taken from the ring to their answer.
pub(crate) struct Latency([[Atomic<i64>; TIMES]; KINDS]);

impl Latency {
    fn new() -> Self {
        Self(array::from_fn(|_| array::from_fn(|_| Atomic::new(0))))
    }

    fn row(action: Action) -> usize {
        match action {
            Action::Read => 0,
            Action::Write => 1,
            Action::Flush | Action::Barrier => 2,
            Action::Discard(_) => 3,
        }
    }

    /// Counts a request that has been answered, and the time it took.
    pub(crate) fn add(&self, action: Action, nanoseconds: u64) {
        let bits = u64::BITS.wrapping_sub((nanoseconds >> 10).leading_zeros());
        let row = self.0.get(Self::row(action));
        if let Some(counter) = row.and_then(|row| row.get((bits as usize).min(TIMES - 1))) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Writes a table: a line for each time, which is the upper limit in microseconds, with the
    /// numbers of reads, writes, flushes and discards.
    pub(crate) fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [reads, writes, flushes, discards] = &self.0;
        f.write_str("us read write flush discard\n")?;
        let columns = reads.iter().zip(writes).zip(flushes.iter().zip(discards));
        let mut limit = 1u64;
        for ((read, write), (flush, discard)) in columns {
            let [read, write, flush, discard] =
                [read, write, flush, discard].map(|n| n.load(Relaxed));
            writeln!(f, "{limit} {read} {write} {flush} {discard}")?;
            limit = limit.wrapping_mul(2);
        }
        Ok(())
    }
}

impl Counts {
    /// A request of `bytes` bytes has been answered.
    pub(crate) fn request(&mut self, action: Action, way: Way, bytes: u32, failed: bool) {
        let buffered = way == Way::Buffered && bytes != 0;
        self.buffered = self.buffered.wrapping_add(i64::from(buffered));
        let sectors = i64::from(bytes.wrapping_div(SECTOR_SIZE));
        let (requests, errors) = match action {
            Action::Read => (&mut self.reads, &mut self.read_errors),
            Action::Write => (&mut self.writes, &mut self.write_errors),
            Action::Flush | Action::Barrier => (&mut self.flushes, &mut self.flush_errors),
            Action::Discard(_) => (&mut self.discards, &mut self.discard_errors),
        };
        *requests = requests.wrapping_add(1);
        *errors = errors.wrapping_add(i64::from(failed));
        let total = match action {
            Action::Read => &mut self.sectors_read,
            _ => &mut self.sectors_written,
        };
        *total = total.wrapping_add(sectors);
    }

    /// So many pages have been made accessible.
    pub(crate) fn pages(&mut self, counts: PageCounts) {
        self.mapped = self.mapped.wrapping_add(i64::from(counts.mapped));
        self.copied = self.copied.wrapping_add(i64::from(counts.copied));
        self.persistent = self.persistent.wrapping_add(i64::from(counts.persistent));
    }
}
