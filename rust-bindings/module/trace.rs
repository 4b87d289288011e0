// SPDX-License-Identifier: GPL-2.0

//! Tracepoints of the module, which cost one instruction that does nothing while they are off.
//!
//! C header: `tracepoints.h` in this folder.
//! `kernel::tracepoint` does the same for tracepoints that the kernel's own bindings know.

use kernel::{
    jump_label::static_branch_unlikely,
    prelude::*, //
};

use crate::raw;

/// A request has been taken from a ring. Task context.
#[inline(always)]
pub fn request_start(disk: &CStr, ring: usize, id: u64, operation: u8, sector: u64, bytes: u32) {
    // SAFETY: The key is that of a tracepoint, defined in C.
    if unsafe {
        static_branch_unlikely!(raw::__tracepoint_xen_blkback_rs_start, raw::tracepoint, key)
    } {
        // SAFETY: `disk` is NUL-terminated, and copied.
        unsafe {
            raw::rust_do_trace_xen_blkback_rs_start(
                disk.as_char_ptr(),
                ring as u32,
                id,
                operation,
                sector,
                bytes,
            )
        };
    }
}

/// A request has been answered, `error` is 0 or a negative errno. Task context.
#[inline(always)]
pub fn request_end(disk: &CStr, ring: usize, id: u64, error: i32, nanoseconds: u64) {
    // SAFETY: The key is that of a tracepoint, defined in C.
    if unsafe {
        static_branch_unlikely!(raw::__tracepoint_xen_blkback_rs_end, raw::tracepoint, key)
    } {
        // SAFETY: `disk` is NUL-terminated, and copied.
        unsafe {
            raw::rust_do_trace_xen_blkback_rs_end(
                disk.as_char_ptr(),
                ring as u32,
                id,
                error,
                nanoseconds,
            )
        };
    }
}
