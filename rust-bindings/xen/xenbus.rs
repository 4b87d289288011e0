// SPDX-License-Identifier: GPL-2.0

//! Abstractions for the xenbus: backend drivers and their devices.
//!
//! C header: [`include/xen/xenbus.h`](srctree/include/xen/xenbus.h)
//!
//! Which thread calls what: probe, remove, changes of the frontend's state and watches all run in
//! the one xenwatch thread, for all devices of the machine (probe and remove also in the thread of
//! whoever loads, unloads, binds or unbinds). A callback that blocks there blocks every other Xen
//! device, so callbacks should hand their work to a workqueue. Above all nothing may wait for the xenwatch thread
//! while it holds a device's lock, as probe and remove do: that thread takes the lock of a device that vanishes.
//! Hence a [`Watch`](crate::xen::xenwatch::Watch) must not be dropped there, and it is that thread that unbinds a driver at
//! the administrator's request.

use blkif::node::State;
use core::{
    marker::PhantomPinned,
    ptr::NonNull, //
};
use kernel::{
    container_of,
    error::{
        from_result,
        to_result, //
    },
    fmt,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        Arc, //
    },
    types::{
        ForeignOwnable,
        Opaque, //
    },
    ThisModule, //
};

use crate::{
    raw,
    sysfs::{
        self,
        Group,
        Groups, //
    },
    xen::{
        bind::Files,
        device::Device,
        xenstore::{
            self,
            Transaction, //
        },
        xenwatch::InXenwatch, //
    }, //
};

/// A device and its driver, from probe until the driver is unbound; what refers to it may live longer.
///
/// # Invariants
///
/// While `over` is not set, the device is registered: xenbus unregisters devices in the xenwatch thread only, and so
/// do we; both unbind the driver, which sets `over`.
pub struct Binding {
    dev: Device,
    over: Atomic<bool>,
}

impl Binding {
    /// The device.
    pub fn device(&self) -> &Device {
        &self.dev
    }

    /// Has the driver been unbound? Any context.
    ///
    /// The next driver may have the device already, or it is gone: nothing may be published any more.
    pub fn is_over(&self) -> bool {
        self.over.load(Acquire)
    }

    /// Writes to the device's own directory in one transaction, unless the toolstack has removed it or the driver has been
    /// unbound. Returns whether it has been written. May sleep.
    ///
    /// # Errors
    ///
    /// That of `body`, or of xenstore.
    pub fn publish(&self, body: impl FnMut(&Transaction) -> Result) -> Result<bool> {
        if self.is_over() {
            return Ok(false);
        }
        Transaction::run_in(self.dev.nodename(), body)
    }

    /// Publishes a new state of this end, unless the driver has been unbound. May sleep.
    ///
    /// Errors go to the log and the device's error node: nobody could handle them better.
    pub fn switch_state(&self, state: State) {
        if self.is_over() {
            return;
        }
        // SAFETY: The device is valid, and `state` is one of the numbers of the enum.
        unsafe { raw::xenbus_switch_state(self.dev.as_ptr(), state as raw::xenbus_state) };
    }

    /// Reports an error in the log and in the `error` node of this end, unless the driver has been unbound. May sleep.
    pub fn error(&self, err: Error, message: fmt::Arguments<'_>) {
        if self.is_over() {
            return;
        }
        // SAFETY: The device is valid, and the format takes exactly one `fmt::Arguments`.
        unsafe {
            raw::xenbus_dev_error(
                self.dev.as_ptr(),
                err.to_errno(),
                c"%pA".as_char_ptr(),
                (&raw const message).cast::<c_void>(),
            )
        }
    }

    /// As [`Binding::error`], and publishes [`State::Closing`]. May sleep.
    pub fn fatal(&self, err: Error, message: fmt::Arguments<'_>) {
        if self.is_over() {
            return;
        }
        // SAFETY: The device is valid, and the format takes exactly one `fmt::Arguments`.
        unsafe {
            raw::xenbus_dev_fatal(
                self.dev.as_ptr(),
                err.to_errno(),
                c"%pA".as_char_ptr(),
                (&raw const message).cast::<c_void>(),
            )
        }
    }

