// SPDX-License-Identifier: GPL-2.0

//! Xen block backend: serves the disks of Xen guests from block devices and from files.
//!
//! This file is only the module's declaration; `module!` expands to code that `forbid(unsafe_code)`
//! would refuse. Everything else is in the modules, safe code all of it:
//!
//! - [`driver`]: what the xenbus sees.
//! - [`context`]: what all disks share.
//! - [`vbd`]: the life of one disk.
//! - [`handover`]: how a file comes to us from the toolstack.
//! - [`medium`]: where a disk's data are.
//! - [`connection`]: what is set up with a connected frontend.
//! - [`ring`]: the data path.
//! - [`task`]: what a request wants.
//! - [`stats`]: what is counted.
//! - [`sysfs`], [`debug`]: what is shown in sysfs and debugfs.

#![cfg_attr(not(CONFIG_RUST), no_std)]

use kernel::prelude::*;

mod connection;
mod context;
mod debug;
mod driver;
mod guest;
mod handover;
mod medium;
mod ring;
mod stats;
mod sysfs;
mod task;
mod vbd;

module! {
    type: driver::Module,
    name: "xen_blkback_rs",
    authors: ["xen-blkback-rs developers"],
    description: "Xen block backend for block devices and files",
    license: "GPL",
    alias: ["xen-backend:vbd"],
}
