// SPDX-License-Identifier: GPL-2.0

//! Interdomain event channels with late EOI.
//!
//! C header: [`include/xen/events.h`](srctree/include/xen/events.h)
//!
//! Late EOI is the defence against event storms (XSA-332): an event channel stays masked from the
//! interrupt until whoever did the work says so, and says whether there was any work.

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    raw,
    xen::device::Device, //
};

/// Who receives the events of a channel.
pub trait Handler: Send + Sync + 'static {
    /// Whose events they are, in `/proc/interrupts`.
    const NAME: &'static CStr;

    /// An event has arrived. Hard interrupt context: must not sleep, must be short.
    ///
    /// No further event arrives until [`EventChannel::eoi`].
    fn event(this: &Arc<Self>);
}

/// A bound interdomain event channel. Dropping it waits for a handler that runs, after which there
/// are no more events; may sleep.
///
/// The number of its interrupt stays in here: once the channel is unbound, others may get it.
///
/// # Invariants
///
/// The interrupt is bound to a channel of `dev`, with `handler` as its `dev_id`.
pub struct EventChannel<T: Handler> {
    irq: u32,
    handler: Arc<T>,
    /// Xen's event code counts the channels of a device in it.
    _dev: Device,
}

impl<T: Handler> EventChannel<T> {
    /// Binds the event channel `port` of the domain at the other end of `dev`. May sleep.
    ///
    /// An event may arrive before this returns.
    ///
    /// # Errors
    ///
    /// `EINVAL` and others if the guest offers no such port; `ENOMEM`, `ENOSPC`.
    pub fn bind(dev: &Device, port: u32, handler: Arc<T>) -> Result<Self> {
        let dev_id = Arc::as_ptr(&handler).cast_mut();
        // SAFETY: The device is valid. `dev_id` is valid until the interrupt is unbound, because
        // `handler` lives as long as the result; the name is a static string.
        let irq = unsafe {
            raw::bind_interdomain_evtchn_to_irqhandler_lateeoi(
                dev.as_ptr(),
                port,
                Some(Self::callback),
                0,
                T::NAME.as_char_ptr(),
                dev_id.cast(),
            )
        };
        // INVARIANT: Bound just now.
        Ok(Self {
            irq: u32::try_from(irq).map_err(|_| Error::from_errno(irq))?,
            handler,
            _dev: dev.clone(),
        })
    }

    /// Sends an event to the other end. May be called in any context.
    #[inline]
    pub fn notify(&self) {
        // SAFETY: By the type invariant the interrupt is that of an event channel.
        unsafe { raw::notify_remote_via_irq(self.irq as i32) }
    }

    /// Allows the next event. `spurious`: this one brought no work; too many of those make Xen's
    /// event code delay the guest's events. May be called in any context.
    #[inline]
    pub fn eoi(&self, spurious: bool) {
        let flags = if spurious {
            raw::XEN_EOI_FLAG_SPURIOUS
        } else {
            0
        };
        // SAFETY: By the type invariant the interrupt is that of an event channel.
        unsafe { raw::xen_irq_lateeoi(self.irq, flags) }
    }

    /// # Safety
    ///
    /// Called by the interrupt code only, with the `dev_id` of a bound channel.
    unsafe extern "C" fn callback(
        _irq: kernel::ffi::c_int,
        dev_id: *mut kernel::ffi::c_void,
    ) -> raw::irqreturn_t {
        // SAFETY: `dev_id` came from an `Arc` that lives until the interrupt is unbound. What is
        // borrowed here is not dropped.
        let handler = core::mem::ManuallyDrop::new(unsafe { Arc::from_raw(dev_id.cast::<T>()) });
        T::event(&handler);
        // SAFETY: Returns a constant.
        unsafe { raw::irq_handled() }
    }
}

impl<T: Handler> Drop for EventChannel<T> {
    fn drop(&mut self) {
        let dev_id = Arc::as_ptr(&self.handler).cast_mut();
        // SAFETY: By the type invariant the interrupt is bound with this `dev_id`. The device is still there.
        unsafe { raw::unbind_from_irqhandler(self.irq, dev_id.cast()) }
    }
}
