// SPDX-License-Identifier: GPL-2.0

//! Operations on grants that go into one hypercall, and what belongs to each of them.

use core::ops::{
    Deref,
    DerefMut, //
};
use kernel::prelude::*;

/// Most elements. A hypercall of 64 operations costs Xen some tens of microseconds, and its arrays 5 KiB of memory
/// per ring.
const SIZE: usize = 64;

/// Elements in the order in which they were added.
///
/// # Invariants
///
/// There is room for [`SIZE`] elements.
pub(crate) struct Batch<T>(KVec<T>);

impl<T> Batch<T> {
    /// May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        // INVARIANT: The room is allocated here.
        Ok(Self(KVec::with_capacity(SIZE, GFP_KERNEL)?))
    }

    /// Is there no room for another element?
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= SIZE
    }

    /// Adds an element, for which there must be room.
    #[inline]
    pub(crate) fn push(&mut self, element: T) {
        let _ = self.0.push_within_capacity(element);
    }

    /// Forgets all.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

impl<T> Deref for Batch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for Batch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}