    /// As [`Binding::fatal`], but without a line in the log: for what a guest could cause again and again. May sleep.
    pub fn fatal_unlogged(&self, err: Error, message: fmt::Arguments<'_>) {
        if self.is_over() {
            return;
        }
        // What xenbus_dev_error() writes, and where. It tells nobody either if that cannot be written.
        let _ =
            CString::try_from_fmt(fmt!("error/{}", self.dev.nodename())).and_then(|directory| {
                xenstore::write(
                    &directory,
                    c"error",
                    fmt!("{} {}", err.to_errno().wrapping_neg(), message),
                )
            });
        self.switch_state(State::Closing);
    }

    /// Waits until the probe that made the binding, or what else somebody does to the device at the moment, is over;
    /// returns whether the driver is bound then. Must not be called by callbacks of a [`Driver`] or [`Watcher`], which
    /// would wait for themselves. May sleep.
    pub fn settle(&self) -> bool {
        let dev = self.dev.as_ptr();
        // SAFETY: The device is valid; the lock is given back at once.
        unsafe {
            raw::device_lock(&raw mut (*dev).dev);
            raw::device_unlock(&raw mut (*dev).dev);
        }
        !self.is_over()
    }

    /// Removes the device from the bus, which unbinds its driver, unless that has been done. May sleep.
    ///
    /// Returns `false` if nothing was done because somebody else does something to the device, and may be waiting for
    /// the callback that we are in: it has to be tried again later.
    pub fn unregister(&self, _: &InXenwatch) -> bool {
        if self.is_over() {
            return true;
        }
        // Whoever takes the lock after this look has not been waiting for us before.
        if self.dev.look(|_| ()).is_none() {
            return false;
        }
        // SAFETY: The device is valid. By the type invariant it is registered, and stays so, as we are in the only
        // thread that unregisters it.
        unsafe { raw::device_unregister(&raw mut (*self.dev.as_ptr()).dev) };
        true
    }
}

/// What is stored for a device whose driver is bound.
struct Bound<D> {
    data: D,
    binding: Arc<Binding>,
}

impl<D: Send + Sync + 'static> sysfs::Bound for Bound<D> {
    type Data = D;

    fn data(&self) -> &D {
        &self.data
    }
}

/// A driver for the backends of one type of device.
///
/// # Examples
///
/// ```ignore
/// struct Echo;
///
/// impl xenbus::Driver for Echo {
///     type Data = Arc<Session>;
///     type Context = ();
///     const NAME: &'static CStr = c"echo-backend";
///     const DEVICE_TYPE: &'static CStr = c"echo";
///     const GROUPS: &'static [Group<Arc<Session>>] = &[];
///
///     fn probe(_: &Arc<()>, binding: &Arc<Binding>, otherend: &CStr) -> Result<Arc<Session>> {
///         Session::new(binding.clone(), otherend)
///     }
///
///     // All that waits is done by a work item of the session's: these run in the thread of all Xen devices.
///     fn bound(session: &Arc<Session>) {
///         session.schedule();
///     }
///
///     fn otherend_changed(session: &Arc<Session>, state: State) {
///         session.follow(state);
///     }
///
///     fn reclaim_memory(_: &Arc<Session>) {}
///
///     fn remove(session: &Arc<Session>) {
///         session.schedule();
///     }
/// }
/// ```
pub trait Driver: Sized + 'static {
    /// The driver's data of one device.
    type Data: Send + Sync + 'static;

    /// Name of the driver, by which it is found in sysfs; no other one on the bus may have it.
    const NAME: &'static CStr;
    /// The type of device that it serves.
    const DEVICE_TYPE: &'static CStr;
    /// Files of each device in sysfs.
    const GROUPS: &'static [Group<Self::Data>];
    /// The driver's own data, handed to every probe.
    type Context: Send + Sync + 'static;

    /// A device has appeared. Runs in task context and may sleep, but see the module about doing so.
    ///
    /// `otherend` is the path of the frontend's directory. Nothing may be published before [`Driver::bound`]: the device
    /// may still go to another driver.
    fn probe(
        context: &Arc<Self::Context>,
        binding: &Arc<Binding>,
        otherend: &CStr,
    ) -> Result<Self::Data>;

    /// The device is ours. As probe.
    fn bound(data: &Self::Data);

    /// The frontend's state has changed. Task context.
    fn otherend_changed(data: &Self::Data, state: State);

    /// Memory is short: what the device does not need should be given back. Called by whoever
    /// allocates, so it must not allocate or wait for a lock that is held during an allocation.
    fn reclaim_memory(data: &Self::Data);

    /// The driver is unbound; [`Binding::is_over`] says so already. What takes its time is to be left to others: this
    /// holds up all Xen devices of the machine. They may go on to use the device, to which they have a reference, but
    /// must not publish anything.
    fn remove(data: &Self::Data);
}

