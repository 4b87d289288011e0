// SPDX-License-Identifier: GPL-2.0

//! The fuzz target of the module of this name.

#![no_main]

blkif_fuzz::target!(slot);
