// SPDX-License-Identifier: GPL-2.0

//! The module and its xenbus driver.
//!
//! Owns the registration, the control workqueue and the list of files in use; everything else belongs to
//! the [`Vbd`] of a disk.

#![forbid(unsafe_code)]

use kernel::{
    debugfs::Dir,
    prelude::*,
    sync::Arc, //
};
use xen_bindings::{
    sysfs::Group,
    thread::wait_for_tasks,
    work::OwnedQueue,
    xenbus, //
};

use crate::{
    debug::Files,
    handover::FilesInUse,
    stats::{
        self,
        Stats, //
    },
    vbd::Vbd, //
};

/// The type of device that we serve, and the name that the in-tree driver of these has.
const IN_TREE: &CStr = c"vbd";

/// What all disks share.
#[pin_data]
pub(crate) struct Context {
    /// The life of disks: opening, connecting, closing. May wait for storage.
    pub(crate) control: OwnedQueue,
    /// Files that disks are on.
    #[pin]
    pub(crate) files: FilesInUse,
    /// Of all disks' files for administrators.
    debugfs: Dir,
}

/// The module. Its fields are dropped in this order: unregistering the driver waits for all disks to
/// be removed, after which the last work items can finish.
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
        self.0.control.flush();
        // A completion of a request may have been preempted on its last instructions, which are going away.
        wait_for_tasks();
    }
}

impl kernel::InPlaceModule for Module {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let context = Arc::pin_init(
                try_pin_init!(Context {
                    control: OwnedQueue::new(c"xen-blkback", 0)?,
                    files <- FilesInUse::new(),
                    debugfs: Dir::new(<Driver as xenbus::Driver>::NAME),
                }),
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

/// Data of a device: its disk, its files in debugfs, and the watch of its directory.
pub(crate) struct DeviceData {
    vbd: Arc<Vbd>,
    _files: Files,
    _watch: xenbus::Watch<Vbd>,
}

impl DeviceData {
    pub(crate) fn stats(&self) -> &Stats {
        self.vbd.stats()
    }

    pub(crate) fn physical_device(&self) -> (u32, u32) {
        self.vbd.physical_device()
    }

    pub(crate) fn mode(&self) -> &'static CStr {
        self.vbd.access_mode()
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

    fn probe(context: &Arc<Context>, dev: xenbus::Device, otherend: &CStr) -> Result<DeviceData> {
        let vbd = Vbd::new(context.clone(), dev, otherend)?;
        let watch = xenbus::Watch::new(vbd.device().nodename(), vbd.clone())?;
        let files = Files::new(&context.debugfs, &vbd)?;
        vbd.schedule();
        Ok(DeviceData {
            vbd,
            _files: files,
            _watch: watch,
        })
    }

    fn otherend_changed(data: &DeviceData, state: xenbus::State) {
        data.vbd.frontend_changed(state);
    }

    fn reclaim_memory(data: &DeviceData) {
        data.vbd.reclaim_memory();
    }

    fn remove(data: &DeviceData) {
        data.vbd.remove();
    }
}
