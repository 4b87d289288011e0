// SPDX-License-Identifier: GPL-2.0

//! Rate limit for log lines that a guest can cause.

use crate::raw;

/// Whether a message that a guest can cause may be printed now.
///
/// One limit (`DEFAULT_RATELIMIT_BURST`, 10 lines, per `DEFAULT_RATELIMIT_INTERVAL`, 5 s) for all
/// disks together, so that many disks cannot add up. May be called in any context.
pub fn permitted() -> bool {
    // SAFETY: The helper's state is static; `___ratelimit` may be called in any context.
    unsafe { raw::log_ratelimit() != 0 }
}
