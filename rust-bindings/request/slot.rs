// SPDX-License-Identifier: GPL-2.0

//! A granted page of a request: what is in it, and where it comes from. The names are those of `grants`.

use core::ptr::NonNull;

use blkif::persistent::Index;
use kernel::prelude::*;

use crate::raw;

/// One granted page of a request.
///
/// # Invariants
///
/// `page` comes from where `backing` says. A slot belongs to one request of the `Grants` that made
/// it, and is given back to it once.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) page: NonNull<raw::page>,
    pub(crate) gref: u32,
    pub(crate) backing: Backing,
}

/// What is in the page of a slot, and where it comes from.
#[derive(Clone, Copy)]
pub(crate) enum Backing {
    /// Nothing; the page comes from the `PagePool`.
    Nothing,
    /// Nothing yet, as Xen had no room for another mapping; the page comes from the `PagePool`.
    NoRoom,
    /// The grant, mapped with this handle for this slot alone into a page of the `PagePool`.
    Mapped(u32),
    /// The grant, which stays mapped in the page of a `Mapping`; the slot is one of its users.
    Kept(Index),
    /// Nothing yet, or nothing that the guest has got; the page comes from `Copies`.
    Own,
    /// A copy of what is in the guest's page, or will be; the page comes from `Copies`.
    Copied,
    /// Nobody knows; the page cannot be used, and cannot be given back.
    Lost,
}

impl Slot {
    /// Can the page be used for I/O?
    pub(crate) fn is_ready(&self) -> bool {
        !matches!(
            self.backing,
            Backing::Nothing | Backing::NoRoom | Backing::Own | Backing::Lost
        )
    }

    /// May mapping it be tried again?
    pub(crate) fn has_no_room(&self) -> bool {
        matches!(self.backing, Backing::NoRoom)
    }

    /// Something may be mapped into the page of a slot that nothing was mapped for.
    #[cold]
    pub(crate) fn lose_page(&mut self) {
        pr_err!("a grant has been mapped in part, a page is lost\n");
        // INVARIANT: The page comes from nowhere any more.
        self.backing = Backing::Lost;
    }
}
