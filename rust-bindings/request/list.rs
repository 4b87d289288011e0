// SPDX-License-Identifier: GPL-2.0

//! Lists of requests, linked through their own memory.

use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::prelude::*;

use crate::{
    raw,
    request::{
        sealed::RequestState,
        Done,
        Inner,
        Owner, //
    }, //
};

/// A first-in first-out list of requests in one state, linked through their own memory.
pub struct List<S: RequestState> {
    first: *mut raw::llist_node,
    last: *mut raw::llist_node,
    _owns: PhantomData<S>,
}

// SAFETY: The list owns its requests.
unsafe impl<S: RequestState + Send> Send for List<S> {}

impl<S: RequestState> List<S> {
    /// An empty list.
    pub const fn new() -> Self {
        Self {
            first: core::ptr::null_mut(),
            last: core::ptr::null_mut(),
            _owns: PhantomData,
        }
    }

    /// Is there nothing in the list?
    pub fn is_empty(&self) -> bool {
        self.first.is_null()
    }

    /// Appends a request.
    pub fn push(&mut self, request: S) {
        let ptr = KBox::into_raw(request.into_inner());
        // SAFETY: `ptr` is ours, and from here on the list's: a chain of one.
        unsafe {
            let node = Inner::link(ptr);
            (*node).next = core::ptr::null_mut();
            self.splice(node, node);
        }
    }

    /// Appends a chain of requests.
    ///
    /// # Safety
    ///
    /// `first` to `last` are linked nodes of requests, which the caller owns and gives away; nothing follows `last`.
    unsafe fn splice(&mut self, first: *mut raw::llist_node, last: *mut raw::llist_node) {
        if self.last.is_null() {
            self.first = first;
        } else {
            // SAFETY: `last` is, as it is not null, the node of a request in the list.
            unsafe { (*self.last).next = first };
        }
        self.last = last;
    }

    /// Takes the first request.
    pub fn pop(&mut self) -> Option<S> {
        let node = NonNull::new(self.first)?.as_ptr();
        // SAFETY: `node` is the link of a request in this state, which the list owns.
        unsafe {
            self.first = (*node).next;
            if self.first.is_null() {
                self.last = core::ptr::null_mut();
            }
            Some(S::from_inner(KBox::from_raw(Inner::of_link(node))))
        }
    }

    /// Appends all of `other`.
    pub fn append(&mut self, other: &mut Self) {
        if !other.is_empty() {
            // SAFETY: All of the other list's requests, which it no longer has from here on.
            unsafe { self.splice(other.first, other.last) };
            other.first = core::ptr::null_mut();
            other.last = core::ptr::null_mut();
        }
    }
}

impl<S: RequestState> Default for List<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: RequestState> List<S> {
    /// What a drop does when it should not be necessary: each request says so.
    #[cold]
    #[inline(never)]
    fn drop_all(&mut self) {
        while self.pop().is_some() {}
    }
}

impl<S: RequestState> Drop for List<S> {
    #[inline]
    fn drop(&mut self) {
        if !self.is_empty() {
            self.drop_all();
        }
    }
}

/// Requests that are done, added in any context without a lock.
pub struct DoneList<T: Owner>(UnsafeCell<raw::llist_head>, PhantomData<T>);

// SAFETY: The list owns its requests.
unsafe impl<T: Owner> Send for DoneList<T> {}
// SAFETY: The operations of an llist are atomic.
unsafe impl<T: Owner> Sync for DoneList<T> {}

impl<T: Owner> DoneList<T> {
    /// An empty list.
    pub const fn new() -> Self {
        Self(
            UnsafeCell::new(raw::llist_head {
                first: core::ptr::null_mut(),
            }),
            PhantomData,
        )
    }

    /// Adds a request; fully ordered. Returns whether the list was empty. Any context.
    pub fn push(&self, done: Done<T>) -> bool {
        let ptr = KBox::into_raw(done.into_inner());
        // SAFETY: The request is ours, and from here on the list's.
        unsafe { raw::llist_add(Inner::link(ptr), self.0.get()) }
    }

    /// Is there nothing in the list?
    pub fn is_empty(&self) -> bool {
        // SAFETY: The head is valid; one pointer of it is read at once, as llist_empty() does.
        unsafe { (&raw const (*self.0.get()).first).read_volatile() }.is_null()
    }

    /// Moves everything to the end of `list`, in the order it was added.
    pub fn take(&self, list: &mut List<Done<T>>) {
        // SAFETY: The head is valid, and what was in it belongs to us after llist_del_all(), and to `list` from
        // here on. The node that was added last is the last one when the order is reversed.
        unsafe {
            let last = raw::llist_del_all(self.0.get());
            if last.is_null() {
                return;
            }
            list.splice(raw::llist_reverse_order(last), last);
        }
    }
}

impl<T: Owner> Drop for DoneList<T> {
    fn drop(&mut self) {
        // None of them is answered, which they say when the list of them is dropped.
        self.take(&mut List::new());
    }
}

impl<T: Owner> Default for DoneList<T> {
    fn default() -> Self {
        Self::new()
    }
}
