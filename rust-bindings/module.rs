// SPDX-License-Identifier: GPL-2.0

//! What belongs to this module and to no other: its parameters, tracepoints and lines in the log.

pub mod log;
pub mod params;
pub mod trace;
