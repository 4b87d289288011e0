// SPDX-License-Identifier: GPL-2.0

//! Devices of the xenbus.
//!
//! C header: [`include/xen/xenbus.h`](srctree/include/xen/xenbus.h)

use core::ptr::NonNull;

use blkif::node::State;
use kernel::prelude::*;

use crate::{
    raw,
    xen::xenstore, //
};

/// A counted reference to a `struct xenbus_device`.
///
/// # Invariants
///
/// The pointer is a valid `xenbus_device`, and we hold a reference to its `dev`.
pub struct Device(NonNull<raw::xenbus_device>);

// SAFETY: A `xenbus_device` is reference counted, and may be used and released in any task.
unsafe impl Send for Device {}
// SAFETY: Of the fields that change we read only `state`, as the C code does, with a volatile
// load; the functions called serialise by themselves.
unsafe impl Sync for Device {}

impl Clone for Device {
    fn clone(&self) -> Self {
        // SAFETY: By the type invariant `self.0` is valid.
        unsafe { Self::from_raw(self.0) }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the device is valid and the reference is ours.
        unsafe { raw::put_device(&raw mut (*self.as_ptr()).dev) }
    }
}

impl Device {
    /// Takes a reference.
    ///
    /// # Safety
    ///
    /// `ptr` must be a valid `xenbus_device` for the duration of the call.
    pub(crate) unsafe fn from_raw(ptr: NonNull<raw::xenbus_device>) -> Self {
        // SAFETY: `ptr` is valid.
        unsafe { raw::get_device(&raw mut (*ptr.as_ptr()).dev) };
        // INVARIANT: The reference was taken just now.
        Self(ptr)
    }

    /// Takes over a reference.
    ///
    /// # Safety
    ///
    /// `ptr` must be null or a valid `xenbus_device`, of which the caller gives us a reference.
    pub(crate) unsafe fn from_counted(ptr: *mut raw::xenbus_device) -> Result<Self> {
        // INVARIANT: By the function's requirement.
        Ok(Self(NonNull::new(ptr).ok_or(ENODEV)?))
    }

    pub(crate) fn as_ptr(&self) -> *mut raw::xenbus_device {
        self.0.as_ptr()
    }

    /// Calls `look` with the device's lock; `None` if somebody else has that. Must not sleep in `look`.
    pub(crate) fn look<R>(&self, look: impl FnOnce(*mut raw::xenbus_device) -> R) -> Option<R> {
        let dev = self.as_ptr();
        // SAFETY: The device is valid; the lock is given back by whom it was taken.
        unsafe {
            if !raw::device_trylock(&raw mut (*dev).dev) {
                return None;
            }
            let seen = look(dev);
            raw::device_unlock(&raw mut (*dev).dev);
            Some(seen)
        }
    }

    /// Path of the device's own directory in xenstore, such as `backend/vbd/3/51712`.
    pub fn nodename(&self) -> &CStr {
        // SAFETY: `nodename` is a NUL-terminated string inside of the allocation of the device,
        // and does not change.
        unsafe { raw::c_str((*self.as_ptr()).nodename) }
    }

    /// Name of the device in sysfs, such as `vbd-3-51712`.
    pub fn name(&self) -> &CStr {
        // SAFETY: The device is valid, and named since it was registered; a device of the xenbus is
        // not renamed.
        unsafe { raw::c_str(raw::dev_name(&raw const (*self.as_ptr()).dev)) }
    }

    /// Domain id of the other end.
    pub fn otherend_id(&self) -> u16 {
        // SAFETY: The device is valid; the field is written before probe and not changed while a
        // driver is bound.
        let id = unsafe { (*self.as_ptr()).otherend_id };
        // A domain id has 15 bits (`domid_t`), negative values stand for none.
        u16::try_from(id).unwrap_or(u16::MAX)
    }

    /// The state that this end last published.
    pub fn state(&self) -> State {
        // SAFETY: The device is valid.
        let state = unsafe { (&raw const (*self.as_ptr()).state).read_volatile() };
        State::from_number(state)
    }

    /// Does the toolstack want the device to exist (node `online`)? May sleep.
    ///
    /// # Errors
    ///
    /// What xenstore answers with.
    pub fn is_online(&self) -> Result<bool> {
        let online = xenstore::read_optional(self.nodename(), c"online")?;
        Ok(online.is_some_and(|value| value.number().is_ok_and(|online| online != 0)))
    }
}
