// SPDX-License-Identifier: GPL-2.0

//! One request on its way through the backend.
//!
//! A request is one allocation that holds all it needs: the grants and the pages they are mapped
//! into, the vector that the block layer reads, the bio or the kiocb, and the driver's own data.
//! Who owns it, and what may be done with it, is its type:
//!
//! ```text
//!  Memory ─ Staged::new ─► Staged ─ Grants::map ─► Mapped ─ submit, flush ─► (I/O in flight)
//!    ▲                                │  ▲ ▲                      │     │
//!    │                        failed  │  │ └── Owner::retry ◄─────┘     │ Owner::complete
//!    │                                │  └── Owner::run ◄─ Mapped::defer│
//!    │                                ▼                                 │
//!  Finished ◄──── Grants::unmap ──── Done ◄─────────────────────────────┘
//! ```
//!
//! Each arrow consumes the value that it starts from. The driver's data, which stand for the
//! obligation to answer the guest, come in at the start and are given back once, at the end.
//!
//! Requests whose data follow one another in a file can be joined ([`Mapped::join`]): the first one
//! owns the others, and is submitted, deferred and given back for all. They part before they are done.

use core::{
    cell::UnsafeCell,
    mem::{
        ManuallyDrop,
        MaybeUninit, //
    },
};
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Full, //
    },
};

use crate::{
    copy::Copier,
    file::FileOp,
    grant::{
        Grants,
        Slot, //
    },
    list::List,
    raw,
    work::OwnedQueue, //
};

/// Most segments of a request.
pub const MAX_SEGMENTS: usize = blkif::abi::MAX_INDIRECT_SEGMENTS as usize;

/// Segments that every request has room for: as many as fit into a slot of the ring.
pub const INLINE_SEGMENTS: usize = blkif::abi::MAX_SEGMENTS;

/// Requests of up to so many segments are copied, larger ones mapped. For 16 segments a copy still takes
/// fewer instructions than mapping and unmapping; but these do not see what it costs to move the data.
const COPIED_SEGMENTS: usize = INLINE_SEGMENTS;

/// The driver's part of a request.
pub trait Owner: Sized + Send + 'static {
    /// The I/O is done. Any context, hard interrupt included: must not sleep.
    fn complete(done: Done<Self>);

    /// The I/O could not be done in the way it was tried; what has been transferred is accounted
    /// for. Any context: must not sleep, so [`Mapped::defer`] it.
    fn retry(io: Mapped<Self>, why: Retry);

    /// The request has been deferred, and is to be done now. Task context, may sleep.
    fn run(io: Mapped<Self>);
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

/// How parts of a medium can be given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiscardLimits {
    /// Smallest unit that is really given up, in bytes.
    pub granularity: u32,
    /// Where the first such unit begins, in bytes.
    pub alignment: u32,
    /// The contents can be made unreadable.
    pub secure: bool,
}

/// Does the error say that the operation as such is not supported (`EOPNOTSUPP`)?
pub fn is_not_supported(err: Error) -> bool {
    err.to_errno() == -(raw::EOPNOTSUPP as i32)
}

/// Which way the data go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the disk to the guest.
    Read,
    /// From the guest to the disk.
    Write,
}

/// What does the I/O. Which one is in use is known to the module that submitted it.
#[repr(C)]
pub(crate) union Target {
    pub(crate) bio: ManuallyDrop<raw::bio>,
    pub(crate) file: ManuallyDrop<FileOp>,
}

/// Pages of a request and the vector of their pieces.
struct Segments<const N: usize> {
    slots: [MaybeUninit<Slot>; N],
    vecs: [MaybeUninit<raw::bio_vec>; N],
}

/// Requests that have been joined to one before them.
struct Rest<T> {
    requests: List<Mapped<T>>,
    /// Number of their vectors.
    count: u16,
    /// Length of their data in bytes.
    bytes: u32,
}

impl<T> Rest<T> {
    const fn new() -> Self {
        Self {
            requests: List::new(),
            count: 0,
            bytes: 0,
        }
    }
}

