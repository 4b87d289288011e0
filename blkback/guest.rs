// SPDX-License-Identifier: GPL-2.0

//! The guests that have disks, and what the disks of one share: how many of its pages are mapped, and which
//! ring gets the next ones that are free.
//!
//! A ring that may not map what a request needs waits in a queue of its guest. Only the first in the queue may
//! ask for more; the others go on with what each ring has for itself. Whoever gives something back wakes
//! the first one, which, when it has got what it needs, wakes the next.
//!
//! Owns a reference to each ring that waits. Lock order: a ring's state, then [`Guest::queue`], inside of which
//! nothing is locked; [`Guests::list`] is taken alone.

#![forbid(unsafe_code)]

use core::ops::Deref;

use kernel::{
    new_mutex,
    prelude::*,
    rbtree::RBTree,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc,
        Mutex, //
    }, //
};
use xen_bindings::grants::share::Share;

/// A ring, as the queue of its guest knows it.
pub(crate) trait Wake: Send + Sync + 'static {
    /// Has it look again whether it can go on. Any context.
    fn wake(&self);
}

/// All guests that have disks.
#[pin_data]
pub(crate) struct Guests {
    #[pin]
    list: Mutex<RBTree<u16, Entry>>,
}

struct Entry {
    guest: Arc<Guest>,
    disks: usize,
}

/// What the disks of one guest share.
#[pin_data]
pub(crate) struct Guest {
    domid: u16,
    share: Arc<Share>,
    /// The queue is not empty.
    waiting: Atomic<bool>,
    #[pin]
    queue: Mutex<Queue>,
}

struct Queue {
    /// Rings that wait, the one that has waited longest first.
    waiting: Option<KBox<Place>>,
    /// Places for the others, so that a ring can wait when there is no memory.
    empty: Option<KBox<Place>>,
}

struct Place {
    ring: Option<Arc<dyn Wake>>,
    next: Option<KBox<Place>>,
}

/// A disk's reference to its guest.
pub(crate) struct GuestOfDisk {
    guest: Arc<Guest>,
    guests: Arc<Guests>,
}

impl Guests {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                list <- new_mutex!(RBTree::new()),
            }),
            GFP_KERNEL,
        )
    }

    /// The guest with the number `domid`, for another disk. May sleep.
    pub(crate) fn of_disk(self: &Arc<Self>, domid: u16) -> Result<GuestOfDisk> {
        let mut list = self.list.lock();
        if let Some(entry) = list.get_mut(&domid) {
            entry.disks = entry.disks.wrapping_add(1);
            return Ok(GuestOfDisk {
                guest: entry.guest.clone(),
                guests: self.clone(),
            });
        }
        let share = Arc::pin_init(Share::new(), GFP_KERNEL)?;
        let guest = Arc::pin_init(
            pin_init!(Guest {
                domid,
                share,
                waiting: Atomic::new(false),
                queue <- new_mutex!(Queue {
                    waiting: None,
                    empty: None,
                }),
            }),
            GFP_KERNEL,
        )?;
        let entry = Entry {
            guest: guest.clone(),
            disks: 1,
        };
        list.try_create_and_insert(domid, entry, GFP_KERNEL)?;
        Ok(GuestOfDisk {
            guest,
            guests: self.clone(),
        })
    }
}

impl Deref for GuestOfDisk {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl Drop for GuestOfDisk {
    fn drop(&mut self) {
        let mut list = self.guests.list.lock();
        if let Some(mut entry) = list.find_mut(&self.guest.domid) {
            let disks = &mut entry.get_mut().disks;
            *disks = disks.wrapping_sub(1);
            if *disks == 0 {
                entry.remove();
            }
        }
    }
}

impl Guest {
    /// How many of its pages are mapped.
    pub(crate) fn share(&self) -> &Arc<Share> {
        &self.share
    }

