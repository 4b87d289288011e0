// SPDX-License-Identifier: GPL-2.0

//! The module and its xenbus driver.
//!
//! Owns the registration, the control workqueue and the list of files in use; everything else belongs to
//! the [`Vbd`] of a disk.

#![forbid(unsafe_code)]

use core::ops::Deref;
use kernel::{
    debugfs::Dir,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};
use xen_bindings::{
    device::State,
    sysfs::Group,
    thread::wait_for_tasks,
    work::OwnedQueue,
    xenbus, //
};

use crate::{
    guest::Guests,
    medium::claims::FilesInUse,
    stats,
    vbd::Vbd, //
};

/// The type of device that we serve, and the name that the in-tree driver of these has.
const IN_TREE: &CStr = c"vbd";

/// Pause between two looks whether all disks are gone, when the module is unloaded.
const EXIT_PAUSE: Delta = Delta::from_millis(10);

/// What all disks share.
pub(crate) struct Context {
    /// The life of disks: opening, connecting, closing. May wait for storage.
    pub(crate) control: OwnedQueue,
    /// Files that disks are on.
    pub(crate) files: Arc<FilesInUse>,
    /// Guests that have disks.
    pub(crate) guests: Arc<Guests>,
    /// Of all disks' files for administrators.
    pub(crate) debugfs: Dir,
    /// Disks that there are, those whose driver has been unbound included.
    disks: Atomic<usize>,
}

/// One of the disks that [`Context`] counts, until it is dropped.
pub(crate) struct Counted(Arc<Context>);

impl Counted {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        context.disks.fetch_add(1, Relaxed);
        Self(context)
    }
}

impl Deref for Counted {
    type Target = Arc<Context>;

    fn deref(&self) -> &Arc<Context> {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.disks.fetch_sub(1, Release);
    }
}

/// The module. Its fields are dropped in this order: unregistering the driver has all disks removed, for which their
/// work items are waited then.
#[pin_data]
pub(crate) struct Module {
    #[pin]
    registration: xenbus::Registration<Driver>,
    context: FlushedContext,
}

/// The context, dropped only when no work item is left that could hold a reference: the last one
/// destroys the workqueue, which no item of it can do.
struct FlushedContext(Arc<Context>);

impl Drop for FlushedContext {
    fn drop(&mut self) {
        // A disk whose storage hangs can take long, for which nobody shall be reported as a task that hangs.
        while self.0.disks.load(Acquire) > 0 {
            fsleep(EXIT_PAUSE);
        }
        self.0.control.flush();
        // A completion of a request may have been preempted on its last instructions, which are going away.
        wait_for_tasks();
    }
}

impl kernel::InPlaceModule for Module {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let context = Arc::new(
                Context {
                    control: OwnedQueue::new(c"xen-blkback", 0)?,
                    files: FilesInUse::new()?,
                    guests: Guests::new()?,
                    debugfs: Dir::new(<Driver as xenbus::Driver>::NAME),
                    disks: Atomic::new(0),
                },
                GFP_KERNEL,
            )?;
            Ok(try_pin_init!(Self {
                registration <- xenbus::Registration::new(context.clone(), module),
                _: {
                    if registration.has_rival(IN_TREE) {
                        pr_warn!(
                            "xen_blkback is loaded, too, and takes all new disks; unload it or move single \
                             disks with bind in /sys/bus/xen-backend/drivers/xen-blkback-rs\n"
                        );
                    }
                },
                context: FlushedContext(context),
            }? Error))
        })
    }
}

/// The driver of devices of the type `vbd`.
pub(crate) struct Driver;

/// Data of a device: its disk.
pub(crate) struct DeviceData(Arc<Vbd>);

impl DeviceData {
    pub(crate) fn vbd(&self) -> &Arc<Vbd> {
        &self.0
    }
}

impl xenbus::Driver for Driver {
    type Data = DeviceData;
    type Context = Context;

    // Not the type of device, as drivers of the xenbus are called otherwise: the in-tree driver is, and
    // to move disks from one to the other both have to be there.
    const NAME: &'static CStr = c"xen-blkback-rs";
    const DEVICE_TYPE: &'static CStr = IN_TREE;
    const GROUPS: &'static [Group<DeviceData>] = stats::GROUPS;

    fn probe(
        context: &Arc<Context>,
        binding: &Arc<xenbus::Binding>,
        otherend: &CStr,
    ) -> Result<DeviceData> {
        Vbd::new(context.clone(), binding, otherend).map(DeviceData)
    }

    fn bound(data: &DeviceData) {
        data.0.schedule();
    }

    fn otherend_changed(data: &DeviceData, state: State) {
        data.0.frontend_changed(state);
    }

    fn reclaim_memory(data: &DeviceData) {
        data.0.reclaim_memory();
    }

    fn remove(data: &DeviceData) {
        data.0.remove();
    }
}
