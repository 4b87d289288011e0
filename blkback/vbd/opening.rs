// SPDX-License-Identifier: GPL-2.0

//! How a disk gets its medium, and another one when the toolstack says so.
//!
//! Runs in the disk's control work item, which holds the lock of [`Inner`].

#![forbid(unsafe_code)]

use blkif::node::device_numbers;
use kernel::{
    prelude::*,
    str::CString,
    sync::Arc, //
};
use xen_bindings::xenstore;

use super::{
    Inner,
    Source,
    Vbd, //
};
use crate::{
    handover::{
        self,
        Change,
        LOOP_MAJOR, //
    },
    medium::{
        DiskMode,
        Medium, //
    },
};

impl Vbd {
    /// Gets the medium, as soon as the toolstack has done its part.
    pub(super) fn open(&self, inner: &mut Inner) {
        let source = core::mem::replace(&mut inner.source, Source::Failed);
        inner.source = match source {
            Source::File(medium) => {
                if self.toolstack_ready() {
                    if let Ok(mode) = self.mode() {
                        inner.mode = mode;
                    }
                    match Arc::new(Medium::File(medium), GFP_KERNEL) {
                        Ok(medium) => Source::Open(medium),
                        Err(_) => {
                            self.fatal(ENOMEM, c"opening a file");
                            Source::Failed
                        }
                    }
                } else {
                    Source::File(medium)
                }
            }
            Source::Script => match self.open_device(inner) {
                Ok(None) => Source::Script,
                Ok(Some(medium)) => Source::Open(medium),
                Err(_) => Source::Failed,
            },
            source => source,
        };
    }

    /// Has the hotplug helper run?
    fn toolstack_ready(&self) -> bool {
        xenstore::read(self.name(), c"hotplug-status")
            .is_ok_and(|status| status.as_bytes() == b"connected")
    }

    fn mode(&self) -> Result<DiskMode> {
        let mode = xenstore::read(self.name(), c"mode").inspect_err(|err| {
            self.fatal(*err, c"reading mode");
        })?;
        Ok(DiskMode::from_node(mode.as_bytes()))
    }

    /// Opens the block device that a script has named, if it has. Errors have been reported.
    fn open_device(&self, inner: &mut Inner) -> Result<Option<Arc<Medium>>> {
        let fatal = |err: Error, what: &CStr| {
            self.fatal(err, what);
            err
        };
        let Some(node) = xenstore::read_optional(self.name(), c"physical-device")
            .map_err(|err| fatal(err, c"reading physical-device"))?
        else {
            return Ok(None);
        };
        let (major, minor) = device_numbers(node.as_bytes())
            .map_err(|_| fatal(EINVAL, c"physical-device is not of the form major:minor"))?;
        inner.mode = self.mode()?;
        let behind = if major == LOOP_MAJOR {
            handover::behind_loop(
                &self.context,
                self.name(),
                minor,
                inner.mode,
                self.dev().otherend_id(),
            )
            .map_err(|message| fatal(EBUSY, &message))?
        } else {
            None
        };
        let medium = match behind {
            Some(file) => Medium::File(file),
            None => self.open_numbers(major, minor, inner.mode)?,
        };
        Ok(Some(
            Arc::new(medium, GFP_KERNEL).map_err(|_| fatal(ENOMEM, c"opening a block device"))?,
        ))
    }

    /// Opens the block device with these numbers. Errors have been reported.
    fn open_numbers(&self, major: u32, minor: u32, mode: DiskMode) -> Result<Medium> {
        Medium::open_device(major, minor, mode).inspect_err(|err| {
            let access = if mode.writable { "writing" } else { "reading" };
            let hint = if *err == EBUSY {
                ", which is mounted or otherwise claimed in this domain"
            } else {
                ""
            };
            match CString::try_from_fmt(fmt!(
                "opening block device {major:x}:{minor:x} for {access}{hint}"
            )) {
                Ok(what) => self.fatal(*err, &what),
                Err(_) => self.fatal(*err, c"opening a block device"),
            }
        })
    }

    /// Puts another medium into a drive, or takes it out.
    pub(super) fn change_medium(self: &Arc<Self>, inner: &mut Inner) {
        let Source::Open(medium) = &inner.source else {
            return;
        };
        if !self.has_removable_medium() || matches!(**medium, Medium::Block(_)) {
            return;
        }
        let change = handover::change(
            &self.context,
            self.name(),
            medium.path(),
            self.dev().otherend_id(),
        );
        let medium = match change {
            Ok(Change::None) => return,
            Ok(Change::Eject) => Medium::Empty,
            Ok(Change::Insert(medium)) => Medium::File(medium),
            Err(message) => return self.dev().error(EINVAL, &message),
        };
        let medium = match Arc::new(medium, GFP_KERNEL) {
            Ok(medium) => medium,
            Err(_) => return self.dev().error(ENOMEM, c"changing the medium"),
        };
        match medium.path() {
            Some(path) => pr_info!("{}: medium changed to file {}\n", self.name(), path),
            None => pr_info!("{}: medium taken out\n", self.name()),
        }
        // What is in flight ends on the old medium. The rings are attached to anew, at the requests
        // that have not been taken.
        let connected = inner.connection.is_some();
        self.disconnect(inner);
        inner.source = Source::Open(medium);
        self.show(inner);
        if connected {
            self.connect_again(inner);
        }
    }

    /// Does the toolstack say that the medium can be changed?
    fn has_removable_medium(&self) -> bool {
        let is = |node, value: &[u8]| {
            xenstore::read(self.name(), node).is_ok_and(|found| found.as_bytes() == value)
        };
        is(c"device-type", b"cdrom") || is(c"removable", b"1")
    }
}