/// The registration of a backend driver; dropping it unbinds all devices.
///
/// # Invariants
///
/// `drv` is registered from the end of [`Registration::new`] until `drop`.
#[pin_data(PinnedDrop)]
pub struct Registration<T: Driver> {
    #[pin]
    drv: Opaque<raw::xenbus_driver>,
    ids: [raw::xenbus_device_id; 2],
    groups: Groups<Bound<T::Data>>,
    files: Files,
    context: Arc<T::Context>,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: There is nothing that could be done with a shared reference.
unsafe impl<T: Driver> Sync for Registration<T> {}
// SAFETY: A driver may be unregistered in any task.
unsafe impl<T: Driver> Send for Registration<T> {}

impl<T: Driver> Registration<T> {
    /// Registers the driver, which is part of the module of this name. Devices may be probed before this returns. May
    /// sleep.
    ///
    /// # Errors
    ///
    /// What `__xenbus_register_backend` returns: `EBUSY` for a name that is taken.
    pub fn new(
        context: Arc<T::Context>,
        module: &'static ThisModule,
        name: &'static CStr,
    ) -> impl PinInit<Self, Error> {
        let mut ids: [raw::xenbus_device_id; 2] = pin_init::zeroed();
        if let Some(id) = ids.first_mut() {
            for (to, from) in id
                .devicetype
                .iter_mut()
                .zip(T::DEVICE_TYPE.to_bytes_with_nul())
            {
                *to = *from as kernel::ffi::c_char;
            }
        }
        try_pin_init!(&this in Self {
            context,
            ids,
            groups: Groups::new(T::GROUPS)?,
            files: Files::new()?,
            drv <- Opaque::try_ffi_init(|drv: *mut raw::xenbus_driver| {
                // SAFETY: `drv` may be written; the fields before this one are initialised
                // already, and stay in place because the structure is pinned.
                let ret = unsafe {
                    drv.write(pin_init::zeroed());
                    (*drv).name = T::NAME.as_char_ptr();
                    (*drv).ids = (&raw const (*this.as_ptr()).ids).cast();
                    (*drv).driver.dev_groups = (*this.as_ptr()).groups.as_ptr().cast();
                    (*drv).driver.groups = (*this.as_ptr()).files.as_ptr().cast();
                    (*drv).driver.suppress_bind_attrs = true;
                    (*drv).probe = Some(Self::probe_callback);
                    (*drv).otherend_changed = Some(Self::otherend_changed_callback);
                    (*drv).remove = Some(Self::remove_callback);
                    (*drv).reclaim_memory = Some(Self::reclaim_memory_callback);
                    // The state stays what it is when the driver is unbound: the next one goes on.
                    (*drv).allow_rebind = true;
                    raw::__xenbus_register_backend(drv, module.as_ptr(), name.as_char_ptr())
                };
                to_result(ret)
            }),
            _pin: PhantomPinned,
        })
    }

