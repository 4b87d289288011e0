// SPDX-License-Identifier: GPL-2.0

//! What the `kernel` crate lacks for a Xen block backend: safe abstractions over xenbus, xenstore,
//! grants, event channels, shared rings, bios, block devices and direct file I/O.
//!
//! All unsafe code of the project is in this crate. The layers, bottom up:
//!
//! - [`raw`]: generated bindings, private to the crate.
//! - [`mem`], [`thread`], [`work`], [`clock`], [`log`], [`params`]: allocation scopes, threads,
//!   workqueues, clocks, rate-limited messages, the module's parameters.
//! - [`sysfs`], [`trace`]: what can be seen of a device and of requests.
//! - [`xenbus`], [`xenstore`], [`evtchn`], [`ring`]: Xen.
//! - [`pool`], [`map`], [`copy`], [`persistent`], [`share`], and above them [`grant`]: a guest's pages.
//! - [`io`], [`list`], [`joined`], [`memory`]: a request from the grant references to the finished I/O
//!   and the states that it goes through, lists of requests, several as one I/O, memory for the next.
//! - [`bdev`], [`file`](mod@file), [`path`]: where a request's I/O goes.
//!
//! Each file is shaped to be sent upstream by itself.

#![cfg_attr(not(CONFIG_RUST), no_std)]
#![deny(unsafe_op_in_unsafe_fn)]

mod raw;

pub mod bdev;
mod bind;
pub mod clock;
pub mod completion;
pub mod copy;
pub mod device;
pub mod evtchn;
pub mod file;
pub mod grant;
pub mod io;
pub mod joined;
pub mod list;
pub mod log;
mod map;
pub mod mem;
pub mod memory;
pub mod params;
pub mod path;
mod persistent;
mod pool;
pub mod ring;
pub mod share;
pub mod sysfs;
pub mod thread;
pub mod trace;
pub mod work;
pub mod xenbus;
pub mod xenstore;
pub mod xenwatch;

/// Prefix of this crate's log lines: those of the module it is part of.
const __LOG_PREFIX: &[u8] = b"xen_blkback_rs\0";
