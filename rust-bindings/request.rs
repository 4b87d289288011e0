// SPDX-License-Identifier: GPL-2.0

//! One request on its way through the backend.
//!
//! A request is one allocation that holds all it needs: the grants and the pages they are mapped
//! into, the vector that the block layer reads, the bio or the kiocb, and the driver's own data.
//! Who owns it, and what may be done with it, is its type:
//!
//! ```text
//!  Memory ─ Staged::new ─► Staged ─ Grants::map ─► Mapped ─ submit, flush ─► (I/O in flight)
//!    ▲                                │             │  ▲                │        │
//!    │                        failed  │        from ▼  │ part            │        │ Owner::complete
//!    │                                │            Joined ─ submit ─────┘        │
//!    │                                │             │  ▲ └── Owner::retry ◄──────┤
//!    │                                │       defer ▼  │                         │
//!    │                                │         Owner::run                       │
//!    │                                ▼                                          │
//!  Finished ◄──── Grants::unmap ──── Done ◄──────────────────────────────────────┘
//! ```
//!
//! Each arrow consumes the value that it starts from. The driver's data, which stand for the
//! obligation to answer the guest, come in at the start and are given back once, at the end.
//!
//! Requests whose data follow one another in a file can be joined ([`Joined::join`]). They part before
//! they are done.

pub(crate) mod joined;
pub mod list;
pub mod memory;
pub(crate) mod slot;
mod target;

use core::{
    cell::UnsafeCell,
    mem::{
        ManuallyDrop,
        MaybeUninit, //
    },
};
use kernel::{
    pr_err_once,
    prelude::*,
    sync::atomic::{
        Atomic,
        Full, //
    },
};

use crate::{
    raw,
    work::OwnedQueue, //
};
pub use blkif::Direction;
use joined::Rest;
use memory::Memory;
use slot::Slot;

pub use target::Mode;
pub(crate) use target::{
    FileOp,
    Target, //
};

/// Most segments of a request.
pub const MAX_SEGMENTS: usize = blkif::abi::MAX_INDIRECT_SEGMENTS as usize;

/// Segments that every request has room for: as many as fit into a slot of the ring.
pub const INLINE_SEGMENTS: usize = blkif::abi::MAX_SEGMENTS;

/// The driver's part of a request.
///
/// It also keeps open what the request's I/O goes to: it gives a reference to that which comes from the driver's data
/// ([`OnDevice`], [`OnFile`]), and while I/O is in flight these are part of the request, where nobody reaches them: what
/// the reference points to cannot be closed before the request is given back.
///
/// [`OnDevice`]: crate::storage::bdev::OnDevice
/// [`OnFile`]: crate::storage::file::OnFile
pub trait Owner: Sized + Send + 'static {
    /// The I/O is done. Any context, hard interrupt included: must not sleep.
    fn complete(done: Done<Self>);

    /// The I/O could not be done in the way it was tried; what has been transferred is accounted
    /// for. Any context: must not sleep, so [`Joined::defer`] it.
    fn retry(io: Joined<Self>, why: Retry);

    /// What has been deferred is to be done now. Task context, may sleep.
    fn run(io: Joined<Self>);
}

/// Why a request comes back from a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// It would have had to wait, for a lock or an allocation of blocks.
    WouldBlock,
    /// It was transferred in part.
    Partial,
    /// The file system does not do direct I/O of this kind.
    NotDirect,
    /// It was joined with others, and not all that they wanted has been transferred.
    Parted,
}

/// Pages of a request and the vector of their pieces.
pub(crate) struct Segments<const N: usize> {
    slots: [MaybeUninit<Slot>; N],
    vecs: [MaybeUninit<raw::bio_vec>; N],
}

/// All of a request's memory.
///
/// # Invariants
///
/// The segments are in `large` if there is one, else in `small`; the first `count` elements of both
/// arrays are initialised. The vectors go on with `rest.count` ones, copies of those of the requests in
/// `rest`; these go in the same direction, have no rest, and nothing of them or of this one has been
/// transferred.
/// While I/O is in flight, `data` are neither changed nor moved.
#[repr(C)]
pub(crate) struct Inner<T: Owner> {
    /// In a list of requests.
    link: UnsafeCell<raw::llist_node>,
    /// What the storage uses while it works on the request.
    target: UnsafeCell<MaybeUninit<Target>>,
    /// In a workqueue.
    work: UnsafeCell<MaybeUninit<raw::work_struct>>,
    /// References of the submission and of the completion; the last to go finishes the request.
    pub(crate) refs: Atomic<u32>,
    /// Result of the I/O: 0 or a negative error number.
    pub(crate) result: Atomic<i32>,
    pub(crate) direction: Direction,
    /// Number of its own segments.
    count: u16,
    /// Length of the data in bytes.
    pub(crate) bytes: u32,
    /// How much of them has been transferred.
    pub(crate) progress: u32,
    /// Which [`Grants`] the slots are of.
    grants: u64,
    /// The segments, if there are few.
    small: Segments<INLINE_SEGMENTS>,
    /// Room for all segments, also those of requests joined to it.
    large: Option<KBox<MaybeUninit<Segments<MAX_SEGMENTS>>>>,
    /// The requests joined to it.
    pub(crate) rest: Rest<T>,
    /// The owner's.
    data: T,
}