/// All of a request's memory.
///
/// # Invariants
///
/// The segments are in `large` if there is one, else in `small`; the first `count` elements of both
/// arrays are initialised. The vectors go on with `rest.count` ones, copies of those of the requests in
/// `rest`; these go in the same direction, have no rest, and nothing of them or of this one has been
/// transferred.
#[repr(C)]
pub(crate) struct Inner<T> {
    pub(crate) link: UnsafeCell<raw::llist_node>,
    pub(crate) target: UnsafeCell<MaybeUninit<Target>>,
    work: UnsafeCell<MaybeUninit<raw::work_struct>>,
    /// References of the submission and of the completion; the last to go finishes the request.
    pub(crate) refs: Atomic<u32>,
    /// Result of the I/O: 0 or a negative error number.
    pub(crate) result: Atomic<i32>,
    direction: Direction,
    count: u16,
    /// Length of the data in bytes.
    pub(crate) bytes: u32,
    /// How much of them has been transferred.
    pub(crate) progress: u32,
    small: Segments<INLINE_SEGMENTS>,
    large: Option<KBox<MaybeUninit<Segments<MAX_SEGMENTS>>>>,
    rest: Rest<T>,
    data: T,
}

impl<T> Inner<T> {
    /// Number of its own vectors.
    pub(crate) fn count(&self) -> u32 {
        u32::from(self.count)
    }

    /// Number of vectors, those of the requests that are joined to it included.
    pub(crate) fn joined_count(&self) -> u32 {
        u32::from(self.count).wrapping_add(u32::from(self.rest.count))
    }

    /// Length of the data in bytes, those of the requests that are joined to it included.
    pub(crate) fn joined_bytes(&self) -> u32 {
        self.bytes.wrapping_add(self.rest.bytes)
    }

