// SPDX-License-Identifier: GPL-2.0

//! The module and its xenbus driver.
//!
//! Owns the registration and what all disks share ([`Context`]); everything else belongs to the [`Vbd`] of a disk.

#![forbid(unsafe_code)]

use kernel::{
    prelude::*,
    sync::Arc, //
};
use xen_bindings::{
    device::State,
    sysfs::Group,
    xenbus, //
};

use crate::{
    context::{
        Context,
        Flushed, //
    },
    stats,
    vbd::Vbd, //
};

/// The type of device that we serve, and the name that the in-tree driver of these has.
const IN_TREE: &CStr = c"vbd";

/// The module. Its fields are dropped in this order: unregistering the driver has all disks removed, for which their
/// work items are waited then.
#[pin_data]
pub(crate) struct Module {
    #[pin]
    registration: xenbus::Registration<Driver>,
    context: Flushed,
}

impl kernel::InPlaceModule for Module {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let context = Context::new(<Driver as xenbus::Driver>::NAME)?;
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
                context: Flushed::new(context),
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
