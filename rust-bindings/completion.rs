// SPDX-License-Identifier: GPL-2.0

//! Waiting for something that may take long, such as for storage that hangs.
//!
//! C header: [`include/linux/completion.h`](srctree/include/linux/completion.h)

use kernel::{
    prelude::*,
    types::Opaque, //
};

use crate::raw;

/// Something that happens once, and can be waited for as long as it takes: as [`kernel::sync::Completion`], but who
/// waits neither counts as load nor is reported as a task that hangs.
#[pin_data]
pub struct Completion {
    #[pin]
    inner: Opaque<raw::completion>,
}

// SAFETY: A `completion` may be used in any task.
unsafe impl Send for Completion {}
// SAFETY: All operations on a `completion` take its own lock.
unsafe impl Sync for Completion {}

impl Completion {
    /// It has not happened.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- Opaque::ffi_init(|slot: *mut raw::completion| {
                // SAFETY: `slot` may be written.
                unsafe { raw::init_completion(slot) };
            }),
        })
    }

    /// It has happened: everybody who waits goes on, and nobody waits from now on. Any context.
    pub fn complete_all(&self) {
        // SAFETY: It was initialised by `new`, and is pinned.
        unsafe { raw::complete_all(self.inner.get()) }
    }

    /// Waits until it has happened. Cannot be interrupted. May sleep.
    pub fn wait(&self) {
        // SAFETY: As above.
        unsafe { raw::wait_for_completion_idle(self.inner.get()) }
    }
}