impl<T: Owner> Inner<T> {
    /// Number of its own vectors.
    pub(crate) fn count(&self) -> u32 {
        u32::from(self.count)
    }

    pub(crate) fn direction(&self) -> Direction {
        self.direction
    }

    /// First elements of the arrays, and how many there is room for.
    fn segments(&self) -> (*const Slot, *const raw::bio_vec, usize) {
        match &self.large {
            None => (
                self.small.slots.as_ptr().cast(),
                self.small.vecs.as_ptr().cast(),
                INLINE_SEGMENTS,
            ),
            Some(large) => {
                let large = large.as_ptr();
                // SAFETY: The pointers stay within the allocation, which is not read.
                unsafe {
                    (
                        (&raw const (*large).slots).cast(),
                        (&raw const (*large).vecs).cast(),
                        MAX_SEGMENTS,
                    )
                }
            }
        }
    }

    /// As [`Inner::segments`], for writing.
    pub(crate) fn segments_mut(&mut self) -> (*mut Slot, *mut raw::bio_vec, usize) {
        match &mut self.large {
            None => (
                self.small.slots.as_mut_ptr().cast(),
                self.small.vecs.as_mut_ptr().cast(),
                INLINE_SEGMENTS,
            ),
            Some(large) => {
                let large = large.as_mut_ptr();
                // SAFETY: The pointers stay within the allocation, which is not read.
                unsafe {
                    (
                        (&raw mut (*large).slots).cast(),
                        (&raw mut (*large).vecs).cast(),
                        MAX_SEGMENTS,
                    )
                }
            }
        }
    }

    fn slots(&self) -> &[Slot] {
        let (slots, _, room) = self.segments();
        // SAFETY: By the type invariant as many elements are initialised.
        unsafe { core::slice::from_raw_parts(slots, usize::from(self.count).min(room)) }
    }

    /// The slots, and the vector of each.
    fn pieces_mut(&mut self) -> impl Iterator<Item = (&mut Slot, &raw::bio_vec)> {
        let count = usize::from(self.count);
        let (slots, vecs, room) = self.segments_mut();
        // SAFETY: By the type invariant as many elements of both arrays are initialised.
        unsafe {
            let slots = core::slice::from_raw_parts_mut(slots, count.min(room));
            let vecs = core::slice::from_raw_parts(vecs, count.min(room));
            slots.iter_mut().zip(vecs)
        }
    }

    /// The pieces of memory, as the block layer reads them.
    pub(crate) fn vecs(&self) -> &[raw::bio_vec] {
        let (_, vecs, room) = self.segments();
        // SAFETY: By the type invariant as many elements are initialised.
        unsafe { core::slice::from_raw_parts(vecs, usize::from(self.count).min(room)) }
    }

    /// First of the pieces of memory, for the block layer, which does not change them, and how many there
    /// is room for. Makes no reference to the whole, which others may have pointers into.
    ///
    /// # Safety
    ///
    /// `ptr` must be a request that is the caller's.
    pub(crate) unsafe fn vecs_ptr(ptr: *mut Self) -> (*mut raw::bio_vec, usize) {
        // SAFETY: By the caller's guarantee. The pointers stay within the allocations, which are not read.
        unsafe {
            match &mut (*ptr).large {
                None => ((&raw mut (*ptr).small.vecs).cast(), INLINE_SEGMENTS),
                Some(large) => ((&raw mut (*large.as_mut_ptr()).vecs).cast(), MAX_SEGMENTS),
            }
        }
    }

    /// The part that belongs to whoever does the I/O. As the others below it gives a pointer that leads back
    /// to the whole.
    ///
    /// # Safety
    ///
    /// `ptr` must be a request.
    pub(crate) unsafe fn target(ptr: *mut Self) -> *mut Target {
        // SAFETY: By the caller's guarantee; nothing is read.
        UnsafeCell::raw_get(unsafe { &raw const (*ptr).target }).cast()
    }

