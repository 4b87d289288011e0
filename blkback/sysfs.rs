// SPDX-License-Identifier: GPL-2.0

//! A disk's files in sysfs, for programs and administrators: besides those that the bus has of its device.
//!
//! Owns nothing. Reading and writing them waits for nothing that happens to the disk.

#![forbid(unsafe_code)]

use kernel::{
    prelude::*,
    sync::Arc, //
};
use xen_bindings::sysfs::{
    Attribute,
    Content,
    Group, //
};

use crate::{
    stats::{
        Counters,
        Stats, //
    },
    vbd::Vbd, //
};

impl AsRef<Stats> for Arc<Vbd> {
    fn as_ref(&self) -> &Stats {
        self.stats()
    }
}

/// The files of a disk.
pub(crate) const GROUPS: &[Group<Arc<Vbd>>] = &[
    Group {
        name: None,
        attributes: &[
            Attribute {
                name: c"physical_device",
                show: |vbd| {
                    let (major, minor) = vbd.physical_device();
                    Content::Device(major, minor)
                },
                store: None,
            },
            Attribute {
                name: c"mode",
                show: |vbd| Content::Text(vbd.access_mode()),
                store: None,
            },
            Attribute {
                name: c"quiesce",
                show: |vbd| Content::Text(vbd.quiescence()),
                store: Some(|vbd, text| {
                    vbd.set_quiesce(match text {
                        b"0" => false,
                        b"1" => true,
                        _ => return Err(EINVAL),
                    });
                    Ok(())
                }),
            },
            Attribute {
                name: c"guest_mapped",
                show: |vbd| Content::Number(vbd.stats().guest.share().mapped().into()),
                store: None,
            },
            Attribute {
                name: c"guest_mapped_max",
                show: |vbd| Content::Number(vbd.stats().guest.share().limit().into()),
                store: None,
            },
        ],
    },
    Group {
        name: Some(c"statistics"),
        attributes: Counters::FILES,
    },
];
