// SPDX-License-Identifier: GPL-2.0

//! The module's parameters: names, meanings and defaults of xen-blkback's, and four more.
//!
//! They are declared in `params.c`, appear in `/sys/module/xen_blkback_rs/parameters/`, and can be
//! changed there while they are read here.

use blkif::share::{
    Limits,
    SMALLEST, //
};
use kernel::time::{
    msecs_to_jiffies,
    Jiffies, //
};

use crate::{
    raw,
    xen::ring::MAX_RING_ORDER, //
};

/// A parameter, as it is now.
macro_rules! read {
    ($parameter:ident) => {
        // SAFETY: A static of the module, of a type for which all bits that C writes are valid. It is one word
        // of the machine or less, and read once: whoever writes to it meanwhile makes it the old or the new value.
        unsafe { (&raw const raw::$parameter).read_volatile() }
    };
}

/// Most queues that a frontend may use for one disk, at least 1 (`max_queues`).
pub fn max_queues() -> u32 {
    match read!(xbr_max_queues) {
        // SAFETY: May be called in any context.
        0 => unsafe { raw::num_online_cpus() },
        max => max,
    }
}

/// Largest order of the number of a ring's pages that a frontend may use, at most
/// [`MAX_RING_ORDER`] (`max_ring_page_order`).
pub fn max_ring_page_order() -> u32 {
    read!(xbr_max_ring_page_order).min(MAX_RING_ORDER)
}

/// Are persistent grants offered to frontends that connect (`feature_persistent`)?
pub fn feature_persistent() -> bool {
    read!(xbr_feature_persistent)
}

/// Most free pages that a ring keeps to map grants into (`max_buffer_pages`).
#[inline]
pub(crate) fn max_buffer_pages() -> usize {
    read!(xbr_max_buffer_pages) as usize
}

/// Most persistent grants that a ring keeps mapped (`max_persistent_grants`).
#[inline]
pub(crate) fn max_persistent_grants() -> usize {
    read!(xbr_max_persistent_grants) as usize
}

/// Most pages that are mapped, of all guests and of one (`max_mapped_pages`, `max_guest_mapped_pages`).
#[inline]
pub(crate) fn limits() -> Limits {
    // SAFETY: Statics of the module, each read once.
    unsafe {
        Limits {
            all: (&raw const raw::xbr_max_mapped_pages)
                .read_volatile()
                .max(SMALLEST),
            guest: (&raw const raw::xbr_max_guest_mapped_pages).read_volatile(),
        }
    }
}

/// Time after which an unused persistent grant is returned (`persistent_grant_unused_seconds`).
/// `None` means never. At most a day, so that no timer overflows.
#[inline]
pub fn persistent_grant_unused() -> Option<Jiffies> {
    match read!(xbr_persistent_grant_unused_seconds) {
        0 => None,
        seconds => Some(msecs_to_jiffies(seconds.min(86_400).wrapping_mul(1000))),
    }
}

/// Is a busy frontend told of several answers at a time (`moderate_events`)?
#[inline]
pub fn moderate_events() -> bool {
    read!(xbr_moderate_events)
}

/// Is the stock script to make a loop device of a file, as a handle of it (`keep_script`)?
pub fn keep_script() -> bool {
    read!(xbr_keep_script)
}
