// SPDX-License-Identifier: GPL-2.0

//! Requests on their way to a file, where those whose data follow one another are one I/O.
//!
//! The first one of them owns the others, and is submitted, deferred and given back for all: its memory
//! has the vectors of all, and its kiocb is the only one in use.

use kernel::{
    pr_err_once,
    prelude::*, //
};

use crate::{
    raw,
    request::{
        list::List,
        sealed::RequestState,
        Inner,
        Joined,
        Mapped,
        Owner, //
    },
    work::OwnedQueue, //
};

/// The requests behind the first one.
pub(crate) struct Rest<T: Owner> {
    requests: List<Mapped<T>>,
    /// Number of their vectors.
    count: u16,
    /// Length of their data in bytes.
    bytes: u32,
}

impl<T: Owner> Rest<T> {
    pub(crate) const fn new() -> Self {
        Self {
            requests: List::new(),
            count: 0,
            bytes: 0,
        }
    }
}

impl<T: Owner> Inner<T> {
    /// Number of vectors, those of the requests that are joined to it included.
    pub(crate) fn joined_count(&self) -> u32 {
        self.count().wrapping_add(u32::from(self.rest.count))
    }

    /// Length of the data in bytes, those of the requests that are joined to it included.
    pub(crate) fn joined_bytes(&self) -> u32 {
        self.bytes.wrapping_add(self.rest.bytes)
    }

    /// Are requests joined to it?
    pub(crate) fn is_joined(&self) -> bool {
        !self.rest.requests.is_empty()
    }
}

impl<T: Owner> From<Mapped<T>> for Joined<T> {
    fn from(io: Mapped<T>) -> Self {
        Self::from_inner(io.into_inner())
    }
}

impl<T: Owner> Joined<T> {
    /// Length of the data of all of them in bytes.
    pub fn bytes(&self) -> u32 {
        self.0.joined_bytes()
    }

    /// Is it more than one?
    pub fn is_joined(&self) -> bool {
        self.0.is_joined()
    }

    /// Adds `next`, whose data must be what follows in the same file. Any context.
    ///
    /// # Errors
    ///
    /// Gives `next` back if that cannot be done: it goes the other way, some of either has been
    /// transferred, or the memory of the first one has no room for the vectors. There is room for
    /// [`INLINE_SEGMENTS`], or [`MAX_SEGMENTS`] in a request that has more than the former by itself.
    ///
    /// [`INLINE_SEGMENTS`]: crate::request::INLINE_SEGMENTS
    /// [`MAX_SEGMENTS`]: crate::request::MAX_SEGMENTS
    pub fn join(&mut self, next: Mapped<T>) -> Result<(), Mapped<T>> {
        let inner = &mut **self.0;
        let count = inner.joined_count() as usize;
        let (_, vecs, room) = inner.segments_mut();
        let more = next.0.vecs();
        if room.saturating_sub(count) < more.len()
            || next.0.direction() != inner.direction()
            || (inner.progress | next.0.progress) != 0
        {
            return Err(next);
        }
        // SAFETY: There is room for as many elements behind the ones that are there, in other memory.
        unsafe { core::ptr::copy_nonoverlapping(more.as_ptr(), vecs.add(count), more.len()) };
        // INVARIANT: Checked and copied above. There are no more than `MAX_SEGMENTS` vectors, each at most a
        // page long: nothing wraps around.
        inner.rest.count = inner.rest.count.wrapping_add(next.0.count() as u16);
        inner.rest.bytes = inner.rest.bytes.wrapping_add(next.0.bytes);
        inner.rest.requests.push(next);
        Ok(())
    }

    /// Parts them, and gives `each` all of them in their order. Any context that `each` may be called in.
    pub fn part(mut self, mut each: impl FnMut(Mapped<T>)) {
        let mut rest = core::mem::replace(&mut self.0.rest, Rest::new()).requests;
        // INVARIANT: The rest was taken away.
        each(Mapped::from_inner(self.into_inner()));
        while let Some(io) = rest.pop() {
            each(io);
        }
    }

    /// Ends requests that are submitted to what they do not keep open, which is a fault of the driver.
    #[cold]
    pub(crate) fn refuse(self) {
        pr_err_once!("I/O of a request that does not keep its medium open is refused\n");
        self.part(|io| io.done(Err(EBADF)));
    }

    /// Has [`Owner::run`] called in task context, by `queue`. May be called in any context.
    pub fn defer(self, queue: &OwnedQueue) {
        let ptr = KBox::into_raw(self.into_inner());
        // SAFETY: The requests are ours until the work item runs, which gives them back.
        unsafe {
            let work = Inner::work(ptr);
            raw::init_work(work, Some(Self::run_deferred));
            raw::queue_work(queue.as_ptr(), work);
        }
    }

    /// # Safety
    ///
    /// Called by the workqueue only, for requests that [`Joined::defer`] queued.
    unsafe extern "C" fn run_deferred(work: *mut raw::work_struct) {
        // SAFETY: `work` is the field of a request; `defer` left its ownership to us.
        //
        // INVARIANT: They were joined as they are when they were deferred.
        let io = unsafe { Self::from_inner(KBox::from_raw(Inner::of_work(work))) };
        T::run(io);
    }
}
