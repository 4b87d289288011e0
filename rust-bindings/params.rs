// SPDX-License-Identifier: GPL-2.0

//! The module's parameters: names, meanings and defaults of xen-blkback's.
//!
//! They are declared in `params.c`, appear in `/sys/module/xen_blkback_rs/parameters/`, and can be
//! changed there while they are read here.

use crate::{
    raw,
    ring::MAX_RING_ORDER, //
};

/// Most queues that a frontend may use for one disk, at least 1 (`max_queues`).
pub fn max_queues() -> u32 {
    // SAFETY: A static of the module, read once.
    match unsafe { (&raw const raw::xbr_max_queues).read_volatile() } {
        // SAFETY: May be called in any context.
        0 => unsafe { raw::num_online_cpus() },
        max => max,
    }
}

/// Largest order of the number of a ring's pages that a frontend may use, at most
/// [`MAX_RING_ORDER`] (`max_ring_page_order`).
pub fn max_ring_page_order() -> u32 {
    // SAFETY: A static of the module, read once.
    unsafe { (&raw const raw::xbr_max_ring_page_order).read_volatile() }.min(MAX_RING_ORDER)
}
