// SPDX-License-Identifier: GPL-2.0

//! The files of a driver in sysfs that move devices to it and away from it: `bind` and `unbind`, for which the driver
//! core has such of its own.
//!
//! The core's `unbind` has the device's lock while xenbus, to remove the watch of the other end, waits for the callback
//! that runs in the xenwatch thread. If that is the one in which the device vanishes, it waits for the lock, and no
//! device of the xenbus comes or goes any more. Here it is the xenwatch thread that unbinds, where nobody is waited for.
//!
//! C headers: [`include/linux/device/driver.h`](srctree/include/linux/device/driver.h),
//! [`include/linux/sysfs.h`](srctree/include/linux/sysfs.h)

use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

use crate::{
    raw,
    xen::{
        device::Device,
        xenwatch::{
            self,
            InXenwatch, //
        }, //
    }, //
};

/// Pause before a device is tried again to which somebody else did something.
const PAUSE: Delta = Delta::from_millis(10);

/// What the kernel refers to.
struct Parts {
    bind: raw::driver_attribute,
    unbind: raw::driver_attribute,
    attrs: [*mut raw::attribute; 3],
    group: raw::attribute_group,
    groups: [*const raw::attribute_group; 2],
}

/// The two files.
///
/// # Invariants
///
/// The pointer comes from a `KBox`; what the parts refer to is among them, and does not change.
pub(crate) struct Files(NonNull<Parts>);

// SAFETY: All of it is ours, and is only read.
unsafe impl Send for Files {}
// SAFETY: It is only read.
unsafe impl Sync for Files {}

impl Files {
    /// Prepares the files. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        let parts = KBox::into_raw(KBox::new(
            Parts {
                bind: pin_init::zeroed(),
                unbind: pin_init::zeroed(),
                attrs: [ptr::null_mut(); 3],
                group: pin_init::zeroed(),
                groups: [ptr::null(); 2],
            },
            GFP_KERNEL,
        )?);
        // SAFETY: The parts are ours and stay where they are; the names live for ever, and the lists end with a null
        // pointer.
        unsafe {
            (*parts).attrs[0] = raw::driver_attribute_init(
                &raw mut (*parts).bind,
                c"bind".as_char_ptr(),
                Some(Self::bind),
            );
            (*parts).attrs[1] = raw::driver_attribute_init(
                &raw mut (*parts).unbind,
                c"unbind".as_char_ptr(),
                Some(Self::unbind),
            );
            raw::attribute_group_init(
                &raw mut (*parts).group,
                ptr::null(),
                (&raw mut (*parts).attrs).cast(),
            );
            (*parts).groups[0] = &raw const (*parts).group;
        }
        // INVARIANT: Filled in just now.
        Ok(Self(NonNull::new(parts).ok_or(ENOMEM)?))
    }

    /// For the field `groups` of a driver of the xenbus that has no such files of the core's, and must not outlive this.
    pub(crate) fn as_ptr(&self) -> *mut *const raw::attribute_group {
        // SAFETY: By the type invariant the parts are valid.
        unsafe { (&raw mut (*self.0.as_ptr()).groups).cast() }
    }

    /// # Safety
    ///
    /// Called by sysfs only, for a file of a registered driver's `groups`; `buf` is NUL-terminated.
    unsafe extern "C" fn bind(
        drv: *mut raw::device_driver,
        buf: *const kernel::ffi::c_char,
        count: usize,
    ) -> isize {
        from_result(|| {
            // SAFETY: The driver is registered, with the bus and for as long as its file is in use; the name is
            // NUL-terminated. The device is valid while we have the reference.
            unsafe {
                let dev = find(drv, buf)?;
                let dev = &raw mut (*dev.as_ptr()).dev;
                let matches = (*(*drv).bus).match_.ok_or(ENODEV)?;
                if matches(dev, drv) == 0 {
                    return Err(ENODEV);
                }
                to_result(raw::device_driver_attach(drv, dev))?;
            }
            Ok(count as isize)
        })
    }

    /// # Safety
    ///
    /// As [`Files::bind`].
    unsafe extern "C" fn unbind(
        drv: *mut raw::device_driver,
        buf: *const kernel::ffi::c_char,
        count: usize,
    ) -> isize {
        from_result(|| {
            // SAFETY: As in `bind`.
            let mut dev = unsafe { find(drv, buf)? };
            let driver = Driver(drv);
            loop {
                let found = xenwatch::run(move |ctx| {
                    let found = driver.unbind(&dev, ctx);
                    (found, dev)
                })?;
                match found {
                    (Found::Ours, _) => return Ok(count as isize),
                    (Found::Others, _) => return Err(ENODEV),
                    (Found::Busy, again) => dev = again,
                }
                fsleep(PAUSE);
            }
        })
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this comes from a `KBox`; no driver has it any more.
        drop(unsafe { KBox::from_raw(self.0.as_ptr()) });
    }
}

/// The device with this name on a driver's bus.
///
/// # Safety
///
/// `drv` must be a driver of the xenbus that is registered for the duration of the call, and `name` a NUL-terminated
/// string.
unsafe fn find(drv: *mut raw::device_driver, name: *const kernel::ffi::c_char) -> Result<Device> {
    // SAFETY: The driver has a bus while it is registered; the function compares strings. What is found is a device of
    // the xenbus, as all on its bus are, with a reference for us.
    unsafe {
        let dev = raw::bus_find_device(
            (*drv).bus,
            ptr::null_mut(),
            name.cast(),
            Some(raw::device_match_name),
        );
        if dev.is_null() {
            return Err(ENODEV);
        }
        Device::from_counted(kernel::container_of!(dev, raw::xenbus_device, dev))
    }
}

/// A driver, to compare a device's with.
#[derive(Clone, Copy)]
struct Driver(*mut raw::device_driver);

// SAFETY: The pointer is only compared.
unsafe impl Send for Driver {}

/// What has been found at a device.
enum Found {
    /// The driver, which is unbound now.
    Ours,
    /// Another driver or none.
    Others,
    /// Somebody who does something to the device.
    Busy,
}

impl Driver {
    /// Unbinds the driver, if it is the device's.
    fn unbind(self, dev: &Device, _: &InXenwatch) -> Found {
        // Whoever has the lock may be waiting for us, such as one who unbinds another driver. From here on nobody who
        // takes it is: the driver is ours.
        // SAFETY: The device is valid, and its driver does not change while its lock is held.
        match dev.look(|dev| unsafe { ptr::eq((*dev).dev.driver, self.0) }) {
            Some(true) => {
                // SAFETY: The device is valid.
                unsafe { raw::device_release_driver(&raw mut (*dev.as_ptr()).dev) };
                Found::Ours
            }
            Some(false) => Found::Others,
            None => Found::Busy,
        }
    }
}
