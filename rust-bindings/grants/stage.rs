// SPDX-License-Identifier: GPL-2.0

//! How a request is put together from the grants that its segments name.

use kernel::prelude::*;

use super::{
    copy::Copier,
    Grants, //
};
use crate::request::{
    memory::Memory,
    Direction,
    Owner,
    Staged,
    INLINE_SEGMENTS, //
};

/// Requests of up to this many segments are copied, larger ones mapped. For 16 segments a copy still takes
/// fewer instructions than mapping and unmapping; but these do not see what it costs to move the data.
const COPIED_SEGMENTS: usize = INLINE_SEGMENTS;

/// Builds a request from its segments.
pub struct Builder<'a, T: Owner> {
    request: &'a mut Staged<T>,
    grants: &'a mut Grants,
}

impl<T: Owner> Builder<'_, T> {
    /// As [`Grants::copy`].
    ///
    /// # Errors
    ///
    /// `EFAULT` if the guest has granted no such page.
    pub fn copy<'a>(
        &mut self,
        copier: &'a mut Copier,
        gref: u32,
        pairs: usize,
    ) -> Result<&'a [u64]> {
        self.grants.copy(gref, pairs, copier)
    }

    /// Adds a piece of guest memory: grant reference, offset and length in bytes, both of them multiples of
    /// a sector's. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if a page cannot be had, `ENOSPC` if the guest may not have more pages mapped now, `EINVAL` if the
    /// piece is not one or more whole sectors within a page, or if there is no room.
    pub fn add(&mut self, gref: u32, offset: u32, len: u32) -> Result {
        let grants = &mut *self.grants;
        self.request.add(offset, len, |room| {
            grants.slot(gref, room <= COPIED_SEGMENTS)
        })
    }
}

impl<T: Owner> Staged<T> {
    /// Builds a request in `memory`, whose segments `fill` adds. May sleep.
    ///
    /// # Errors
    ///
    /// That of `fill`, and gives everything back.
    pub fn new<E>(
        memory: Memory<T>,
        data: T,
        direction: Direction,
        grants: &mut Grants,
        fill: impl FnOnce(&mut Builder<'_, T>) -> Result<(), E>,
    ) -> Result<Self, (E, Memory<T>, T)> {
        let mut request = Self::empty(memory, data, direction, grants.id());
        let mut builder = Builder {
            request: &mut request,
            grants,
        };
        match fill(&mut builder) {
            Ok(()) => Ok(request),
            Err(err) => {
                for slot in request.slots() {
                    grants.put_back(*slot);
                }
                let (memory, data) = request.dissolve();
                Err((err, memory, data))
            }
        }
    }
}
