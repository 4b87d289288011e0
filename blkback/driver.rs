// SPDX-License-Identifier: GPL-2.0

//! The module and its xenbus driver.
//!
//! Owns the registration and what all disks share ([`Context`]); everything else belongs to the [`Vbd`] of a disk.

#![forbid(unsafe_code)]

use blkif::node::State;
use kernel::{
    prelude::*,
    sync::Arc,
    ModuleMetadata, //
};
use xen_bindings::{
    sysfs::Group,
    xen::xenbus, //
};

use crate::{
    context::{
        Context,
        Flushed, //
    },
    sysfs,
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
                registration <- xenbus::Registration::new(
                    context.clone(),
                    module,
                    <Self as ModuleMetadata>::NAME,
                ),
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

impl xenbus::Driver for Driver {
    type Data = Arc<Vbd>;
    type Context = Context;

    // Not the type of device, as drivers of the xenbus are called otherwise: the in-tree driver is, and
    // to move disks from one to the other both have to be there.
    const NAME: &'static CStr = c"xen-blkback-rs";
    const DEVICE_TYPE: &'static CStr = IN_TREE;
    const GROUPS: &'static [Group<Arc<Vbd>>] = sysfs::GROUPS;

    fn probe(
        context: &Arc<Context>,
        binding: &Arc<xenbus::Binding>,
        otherend: &CStr,
    ) -> Result<Arc<Vbd>> {
        Vbd::new(context.clone(), binding, otherend)
    }

    fn bound(vbd: &Arc<Vbd>) {
        vbd.schedule();
    }

    fn otherend_changed(vbd: &Arc<Vbd>, state: State) {
        vbd.frontend_changed(state);
    }

    fn reclaim_memory(vbd: &Arc<Vbd>) {
        vbd.reclaim_memory();
    }

    fn remove(vbd: &Arc<Vbd>) {
        vbd.remove();
    }
}
