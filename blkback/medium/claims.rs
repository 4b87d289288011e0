// SPDX-License-Identifier: GPL-2.0

//! Who uses which file, or which part of one.
//!
//! The stock script lets one disk write to a file, or any number read it, and looks for that at loop devices. Here it
//! is a list of our disks' uses by inode, and a comparison: the kernel counts who has a file open for writing, and
//! whoever is not one of ours is a loop device or a program of this domain.
//!
//! Owns the list. Nothing is locked inside of its lock.

#![forbid(unsafe_code)]

use core::ops::Range;

use blkif::node::DiskMode;
use kernel::{
    new_mutex,
    prelude::*,
    rbtree::RBTree,
    str::CString,
    sync::{
        Arc,
        Mutex, //
    }, //
};
use xen_bindings::{
    storage::path::Path,
    xen::xenstore::{
        self,
        Value, //
    }, //
};

/// How a disk uses a file.
#[derive(Clone)]
pub(crate) struct Use {
    pub(crate) domid: u16,
    pub(crate) mode: DiskMode,
    /// What of it, in bytes.
    pub(crate) part: Range<u64>,
    /// We open the file itself.
    pub(crate) opens: bool,
    /// The loop device that belongs to this use: major and minor number, and whether it writes.
    pub(crate) device: Option<((u32, u32), bool)>,
}

struct User {
    /// See [`Path::identity`].
    file: usize,
    how: Use,
    /// Path of the virtual machine, which stays the same when a guest gets another domain id.
    vm: Option<Value>,
    /// Number of its claim.
    claim: u64,
}

impl User {
    /// Is it of the same virtual machine? Two uses of one domain are also when nobody can say which that is.
    fn same_vm(&self, domid: u16, vm: &Option<Value>) -> bool {
        self.how.domid == domid
            || match (&self.vm, vm) {
                (Some(one), Some(other)) => one.as_bytes() == other.as_bytes(),
                _ => false,
            }
    }

    fn overlaps(&self, part: &Range<u64>) -> bool {
        self.how.part.start < part.end && part.start < self.how.part.end
    }
}

/// Why a file cannot be claimed.
pub(crate) enum Unclaimed {
    /// The use of a disk of this domain excludes ours.
    InUse { domid: u16, mode: DiskMode },
    /// There is no memory for it.
    Failed(Error),
}

impl From<Error> for Unclaimed {
    fn from(err: Error) -> Self {
        Self::Failed(err)
    }
}

/// The files that disks are on.
#[pin_data]
pub(crate) struct FilesInUse {
    #[pin]
    users: Mutex<Users>,
}

struct Users {
    /// By the number of the claim.
    all: RBTree<u64, User>,
    next_claim: u64,
}

impl Users {
    fn of(&self, file: usize) -> impl Iterator<Item = &User> {
        self.all.values().filter(move |user| user.file == file)
    }

    /// How many at most have the file open for writing on our behalf.
    fn writers(&self, file: usize) -> u32 {
        self.of(file).fold(0u32, |writers, user| {
            let ours = user.how.opens && user.how.mode.writable;
            // Each once: two disks may be on the same one.
            let device = user.how.device.is_some_and(|(_, writes)| writes)
                && !self
                    .of(file)
                    .take_while(|it| it.claim != user.claim)
                    .any(|it| it.how.device == user.how.device);
            writers.saturating_add(u32::from(ours).saturating_add(u32::from(device)))
        })
    }
}

impl FilesInUse {
    /// Those of no disk. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                users <- new_mutex!(Users {
                    all: RBTree::new(),
                    next_claim: 0,
                }),
            }),
            GFP_KERNEL,
        )
    }

    /// Registers a use of the file at `path`, unless another virtual machine uses it in a way that excludes it:
    /// one writer, or any number of readers. To be done before it is opened. May sleep.
    pub(crate) fn claim(self: &Arc<Self>, path: &Path, how: Use) -> Result<Claim, Unclaimed> {
        let file = path.identity();
        let vm = vm_of(how.domid);
        let mut users = self.users.lock();
        let other = users.of(file).find(|user| {
            (user.how.mode.writable || how.mode.writable)
                && !how.mode.shared
                && user.overlaps(&how.part)
                && !user.same_vm(how.domid, &vm)
        });
        if let Some(user) = other {
            return Err(Unclaimed::InUse {
                domid: user.how.domid,
                mode: user.how.mode,
            });
        }
        let number = users.next_claim;
        let user = User {
            file,
            how,
            vm,
            claim: number,
        };
        users.all.try_create_and_insert(number, user, GFP_KERNEL)?;
        users.next_claim = number.wrapping_add(1);
        Ok(Claim {
            files: self.clone(),
            number,
        })
    }
}

/// The node that says which virtual machine a domain is; in a local migration two domains have the
/// same for a moment.
fn vm_of(domid: u16) -> Option<Value> {
    let directory = CString::try_from_fmt(fmt!("/local/domain/{}", domid)).ok()?;
    xenstore::read(&directory, c"vm").ok()
}

/// The file behind a loop device, as far as others are kept from it.
pub(crate) struct Backing {
    /// Given up before what it is a claim of.
    _claim: Claim,
    _path: Path,
}

impl Backing {
    /// The file at `path`, which `claim` is one of.
    pub(crate) fn new(claim: Claim, path: Path) -> Self {
        Self {
            _claim: claim,
            _path: path,
        }
    }
}

/// A registered use of a file; dropping it ends the use.
pub(crate) struct Claim {
    files: Arc<FilesInUse>,
    number: u64,
}

impl Claim {
    /// Does another use of the file at `path`, which this is a claim of, belong to the same virtual machine, and write?
    /// Then who has the file besides our disks may be its device model, and has been asked for when the other one began.
    pub(crate) fn is_shared_by_vm(&self, path: &Path) -> bool {
        let file = path.identity();
        let users = self.files.users.lock();
        let own = users.of(file).find(|user| user.claim == self.number);
        own.is_some_and(|own| {
            users.of(file).any(|user| {
                user.claim != own.claim
                    && user.how.mode.writable
                    && user.same_vm(own.how.domid, &own.vm)
            })
        })
    }

    /// Has somebody the file at `path` open for writing who is neither one of our disks nor its loop device?
    pub(crate) fn has_foreign_writer(&self, path: &Path) -> bool {
        let users = self.files.users.lock();
        // One of our disks that has claimed it but not opened it yet is counted as if it had.
        path.writers() > users.writers(path.identity())
    }

    /// Is the loop device with these numbers that of one of our disks, which has the file at `path`?
    pub(crate) fn knows_loop(&self, path: &Path, numbers: (u32, u32)) -> bool {
        let users = self.files.users.lock();
        let known = users
            .of(path.identity())
            .any(|user| user.how.device.is_some_and(|(it, _)| it == numbers));
        known
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut users = self.files.users.lock();
        users.all.remove(&self.number);
    }
}
