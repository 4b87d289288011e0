// SPDX-License-Identifier: GPL-2.0

//! What the `kernel` crate lacks for a Xen block backend: safe abstractions over xenbus, xenstore,
//! grants, event channels, shared rings, bios, block devices and direct file I/O.
//!
//! All unsafe code of the project is in this crate. The layers, bottom up:
//!
//! - [`raw`]: generated bindings, private to the crate.
//! - [`mem`], [`thread`], [`work`], [`completion`], [`clock`], [`sysfs`]: allocation scopes, threads, workqueues, clocks,
//!   a device's files.
//! - [`xen`]: xenbus, xenstore, event channels, shared rings.
//! - [`module`]: this module's parameters, tracepoints and log lines.
//! - [`request`]: a request from the grant references to the finished I/O and the states that it goes through, lists
//!   of requests, several as one I/O, memory for the next.
//! - [`grants`]: a guest's pages, mapped, copied, or mapped already.
//! - [`storage`]: where a request's I/O goes.
//!
//! What is not in [`module`] is shaped to be sent upstream.

#![cfg_attr(not(CONFIG_RUST), no_std)]
#![deny(unsafe_op_in_unsafe_fn)]

mod raw;

pub mod clock;
pub mod completion;
pub mod grants;
pub mod mem;
pub mod module;
pub mod request;
pub mod storage;
pub mod sysfs;
pub mod thread;
pub mod work;
pub mod xen;

/// Prefix of this crate's log lines: those of the module it is part of.
const __LOG_PREFIX: &[u8] = b"xen_blkback_rs\0";