    /// Are requests joined to it?
    pub(crate) fn is_joined(&self) -> bool {
        !self.rest.requests.is_empty()
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
    fn segments_mut(&mut self) -> (*mut Slot, *mut raw::bio_vec, usize) {
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

    /// First of the pieces of memory, for the block layer, which does not change them.
    pub(crate) fn vecs_ptr(&mut self) -> *mut raw::bio_vec {
        self.segments_mut().1
    }
}

/// Memory for a request, without one.
pub struct Memory<T> {
    inner: KBox<MaybeUninit<Inner<T>>>,
    large: Option<KBox<MaybeUninit<Segments<MAX_SEGMENTS>>>>,
}

// SAFETY: There is nothing in it.
unsafe impl<T: Send> Send for Memory<T> {}

impl<T> Memory<T> {
    /// Allocates, for a request of so many segments, at most [`MAX_SEGMENTS`]. May sleep, unless in a
    /// scope that forbids it.
    fn new(segments: usize) -> Result<Self> {
        let mut memory = Self {
            inner: KBox::new_uninit(GFP_KERNEL | __GFP_NOWARN)?,
            large: None,
        };
        memory.grow(segments)?;
        Ok(memory)
    }

    /// Makes room for so many segments.
    fn grow(&mut self, segments: usize) -> Result {
        if segments > INLINE_SEGMENTS && self.large.is_none() {
            self.large = Some(KBox::new_uninit(GFP_KERNEL | __GFP_NOWARN)?);
        }
        Ok(())
    }
}

/// Memory for the next requests: what those that are done have left.
///
/// There is always memory for one request whose segments stand in its slot, be it in here or in
/// flight.
pub struct Spares<T> {
    small: KVec<Memory<T>>,
    /// With room for the segments of indirect requests.
    large: KVec<Memory<T>>,
}

/// Most that is kept of each kind: twice what a ring of one page can have in flight.
const MAX_SPARES: usize = 64;

impl<T> Spares<T> {
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
        spares.put(Memory::new(0)?);
        Ok(spares)
    }

    /// Memory for a request of so many segments, at most [`MAX_SEGMENTS`]. May sleep, unless in a
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
            let _ = to.reserve(len.max(4), GFP_KERNEL | __GFP_NOWARN);
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

pub(crate) mod sealed {
    use super::*;

    /// A state of a request: a box of its memory under another name.
    pub trait State {
        type Data;

        #[expect(private_interfaces)]
        fn into_inner(self) -> KBox<Inner<Self::Data>>;
        #[expect(private_interfaces)]
        fn from_inner(inner: KBox<Inner<Self::Data>>) -> Self;
    }
}
use sealed::State;

macro_rules! state {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[must_use = "a request that is dropped is never answered"]
        pub struct $name<T>(pub(crate) KBox<Inner<T>>);

        // SAFETY: All of a request belongs to its owner, and may be used in any task.
        unsafe impl<T: Send> Send for $name<T> {}

        impl<T> State for $name<T> {
            type Data = T;

            #[expect(private_interfaces)]
            fn into_inner(self) -> KBox<Inner<T>> {
                self.0
            }

            #[expect(private_interfaces)]
            fn from_inner(inner: KBox<Inner<T>>) -> Self {
                Self(inner)
            }
        }

        impl<T> $name<T> {
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
    /// A request with its pages, whose grants are not mapped yet.
    Staged
}

state! {
    /// A request whose grants are mapped: its I/O can be submitted.
    ///
    /// # Invariants
    ///
    /// All slots are mapped, and each vector lies within the page of the slot.
    Mapped
}

state! {
    /// A request that is through, well or not, and has to be unmapped and answered.
    Done
}

/// What remains of a request once nothing of the guest is mapped for it.
pub struct Finished<T> {
    /// The driver's data.
    pub data: T,
    /// How the I/O ended.
    pub result: Result,
    /// Length of the data in bytes.
    pub bytes: u32,
    /// Memory for another request.
    pub memory: Memory<T>,
}

/// Builds a request from its segments.
pub struct Builder<'a, T> {
    inner: &'a mut Inner<T>,
    grants: &'a mut Grants,
}

impl<T> Builder<'_, T> {
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

    /// Adds a piece of guest memory: grant reference, offset and length in bytes. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if a page cannot be had, `EINVAL` if the piece does not lie within a page, or if there
    /// is no room.
    pub fn add(&mut self, gref: u32, offset: u32, len: u32) -> Result {
        let end = offset.checked_add(len).ok_or(EINVAL)?;
        if end > blkif::abi::PAGE_SIZE {
            return Err(EINVAL);
        }
        let index = usize::from(self.inner.count);
        let (slots, vecs, room) = self.inner.segments_mut();
        if index >= room {
            return Err(EINVAL);
        }
        let bytes = self.inner.bytes.checked_add(len).ok_or(EINVAL)?;
        let slot = self.grants.slot(gref, room <= COPIED_SEGMENTS)?;
        // SAFETY: There is room for the element.
        unsafe {
            slots.add(index).write(slot);
            vecs.add(index).write(raw::bio_vec {
                bv_page: slot.page().as_ptr(),
                bv_len: len,
                bv_offset: offset,
            });
        }
        self.inner.bytes = bytes;
        // INVARIANT: The elements were initialised just now.
        self.inner.count = self.inner.count.wrapping_add(1);
        Ok(())
    }
}

impl<T> Staged<T> {
    /// Builds a request in `memory`, whose segments `fill` adds.
    ///
    /// # Errors
    ///
    /// That of `fill`, and gives everything back.
    pub fn new<E>(
        memory: Memory<T>,
        data: T,
        direction: Direction,
        grants: &mut Grants,
        fill: impl FnOnce(&mut Builder<'_, T>) -> core::result::Result<(), E>,
    ) -> core::result::Result<Self, (E, Memory<T>, T)> {
        let mut inner = memory.inner;
        let ptr = inner.as_mut_ptr();
        // SAFETY: The memory is valid for writing. All fields are written but those that may be
        // uninitialised.
        //
        // INVARIANT: `count` is 0.
        unsafe {
            (&raw mut (*ptr).link).write(UnsafeCell::new(pin_init::zeroed()));
            (&raw mut (*ptr).refs).write(Atomic::new(0));
            (&raw mut (*ptr).result).write(Atomic::new(0));
            (&raw mut (*ptr).direction).write(direction);
            (&raw mut (*ptr).count).write(0);
            (&raw mut (*ptr).bytes).write(0);
            (&raw mut (*ptr).progress).write(0);
            (&raw mut (*ptr).large).write(memory.large);
            (&raw mut (*ptr).rest).write(Rest::new());
            (&raw mut (*ptr).data).write(data);
        }
        // SAFETY: Initialised just now.
        let mut request = Self(unsafe { inner.assume_init() });
        let mut builder = Builder {
            inner: &mut request.0,
            grants,
        };
        match fill(&mut builder) {
            Ok(()) => Ok(request),
            Err(err) => {
                for slot in request.0.slots() {
                    grants.put_back(*slot);
                }
                let (memory, data) = request.0.dissolve();
                Err((err, memory, data))
            }
        }
    }

    pub(crate) fn pieces_mut(&mut self) -> impl Iterator<Item = (&mut Slot, &raw::bio_vec)> {
        self.0.pieces_mut()
    }

    pub(crate) fn direction(&self) -> Direction {
        self.0.direction
    }

    /// The next state, which depends on whether all slots have been mapped.
    pub(crate) fn mapped(self) -> core::result::Result<Mapped<T>, Done<T>> {
        if self.0.slots().iter().all(Slot::is_ready) {
            // INVARIANT: Just checked; `add` has checked the vectors.
            Ok(Mapped(self.0))
        } else {
            Err(Done::with(self.0, Err(EFAULT)))
        }
    }
}

impl<T> Inner<T> {
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

