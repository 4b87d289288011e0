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
    xenbus::Device, //
};

/// Who receives the events of a channel.
pub trait Handler: Send + Sync + 'static {
    /// An event has arrived. Hard interrupt context: must not sleep, must be short.
    ///
    /// No further event arrives until [`Irq::eoi`].
    fn event(this: &Arc<Self>);
}

/// The number of a bound event channel's interrupt, for those who signal and acknowledge.
///
/// A number that is out of date does no harm: signalling an interrupt that is not bound is a
/// no-op, and a frontend has to cope with an event too many.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Irq(i32);

impl Irq {
    /// Sends an event to the other end. May be called in any context.
    #[inline]
    pub fn notify(self) {
        // SAFETY: May be called with any number.
        unsafe { raw::notify_remote_via_irq(self.0) }
    }

    /// Allows the next event. `spurious`: this one brought no work; too many of those make Xen's
    /// event code delay the guest's events. May be called in any context.
    #[inline]
    pub fn eoi(self, spurious: bool) {
        let flags = if spurious {
            raw::XEN_EOI_FLAG_SPURIOUS
        } else {
            0
        };
        // SAFETY: May be called with any number.
        unsafe { raw::xen_irq_lateeoi(self.0.unsigned_abs(), flags) }
    }
}

/// A bound interdomain event channel. Dropping it waits for a handler that runs, after which there
/// are no more events.
///
/// # Invariants
///
/// The interrupt is bound with `handler` as its `dev_id`.
pub struct EventChannel<T: Handler> {
    irq: Irq,
    handler: Arc<T>,
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
                c"blkif-backend".as_char_ptr(),
                dev_id.cast(),
            )
        };
        if irq < 0 {
            return Err(Error::from_errno(irq));
        }
        // INVARIANT: Bound just now.
        Ok(Self {
            irq: Irq(irq),
            handler,
        })
    }

    /// The channel's interrupt.
    pub fn irq(&self) -> Irq {
        self.irq
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
        // SAFETY: By the type invariant the interrupt is bound with this `dev_id`.
        unsafe { raw::unbind_from_irqhandler(self.irq.0.unsigned_abs(), dev_id.cast()) }
    }
}