    /// The part that belongs to the workqueue.
    ///
    /// # Safety
    ///
    /// As for [`Inner::target`].
    pub(crate) unsafe fn work(ptr: *mut Self) -> *mut raw::work_struct {
        // SAFETY: By the caller's guarantee; nothing is read.
        UnsafeCell::raw_get(unsafe { &raw const (*ptr).work }).cast()
    }

    /// The part that belongs to the list it is in.
    ///
    /// # Safety
    ///
    /// As for [`Inner::target`].
    pub(crate) unsafe fn link(ptr: *mut Self) -> *mut raw::llist_node {
        // SAFETY: By the caller's guarantee; nothing is read.
        UnsafeCell::raw_get(unsafe { &raw const (*ptr).link })
    }

    /// The request of a pointer that [`Inner::target`] gave.
    ///
    /// # Safety
    ///
    /// `target` must be such a pointer, of a request that is still there.
    pub(crate) unsafe fn of_target(target: *mut Target) -> *mut Self {
        let cell = target.cast::<UnsafeCell<MaybeUninit<Target>>>();
        // SAFETY: By the caller's guarantee it is that field.
        unsafe { kernel::container_of!(cell, Self, target) }
    }

    /// The request of a pointer that [`Inner::work`] gave.
    ///
    /// # Safety
    ///
    /// As for [`Inner::of_target`].
    pub(crate) unsafe fn of_work(work: *mut raw::work_struct) -> *mut Self {
        let cell = work.cast::<UnsafeCell<MaybeUninit<raw::work_struct>>>();
        // SAFETY: By the caller's guarantee it is that field.
        unsafe { kernel::container_of!(cell, Self, work) }
    }

    /// The request of a pointer that [`Inner::link`] gave.
    ///
    /// # Safety
    ///
    /// As for [`Inner::of_target`].
    pub(crate) unsafe fn of_link(link: *mut raw::llist_node) -> *mut Self {
        let cell = link.cast::<UnsafeCell<raw::llist_node>>();
        // SAFETY: By the caller's guarantee it is that field.
        unsafe { kernel::container_of!(cell, Self, link) }
    }

    /// Drops one of the two references of an I/O in flight. Returns whether it was the last. If not, whoever has the
    /// other may free the request before this returns: hence no reference to it.
    ///
    /// # Safety
    ///
    /// `ptr` must be a request in flight with a reference that is the caller's.
    pub(crate) unsafe fn put_ref(ptr: *const Self) -> bool {
        // SAFETY: By the caller's guarantee.
        unsafe { (*ptr).refs.fetch_sub(1, Full) == 1 }
    }
}

pub(crate) mod sealed {
    use super::*;

    /// A state of a request: a box of its memory under another name.
    pub trait RequestState {
        type Data: Owner;

        #[expect(private_interfaces)]
        fn into_inner(self) -> KBox<Inner<Self::Data>>;
        #[expect(private_interfaces)]
        fn from_inner(inner: KBox<Inner<Self::Data>>) -> Self;
        /// Does what can be done for a request that the driver has dropped. Any context.
        #[expect(private_interfaces)]
        fn dropped(inner: KBox<Inner<Self::Data>>);
    }
}
use sealed::RequestState;

/// Says that a request has been dropped, which is a fault of the driver.
#[cold]
fn say_dropped() {
    pr_err_once!("a request was dropped without an answer\n");
}

