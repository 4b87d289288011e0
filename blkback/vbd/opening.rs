// SPDX-License-Identifier: GPL-2.0

//! How a disk gets its medium, and another one when the toolstack says so.
//!
//! Runs in the disk's control work item, which holds the lock of [`Lifecycle`].

#![forbid(unsafe_code)]

use blkif::node::{
    device_numbers,
    DiskMode, //
};
use kernel::{
    fmt,
    prelude::*,
    sync::Arc, //
};
use xen_bindings::xen::xenstore;

use super::{
    Lifecycle,
    Source,
    Vbd, //
};
use crate::{
    handover::{
        self,
        Behind,
        Report, //
    },
    medium::{
        claims::Backing,
        DeviceMedium,
        Medium, //
    },
};

impl Vbd {
    /// Gets the medium, as soon as the toolstack has done its part. Has a script named it, just now? That has looked at
    /// a drive only once, and there may be another medium in it by now.
    pub(super) fn open(&self, life: &mut Lifecycle) -> bool {
        let source = core::mem::replace(&mut life.source, Source::Failed);
        let (source, by_script) = match source {
            Source::Ready(medium) => match handover::report(self.name()) {
                Ok(Some(Report::Ready)) => match Arc::new(medium, GFP_KERNEL) {
                    Ok(medium) => (Source::Open(medium), false),
                    Err(_) => {
                        self.binding.fatal(ENOMEM, fmt!("opening a file"));
                        (Source::Failed, false)
                    }
                },
                // The toolstack sees another file. Nobody may be kept from this one.
                Ok(Some(Report::Failed)) => (Source::Failed, false),
                Ok(None) => (Source::Ready(medium), false),
                Err(err) => {
                    self.binding.fatal(err, fmt!("reading hotplug-status"));
                    (Source::Failed, false)
                }
            },
            Source::Script => match self.open_device() {
                Ok(None) => (Source::Script, false),
                Ok(Some(medium)) => (Source::Open(medium), true),
                Err(_) => (Source::Failed, false),
            },
            source => (source, false),
        };
        life.source = source;
        by_script
    }

    /// Opens the block device that a script has named, if it has. Errors have been reported.
    fn open_device(&self) -> Result<Option<Arc<Medium>>> {
        let fatal = |err: Error, what: fmt::Arguments<'_>| {
            self.binding.fatal(err, what);
            err
        };
        let Some(node) = xenstore::read_optional(self.name(), c"physical-device")
            .map_err(|err| fatal(err, fmt!("reading physical-device")))?
        else {
            return Ok(None);
        };
        let numbers = device_numbers(node.as_bytes()).map_err(|_| {
            fatal(
                EINVAL,
                fmt!("physical-device is not of the form major:minor"),
            )
        })?;
        let mode =
            xenstore::read(self.name(), c"mode").map_err(|err| fatal(err, fmt!("reading mode")))?;
        let mode = DiskMode::from_node(mode.as_bytes());
        let behind = handover::behind(
            &self.context.files,
            &self.binding,
            &self.speaker,
            numbers,
            mode,
        )
        .map_err(|unusable| fatal(EBUSY, fmt!("{}", unusable)))?;
        let medium = match behind {
            Behind::Medium(medium) => medium,
            Behind::Device(backing) => self.open_numbers(numbers, mode, Some(backing))?,
            Behind::Nothing => self.open_numbers(numbers, mode, None)?,
        };
        Ok(Some(Arc::new(medium, GFP_KERNEL).map_err(|_| {
            fatal(ENOMEM, fmt!("opening a block device"))
        })?))
    }

    /// Opens the block device with these numbers. Errors have been reported.
    fn open_numbers(
        &self,
        (major, minor): (u32, u32),
        mode: DiskMode,
        backing: Option<Backing>,
    ) -> Result<Medium> {
        DeviceMedium::open((major, minor), mode, backing)
            .map(Medium::Block)
            .inspect_err(|err| {
                let access = if mode.writable { "writing" } else { "reading" };
                let hint = if *err == EBUSY {
                    ", which is mounted or otherwise claimed in this domain"
                } else {
                    ""
                };
                self.binding.fatal(
                    *err,
                    fmt!("opening block device {major:x}:{minor:x} for {access}{hint}"),
                );
            })
    }

    /// Puts another medium into a drive, or takes it out.
    pub(super) fn change_medium(self: &Arc<Self>, life: &mut Lifecycle) {
        let Source::Open(medium) = &life.source else {
            return;
        };
        if matches!(**medium, Medium::Block(_)) {
            return;
        }
        match handover::is_drive(self.name()) {
            Ok(true) => {}
            Ok(false) => return,
            Err(err) => return self.binding.error(err, fmt!("changing the medium")),
        }
        let change = handover::change(&self.context.files, &self.binding, &self.speaker, medium);
        let medium = match change {
            Ok(None) => return,
            Ok(Some(medium)) => medium,
            Err(unusable) => return self.binding.error(EINVAL, fmt!("{}", unusable)),
        };
        let medium = match Arc::new(medium, GFP_KERNEL) {
            Ok(medium) => medium,
            Err(_) => return self.binding.error(ENOMEM, fmt!("changing the medium")),
        };
        match medium.path() {
            Some(path) => self.speaker.info(fmt!("medium changed to file {}", path)),
            None => self.speaker.info(fmt!("medium taken out")),
        }
        // What is in flight ends on the old medium. The rings are attached to anew, at the requests
        // that have not been taken.
        let connected = life.connection.is_some();
        self.disconnect(life);
        life.source = Source::Open(medium);
        self.show(life);
        if connected {
            self.connect_again(life);
        }
    }
}
