// SPDX-License-Identifier: GPL-2.0

//! Memory of requests, kept from those that are done for the next ones.
//!
//! Owns it while no request is in it.

use core::mem::MaybeUninit;
use kernel::prelude::*;

use crate::{
    mem,
    request::{
        Inner,
        Owner,
        Segments,
        INLINE_SEGMENTS,
        MAX_SEGMENTS, //
    }, //
};

/// Memory for a request, without one.
pub struct Memory<T: Owner> {
    pub(crate) inner: KBox<MaybeUninit<Inner<T>>>,
    pub(crate) large: Option<KBox<MaybeUninit<Segments<MAX_SEGMENTS>>>>,
}

// SAFETY: The memory is ours and not initialised: there is neither a `T` in it, nor a pointer to somebody else.
unsafe impl<T: Owner> Send for Memory<T> {}

impl<T: Owner> Memory<T> {
    /// Allocates, for a request of `segments` segments, at most [`MAX_SEGMENTS`]. May sleep, unless in a
    /// scope that forbids it.
    fn new(segments: usize) -> Result<Self> {
        let mut memory = Self {
            inner: mem::try_box()?,
            large: None,
        };
        memory.grow(segments)?;
        Ok(memory)
    }

    /// Makes room for `segments` segments.
    fn grow(&mut self, segments: usize) -> Result {
        if segments > INLINE_SEGMENTS && self.large.is_none() {
            self.large = Some(mem::try_box()?);
        }
        Ok(())
    }
}

/// Memory for the next requests: what those that are done have left.
///
/// There is always memory for one request whose segments stand in its slot, be it in here or in
/// flight.
pub struct Spares<T: Owner> {
    small: KVec<Memory<T>>,
    /// With room for the segments of indirect requests.
    large: KVec<Memory<T>>,
}

/// Most that is kept of each kind: twice what a ring of one page can have in flight.
const MAX_SPARES: usize = 64;

impl<T: Owner> Spares<T> {
    /// Memory for one request. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        let mut spares = Self {
            small: KVec::with_capacity(1, GFP_KERNEL)?,
            large: KVec::new(),
        };
        spares.put(Memory {
            // Without this one there is no ring.
            inner: KBox::new_uninit(GFP_KERNEL)?,
            large: None,
        });
        Ok(spares)
    }

    /// Memory for a request of `segments` segments, at most [`MAX_SEGMENTS`]. May sleep, unless in a
    /// scope that forbids it.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn take(&mut self, segments: usize) -> Result<Memory<T>> {
        if segments <= INLINE_SEGMENTS {
            if let Some(memory) = self.small.pop() {
                return Ok(memory);
            }
        }
        if let Some(memory) = self.large.pop() {
            return Ok(memory);
        }
        match self.small.pop() {
            Some(mut memory) => match memory.grow(segments) {
                Ok(()) => Ok(memory),
                Err(err) => {
                    self.put(memory);
                    Err(err)
                }
            },
            None => Memory::new(segments),
        }
    }

    /// Keeps memory, or frees it if there is enough. May sleep.
    pub fn put(&mut self, mut memory: Memory<T>) {
        if memory.large.is_some() {
            match Self::push(&mut self.large, memory) {
                None => return,
                Some(back) => memory = back,
            }
            memory.large = None;
        }
        Self::push(&mut self.small, memory);
    }

    /// Gives the memory back if there is no room for it.
    fn push(to: &mut KVec<Memory<T>>, memory: Memory<T>) -> Option<Memory<T>> {
        let len = to.len();
        if len >= MAX_SPARES {
            return Some(memory);
        }
        if len == to.capacity() {
            // If this fails, there is no room.
            let _ = mem::try_reserve(to, len.max(4));
        }
        to.push_within_capacity(memory).err().map(|err| err.0)
    }

    /// Is there more than has to be kept?
    pub fn has_spare(&self) -> bool {
        self.small.len() > 1 || !self.large.is_empty()
    }

    /// Frees all but the memory of one request.
    pub fn trim(&mut self) {
        while self.small.len() > 1 {
            self.small.pop();
        }
        match self.large.pop() {
            Some(memory) if self.small.is_empty() => self.put(Memory {
                large: None,
                ..memory
            }),
            _ => {}
        }
        self.large = KVec::new();
    }
}
