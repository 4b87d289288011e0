// SPDX-License-Identifier: GPL-2.0

//! What a disk has done, for its files in sysfs.
//!
//! A ring counts what it answers in [`Counts`] of its own, and adds them to the disk's [`Stats`]
//! once for each batch.

#![forbid(unsafe_code)]

use blkif::abi::SECTOR_SIZE;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use xen_bindings::sysfs::{
    Attribute,
    Group,
    Value, //
};

use crate::{
    driver::DeviceData,
    request::Action, //
};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $file:literal,)*) => {
        /// Numbers of a disk, from its first connection on.
        pub(crate) struct Stats {
            $($(#[$doc])* $name: Atomic<i64>,)*
        }

        /// Numbers of a batch.
        #[derive(Default)]
        pub(crate) struct Counts {
            $(pub(crate) $name: i64,)*
        }

        impl Stats {
            pub(crate) fn new() -> Self {
                Self { $($name: Atomic::new(0),)* }
            }

            /// Adds what has been counted, and begins anew.
            pub(crate) fn add(&self, counts: &mut Counts) {
                $(
                    if counts.$name != 0 {
                        self.$name.fetch_add(counts.$name, Relaxed);
                        counts.$name = 0;
                    }
                )*
            }
        }

        const COUNTERS: &[Attribute<DeviceData>] = &[
            $(Attribute {
                name: $file,
                show: |data| Value::Number(data.stats().$name.load(Relaxed).unsigned_abs()),
            },)*
        ];
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
    /// Requests that are not counted above: they are against the protocol, or for something that
    /// was not offered.
    refused: c"refused",
}

impl Counts {
    /// A request of `bytes` bytes has been answered.
    pub(crate) fn request(&mut self, action: Action, bytes: u32, failed: bool) {
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
}

/// The files of a disk.
pub(crate) const GROUPS: &[Group<DeviceData>] = &[
    Group {
        name: None,
        attributes: &[
            Attribute {
                name: c"physical_device",
                show: |data| {
                    let (major, minor) = data.physical_device();
                    Value::Device(major, minor)
                },
            },
            Attribute {
                name: c"mode",
                show: |data| Value::Text(data.mode()),
            },
        ],
    },
    Group {
        name: Some(c"statistics"),
        attributes: COUNTERS,
    },
];