    /// Makes a place in the queue for another ring, until [`Guest::leave`]. May sleep.
    pub(crate) fn join(&self) -> Result {
        let place = Place {
            ring: None,
            next: None,
        };
        let place = KBox::new(place, GFP_KERNEL)?;
        self.queue.lock().put_empty(place);
        Ok(())
    }

    /// A ring that has joined ends.
    pub(crate) fn leave(&self, ring: &dyn Wake) {
        self.got(ring);
        let mut queue = self.queue.lock();
        let place = queue.take_empty();
        drop(queue);
        drop(place);
    }

    /// May the ring ask for what others have given back?
    #[inline]
    pub(crate) fn may_ask(&self, ring: &dyn Wake) -> bool {
        !self.has_waiting() || self.is_first(ring)
    }

    #[cold]
    fn is_first(&self, ring: &dyn Wake) -> bool {
        let queue = self.queue.lock();
        queue.first().is_none_or(|first| is(first, ring))
    }

    /// Has the ring wait, behind those that wait already.
    pub(crate) fn wait<T: Wake>(&self, ring: &Arc<T>) {
        let mut queue = self.queue.lock();
        if !queue.has(&**ring) {
            // There is one, since the ring has joined.
            if let Some(mut place) = queue.take_empty() {
                place.ring = Some(ring.clone());
                queue.append(place);
            }
        }
        // What is given back from here on wakes it.
        self.waiting.xchg(queue.waiting.is_some(), Full);
    }

    /// The ring does not wait any more: the next one can ask.
    pub(crate) fn got(&self, ring: &dyn Wake) {
        if !self.has_waiting() {
            return;
        }
        let mut queue = self.queue.lock();
        let mut link = &mut queue.waiting;
        while link.as_ref().is_some_and(|place| !place.is_of(ring)) {
            match link {
                Some(place) => link = &mut place.next,
                None => return,
            }
        }
        if let Some(mut place) = link.take() {
            *link = place.next.take();
            place.ring = None;
            queue.put_empty(place);
        }
        match queue.first() {
            Some(next) => next.wake(),
            None => self.waiting.store(false, Relaxed),
        }
    }

    /// Do rings wait for what others give back?
    #[inline]
    pub(crate) fn has_waiting(&self) -> bool {
        self.waiting.load(Relaxed)
    }

    /// A ring may have given something back: wakes the first one that waits, unless it is that itself, which
    /// knows.
    #[inline]
    pub(crate) fn wake_others(&self, ring: &dyn Wake) {
        if self.has_waiting() {
            self.wake_first(ring);
        }
    }

    #[cold]
    fn wake_first(&self, ring: &dyn Wake) {
        let queue = self.queue.lock();
        if let Some(first) = queue.first().filter(|first| !is(first, ring)) {
            first.wake();
        }
    }
}

impl Queue {
    fn first(&self) -> Option<&Arc<dyn Wake>> {
        self.waiting.as_ref().and_then(|place| place.ring.as_ref())
    }

    fn has(&self, ring: &dyn Wake) -> bool {
        let mut next = self.waiting.as_ref();
        while let Some(place) = next {
            if place.is_of(ring) {
                return true;
            }
            next = place.next.as_ref();
        }
        false
    }

    fn append(&mut self, place: KBox<Place>) {
        let mut link = &mut self.waiting;
        while let Some(place) = link {
            link = &mut place.next;
        }
        *link = Some(place);
    }

    fn put_empty(&mut self, mut place: KBox<Place>) {
        place.next = self.empty.take();
        self.empty = Some(place);
    }

    fn take_empty(&mut self) -> Option<KBox<Place>> {
        let mut place = self.empty.take()?;
        self.empty = place.next.take();
        Some(place)
    }
}

impl Place {
    fn is_of(&self, ring: &dyn Wake) -> bool {
        self.ring.as_ref().is_some_and(|own| is(own, ring))
    }
}

fn is(one: &Arc<dyn Wake>, other: &dyn Wake) -> bool {
    core::ptr::addr_eq(Arc::as_ptr(one), other)
}
