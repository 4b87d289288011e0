// SPDX-License-Identifier: GPL-2.0

//! Xen's buses: devices and their directories, events, and the rings that two domains share.

mod bind;
pub mod device;
pub mod evtchn;
pub mod ring;
pub mod xenbus;
pub mod xenstore;
pub mod xenwatch;