macro_rules! state {
    ($(#[$meta:meta])* $name:ident, $dropped:expr) => {
        $(#[$meta])*
        #[must_use = "a request that is dropped fails, or is never answered"]
        pub struct $name<T: Owner>(pub(crate) ManuallyDrop<KBox<Inner<T>>>);

        // SAFETY: All of a request belongs to its owner, and may be used in any task.
        unsafe impl<T: Owner> Send for $name<T> {}

        impl<T: Owner> RequestState for $name<T> {
            type Data = T;

            #[expect(private_interfaces)]
            #[inline]
            fn into_inner(self) -> KBox<Inner<T>> {
                let mut this = ManuallyDrop::new(self);
                // SAFETY: It is not used any more, nor dropped.
                unsafe { ManuallyDrop::take(&mut this.0) }
            }

            #[expect(private_interfaces)]
            #[inline]
            fn from_inner(inner: KBox<Inner<T>>) -> Self {
                Self(ManuallyDrop::new(inner))
            }

            #[expect(private_interfaces)]
            #[cold]
            #[inline(never)]
            fn dropped(inner: KBox<Inner<T>>) {
                say_dropped();
                $dropped(inner);
            }
        }

        impl<T: Owner> Drop for $name<T> {
            #[inline]
            fn drop(&mut self) {
                // SAFETY: It is not used any more.
                Self::dropped(unsafe { ManuallyDrop::take(&mut self.0) });
            }
        }

        impl<T: Owner> $name<T> {
            /// The driver's data.
            pub fn data(&self) -> &T {
                &self.0.data
            }

            /// The driver's data.
            pub fn data_mut(&mut self) -> &mut T {
                &mut self.0.data
            }
        }
    };
}

state! {
    /// A request with its pages, whose grants are not mapped yet. One that is dropped fails with `EIO`.
    Staged, |inner| T::complete(Done::with(inner, Err(EIO)))
}

state! {
    /// A request whose grants are mapped: its I/O can be submitted. One that is dropped fails with `EIO`.
    ///
    /// # Invariants
    ///
    /// All slots are mapped, and each vector is whole sectors within the page of the slot, not none. Nothing is
    /// joined to it.
    Mapped, |inner| T::complete(Done::with(inner, Err(EIO)))
}

state! {
    /// One request, or several whose data follow one another in a file. If dropped, they fail with `EIO`.
    ///
    /// # Invariants
    ///
    /// As of [`Mapped`], but others may be joined to it.
    Joined, |inner| Joined::from_inner(inner).part(|io| io.done(Err(EIO)))
}

state! {
    /// A request that is through, well or not, and has to be unmapped and answered. One that is dropped never is,
    /// and its pages are lost.
    Done, drop
}

/// What remains of a request once nothing of the guest is mapped for it.
pub struct Finished<T: Owner> {
    /// The driver's data.
    pub data: T,
    /// How the I/O ended.
    pub result: Result,
    /// Length of the data in bytes.
    pub bytes: u32,
    /// Memory for another request.
    pub memory: Memory<T>,
}

impl<T: Owner> Staged<T> {
    /// One without segments, in `memory`; its slots are going to be those of the grants with this number. Any context.
    #[inline]
    pub(crate) fn empty(memory: Memory<T>, data: T, direction: Direction, grants: u64) -> Self {
        let mut inner = memory.inner;
        let ptr = inner.as_mut_ptr();
        // SAFETY: The memory is valid for writing. All fields are written but those that may be
        // uninitialised.
        //
        // INVARIANT: `count` is 0, so that no slot is of other grants.
        unsafe {
            (&raw mut (*ptr).link).write(UnsafeCell::new(pin_init::zeroed()));
            (&raw mut (*ptr).refs).write(Atomic::new(0));
            (&raw mut (*ptr).result).write(Atomic::new(0));
            (&raw mut (*ptr).direction).write(direction);
            (&raw mut (*ptr).count).write(0);
            (&raw mut (*ptr).bytes).write(0);
            (&raw mut (*ptr).progress).write(0);
            (&raw mut (*ptr).grants).write(grants);
            (&raw mut (*ptr).large).write(memory.large);
            (&raw mut (*ptr).rest).write(Rest::new());
            (&raw mut (*ptr).data).write(data);
        }
        // SAFETY: Initialised just now.
        Self::from_inner(unsafe { inner.assume_init() })
    }

    /// Adds a piece of a granted page: offset and length in bytes, both of them multiples of a sector's. `slot` is
    /// asked for the page if the piece is right; it is told for how many segments there is room in all, and the slot must
    /// be of the grants that the request was made with.
    ///
    /// # Errors
    ///
    /// That of `slot`, `EINVAL` if the piece is not one or more whole sectors within a page, or if there is no room.
    #[inline]
    pub(crate) fn add(
        &mut self,
        offset: u32,
        len: u32,
        slot: impl FnOnce(usize) -> Result<Slot>,
    ) -> Result {
        let end = offset.checked_add(len).ok_or(EINVAL)?;
        let whole = (offset | len) & blkif::abi::SECTOR_SIZE.wrapping_sub(1) == 0;
        if end > blkif::abi::PAGE_SIZE || len == 0 || !whole {
            return Err(EINVAL);
        }
        let index = usize::from(self.0.count);
        let (slots, vecs, room) = self.0.segments_mut();
        if index >= room {
            return Err(EINVAL);
        }
        let bytes = self.0.bytes.checked_add(len).ok_or(EINVAL)?;
        let slot = slot(room)?;
        // SAFETY: There is room for the element.
        unsafe {
            slots.add(index).write(slot);
            vecs.add(index).write(raw::bio_vec {
                bv_page: slot.page.as_ptr(),
                bv_len: len,
                bv_offset: offset,
            });
        }
        self.0.bytes = bytes;
        // INVARIANT: The elements were initialised just now.
        self.0.count = self.0.count.wrapping_add(1);
        Ok(())
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        self.0.slots()
    }

    /// Gives back what it was made from, once its slots have been given back.
    pub(crate) fn dissolve(self) -> (Memory<T>, T) {
        self.into_inner().dissolve()
    }

    pub(crate) fn pieces_mut(&mut self) -> impl Iterator<Item = (&mut Slot, &raw::bio_vec)> {
        self.0.pieces_mut()
    }

    pub(crate) fn direction(&self) -> Direction {
        self.0.direction
    }

    /// Are its slots those of the [`Grants`] with this number?
    pub(crate) fn is_of(&self, grants: u64) -> bool {
        self.0.grants == grants
    }

    /// The next state, if all slots have been mapped.
    pub(crate) fn mapped(self) -> Result<Mapped<T>, Self> {
        if self.0.slots().iter().all(Slot::is_ready) {
            // INVARIANT: Just checked; `add` has checked the vectors.
            Ok(Mapped::from_inner(self.into_inner()))
        } else {
            Err(self)
        }
    }

    /// Are there slots that could not be mapped for want of room, and no others?
    pub(crate) fn waits_for_room(&self) -> bool {
        let mut slots = self.0.slots().iter();
        slots.all(|slot| slot.is_ready() || slot.has_no_room())
    }

    /// Ends it without I/O.
    pub(crate) fn failed(self, err: Error) -> Done<T> {
        Done::with(self.into_inner(), Err(err))
    }
}

impl<T: Owner> Inner<T> {
    /// Takes the driver's data out. All else has been given back before.
    fn dissolve(self: KBox<Self>) -> (Memory<T>, T) {
        let ptr = KBox::into_raw(self);
        // SAFETY: The box was valid; what owns something is read once, and not accessed through the memory any
        // more, which from here on is uninitialised.
        unsafe {
            let data = (&raw const (*ptr).data).read();
            let large = (&raw const (*ptr).large).read();
            let memory = Memory {
                inner: KBox::from_raw(ptr.cast()),
                large,
            };
            (memory, data)
        }
    }
}

impl<T: Owner> Mapped<T> {
    /// Length of the request's data in bytes, 0 for a flush.
    pub fn bytes(&self) -> u32 {
        self.0.bytes
    }

    /// Do all pieces of guest memory begin and end on multiples of `align`, a power of two?
    pub fn memory_aligned(&self, align: u32) -> bool {
        let mask = align.wrapping_sub(1);
        self.0
            .vecs()
            .iter()
            .all(|vec| (vec.bv_offset | vec.bv_len) & mask == 0)
    }

    /// Ends the request without I/O. Any context.
    pub fn done(self, result: Result) {
        T::complete(Done::with(self.into_inner(), result));
    }

    /// As [`Joined::defer`].
    pub fn defer(self, queue: &OwnedQueue) {
        Joined::from(self).defer(queue);
    }
}

impl<T: Owner> Done<T> {
    pub(crate) fn with(mut inner: KBox<Inner<T>>, result: Result) -> Self {
        *inner.result.get_mut() = result.map_or_else(Error::to_errno, |()| 0);
        Self::from_inner(inner)
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        self.0.slots()
    }

    /// As [`Staged::is_of`].
    pub(crate) fn is_of(&self, grants: u64) -> bool {
        self.0.grants == grants
    }

    pub(crate) fn pieces_mut(&mut self) -> impl Iterator<Item = (&mut Slot, &raw::bio_vec)> {
        self.0.pieces_mut()
    }

    /// Has the device read something for the guest?
    pub(crate) fn has_data_for_guest(&mut self) -> bool {
        self.0.direction == Direction::Read && *self.0.result.get_mut() >= 0
    }

    /// Makes it one that has failed, unless it is that already.
    pub(crate) fn fail(&mut self, err: Error) {
        let result = self.0.result.get_mut();
        if *result >= 0 {
            *result = err.to_errno();
        }
    }

    pub(crate) fn finish(mut self) -> Finished<T> {
        let errno = *self.0.result.get_mut();
        let result = if errno < 0 {
            Err(Error::from_errno(errno))
        } else {
            Ok(())
        };
        let bytes = self.0.bytes;
        let (memory, data) = self.into_inner().dissolve();
        Finished {
            data,
            result,
            bytes,
            memory,
        }
    }
}