    /// As [`Mapped::bytes`], with the data of the requests that are joined to it.
    pub fn joined_bytes(&self) -> u32 {
        self.0.joined_bytes()
    }

    /// Joins `next` to the request, whose data must be what follows in the same file. From here on both
    /// are one, until they part. Not for block devices, where the block layer merges bios. Any context.
    ///
    /// # Errors
    ///
    /// Gives `next` back if that cannot be done: it goes the other way, some of either has been
    /// transferred, or the memory of this request has no room for the vectors. There is room for
    /// [`INLINE_SEGMENTS`], or [`MAX_SEGMENTS`] in a request that has more than the former by itself.
    pub fn join(&mut self, next: Self) -> core::result::Result<(), Self> {
        let inner = &mut *self.0;
        let count = inner.joined_count() as usize;
        let (_, vecs, room) = inner.segments_mut();
        let more = next.0.vecs();
        if room.saturating_sub(count) < more.len()
            || next.0.direction != inner.direction
            || next.0.is_joined()
            || (inner.progress | next.0.progress) != 0
        {
            return Err(next);
        }
        // SAFETY: There is room for as many elements behind the ones that are there, in other memory.
        unsafe { core::ptr::copy_nonoverlapping(more.as_ptr(), vecs.add(count), more.len()) };
        // INVARIANT: Checked and copied above. There are no more than `MAX_SEGMENTS` vectors, each at most a
        // page long: nothing wraps around.
        inner.rest.count = inner.rest.count.wrapping_add(next.0.count);
        inner.rest.bytes = inner.rest.bytes.wrapping_add(next.0.bytes);
        inner.rest.requests.push(next);
        Ok(())
    }

    /// Parts the requests that are joined to this one from it, and gives `each` all of them in their order,
    /// this one first. Any context that `each` may be called in.
    pub fn part(mut self, mut each: impl FnMut(Self)) {
        let mut rest = core::mem::replace(&mut self.0.rest, Rest::new()).requests;
        each(self);
        while let Some(io) = rest.pop() {
            each(io);
        }
    }

    /// Are requests joined to it?
    pub fn is_joined(&self) -> bool {
        self.0.is_joined()
    }

    /// Do all pieces of guest memory begin and end on multiples of `align`, a power of two?
    pub fn memory_aligned(&self, align: u32) -> bool {
        let mask = align.wrapping_sub(1);
        self.0
            .vecs()
            .iter()
            .all(|vec| (vec.bv_offset | vec.bv_len) & mask == 0)
    }

    /// Ends the request, and those that are joined to it, without I/O.
    pub fn done(self, result: Result) {
        self.part(|io| T::complete(Done::with(io.0, result)));
    }

    /// Has [`Owner::run`] called in task context, by `queue`. May be called in any context.
    pub fn defer(self, queue: &OwnedQueue) {
        let ptr = KBox::into_raw(self.0);
        // SAFETY: The request is ours until the work item runs, which gives it back.
        unsafe {
            let work = (*ptr).work.get().cast::<raw::work_struct>();
            raw::init_work(work, Some(Self::run_deferred));
            raw::queue_work(queue.as_ptr(), work);
        }
    }

    /// # Safety
    ///
    /// Called by the workqueue only, for a request that [`Mapped::defer`] queued.
    unsafe extern "C" fn run_deferred(work: *mut raw::work_struct) {
        // SAFETY: `work` is the field of a request; `defer` left its ownership to us.
        let io = unsafe {
            let cell = work.cast::<UnsafeCell<MaybeUninit<raw::work_struct>>>();
            Mapped(KBox::from_raw(kernel::container_of!(cell, Inner<T>, work)))
        };
        T::run(io);
    }
}

impl<T> Done<T> {
    pub(crate) fn with(mut inner: KBox<Inner<T>>, result: Result) -> Self {
        *inner.result.get_mut() = result.map_or_else(Error::to_errno, |()| 0);
        Self(inner)
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        self.0.slots()
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
        let (memory, data) = self.0.dissolve();
        Finished {
            data,
            result,
            bytes,
            memory,
        }
    }
}

impl<T> Inner<T> {
    /// Drops one of the two references of an I/O in flight. Whether it was the last.
    pub(crate) fn put_ref(&self) -> bool {
        self.refs.fetch_sub(1, Full) == 1
    }
}