    /// Is there a driver with this name on our bus? May sleep.
    pub fn has_rival(&self, name: &CStr) -> bool {
        // SAFETY: By the type invariant the driver is registered, so `bus` is that of the backends;
        // `name` is NUL-terminated. Without using what is returned it does not matter how long it
        // stays valid.
        let found = unsafe { raw::driver_find(name.as_char_ptr(), (*self.drv.get()).driver.bus) };
        !found.is_null()
    }

    /// # Safety
    ///
    /// Called by the xenbus only, with a valid device that this driver matched.
    unsafe extern "C" fn probe_callback(
        dev: *mut raw::xenbus_device,
        _id: *const raw::xenbus_device_id,
    ) -> kernel::ffi::c_int {
        from_result(|| {
            let ptr = NonNull::new(dev).ok_or(EINVAL)?;
            // SAFETY: The xenbus sets `dev.driver` to the `driver` in our `xenbus_driver` before it
            // calls probe. That is the field `drv` of a registered `Self`.
            let context = unsafe {
                let drv = container_of!((*dev).dev.driver, raw::xenbus_driver, driver);
                let this = container_of!(Opaque::cast_from(drv), Self, drv);
                (*this).context.clone()
            };
            let memory = KBox::<Bound<T::Data>>::new_uninit(GFP_KERNEL)?;
            let binding = Arc::new(
                Binding {
                    // SAFETY: The device is valid.
                    dev: unsafe { Device::from_raw(ptr) },
                    over: Atomic::new(false),
                },
                GFP_KERNEL,
            )?;
            // SAFETY: `otherend` is a NUL-terminated string for as long as the driver is bound.
            let otherend = unsafe { raw::c_str((*dev).otherend) };
            let data = T::probe(&context, &binding, otherend)
                .inspect_err(|_| binding.over.store(true, Release))?;
            let bound = KBox::write(memory, Bound { data, binding });
            let foreign = bound.into_foreign();
            // SAFETY: During probe nobody else accesses the driver's data.
            unsafe { (*dev).dev.driver_data = foreign.cast() };
            // SAFETY: Remove, which frees the data, cannot run before probe has returned.
            let bound = unsafe { <KBox<Bound<T::Data>> as ForeignOwnable>::borrow(foreign) };
            T::bound(&bound.data);
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// Called by the xenbus only, between a successful probe and the start of remove.
    unsafe extern "C" fn otherend_changed_callback(
        dev: *mut raw::xenbus_device,
        state: raw::xenbus_state,
    ) {
        // SAFETY: probe stored the data, and remove, which frees it, comes after the watch of the
        // other end has been removed.
        let bound = unsafe {
            <KBox<Bound<T::Data>> as ForeignOwnable>::borrow((*dev).dev.driver_data.cast())
        };
        T::otherend_changed(&bound.data, State::from_number(state));
    }

    /// # Safety
    ///
    /// Called by the xenbus only, with a valid device, at any time but during probe and remove
    /// (`reclaim_sem`).
    unsafe extern "C" fn reclaim_memory_callback(dev: *mut raw::xenbus_device) {
        // SAFETY: probe and remove, which alone change the pointer, do not run.
        let data = unsafe { (*dev).dev.driver_data };
        if !data.is_null() {
            // SAFETY: probe stored the data, and remove has not taken them out.
            let bound = unsafe { <KBox<Bound<T::Data>> as ForeignOwnable>::borrow(data.cast()) };
            T::reclaim_memory(&bound.data);
        }
    }

    /// # Safety
    ///
    /// Called by the xenbus only, once after a successful probe.
    unsafe extern "C" fn remove_callback(dev: *mut raw::xenbus_device) {
        // SAFETY: probe stored the data, and nothing else takes it out.
        let bound = unsafe {
            let ptr = (*dev).dev.driver_data;
            (*dev).dev.driver_data = core::ptr::null_mut();
            <KBox<Bound<T::Data>> as ForeignOwnable>::from_foreign(ptr.cast())
        };
        bound.binding.over.store(true, Release);
        T::remove(&bound.data);
    }
}

#[pinned_drop]
impl<T: Driver> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant the driver is registered.
        unsafe { raw::xenbus_unregister_driver(self.drv.get()) }
    }
}
