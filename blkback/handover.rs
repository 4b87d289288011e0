// SPDX-License-Identifier: GPL-2.0

//! How a file comes to us from a toolstack that knows nothing of us.
//!
//! libxl hands a raw file over as `type=phy` with `params` its path and `script` the stock block
//! script, which would set up a loop device. libxl reads `script` only after the backend has
//! published InitWait, so before that we open the file ourselves and point `script` to a helper next
//! to the stock one, `block-rs`. The helper reports `hotplug-status=connected`, or fails with the
//! message that we left in `hotplug-error`, which xl prints.
//!
//! Where the helper is not installed, or the administrator wants the script node left alone (module
//! parameter `keep_script`), the stock script makes its loop device. That is then a mere handle: the
//! I/O is done on the file behind it.
//!
//! What the stock script checks besides, that no two guests write to one file, is checked here, by
//! inode.
//!
//! Owns the list of files in use. Lock order: its lock is taken inside of that of a [`Vbd`], nothing
//! is locked inside of it.
//!
//! [`Vbd`]: crate::vbd::Vbd

#![forbid(unsafe_code)]

use kernel::{
    fmt,
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    str::CString,
    sync::{
        Arc,
        Mutex, //
    }, //
};
use xen_bindings::{
    file::{
        path_kind,
        Access,
        File,
        PathKind, //
    },
    params,
    xenstore::{
        self,
        Value, //
    },
};

use crate::{
    driver::Context,
    medium::{
        DiskMode,
        FileMedium, //
    },
};

/// Base name of the script that libxl uses for a disk without one of its own.
const STOCK_SCRIPT: &[u8] = b"block";

/// What its name gets to become that of our helper, in the same directory.
const HELPER_SUFFIX: &str = "-rs";

/// Major number of loop devices
/// ([`include/uapi/linux/major.h`](srctree/include/uapi/linux/major.h)).
pub(crate) const LOOP_MAJOR: u32 = 7;

/// What becomes of the disk of a backend directory.
pub(crate) enum Handover {
    /// Not ours to open: the toolstack's script writes `physical-device`.
    Script,
    /// A file, open. The helper has to report that the toolstack is ready.
    File(FileMedium),
    /// A file that cannot be used. The helper has to report the message left for it.
    Refused,
}

/// Takes the file over if the backend directory of `disk` names one. May sleep.
///
/// # Errors
///
/// What xenstore answers with.
pub(crate) fn take(context: &Arc<Context>, disk: &CStr, domid: u16) -> Result<Handover> {
    let (Some(kind), Some(script), Some(params), Some(mode)) = (
        xenstore::read_optional(disk, c"type")?,
        xenstore::read_optional(disk, c"script")?,
        xenstore::read_optional(disk, c"params")?,
        xenstore::read_optional(disk, c"mode")?,
    ) else {
        return Ok(Handover::Script);
    };
    let path = params.as_c_str();
    // The disk of a driver that was unbound has our helper already.
    let (stock, again) = match script.as_bytes().strip_suffix(HELPER_SUFFIX.as_bytes()) {
        Some(stock) => (stock, true),
        None => (script.as_bytes(), false),
    };
    let Some(directory) = stock.strip_suffix(STOCK_SCRIPT) else {
        return Ok(Handover::Script);
    };
    if kind.as_bytes() != b"phy"
        || !directory.ends_with(b"/")
        || !path.to_bytes_with_nul().starts_with(b"/")
        || path_kind(path) != Ok(PathKind::Regular)
        // A script has made a device of the file, and will want to undo that.
        || xenstore::read_optional(disk, c"physical-device")?.is_some()
    {
        return Ok(Handover::Script);
    }

    let helper = if again {
        CString::try_from(script.as_c_str())?
    } else {
        CString::try_from_fmt(fmt!("{}{}", script.as_c_str(), HELPER_SUFFIX))?
    };
    if params::keep_script() && !again {
        return Ok(Handover::Script);
    }
    if path_kind(&helper) != Ok(PathKind::Regular) {
        pr_warn!(
            "{}: {} is not installed, file {} gets a loop device; install it with the module\n",
            disk,
            &*helper,
            path,
        );
        return Ok(Handover::Script);
    }
    xenstore::write(disk, c"script", fmt!("{}", &*helper))?;

    let mode = DiskMode::from_node(mode.as_bytes());
    match open(context, disk, path, mode, domid) {
        Ok(medium) => Ok(Handover::File(medium)),
        Err(message) => {
            pr_warn!("{}: {}\n", disk, &*message);
            xenstore::write(disk, c"hotplug-error", fmt!("{}", &*message))?;
            Ok(Handover::Refused)
        }
    }
}

/// The file of the disk if a script has made the loop device with the number `minor` of it: all of it,
/// and under the path that the toolstack has given. `None` leaves the disk on the block device that
/// the script has named. May sleep.
///
/// # Errors
///
/// A message for the administrator.
pub(crate) fn behind_loop(
    context: &Arc<Context>,
    disk: &CStr,
    minor: u32,
    mode: DiskMode,
    domid: u16,
) -> core::result::Result<Option<FileMedium>, CString> {
    let Ok(params) = xenstore::read(disk, c"params") else {
        return Ok(None);
    };
    let path = params.as_c_str();
    if !path.to_bytes_with_nul().starts_with(b"/") || path_kind(path) != Ok(PathKind::Regular) {
        return Ok(None);
    }
    let file = open_file(path, mode)?;
    // Only now: the kernel names the file behind the device by the path that it has at the moment. If
    // it is that of the file that has just been opened, no other one has been put in its place.
    let is = |attribute, wanted: &[u8]| {
        loop_attribute(minor, attribute).is_ok_and(|value| value.trim_ascii_end() == wanted)
    };
    if !is("backing_file", path.to_bytes()) || !is("offset", b"0") || !is("sizelimit", b"0") {
        return Ok(None);
    }
    use_file(context, disk, path, file, mode, domid).map(Some)
}

/// An attribute of a loop device (`drivers/block/loop.c`), at most a page of it.
fn loop_attribute(minor: u32, name: &str) -> Result<KVec<u8>> {
    let path = CString::try_from_fmt(fmt!(
        "/sys/dev/block/{}:{}/loop/{}",
        LOOP_MAJOR,
        minor,
        name
    ))?;
    let mut value = KVec::from_elem(0, PAGE_SIZE, GFP_KERNEL)?;
    let len = File::open(&path, Access::Read)?.read(&mut value)?;
    value.truncate(len);
    Ok(value)
}

/// What a changed `params` node asks for.
pub(crate) enum Change {
    /// Nothing that we could do: it names what there is, or no file.
    None,
    /// The medium is taken out.
    Eject,
    /// Another one is put in.
    Insert(FileMedium),
}

/// Looks at the medium that the backend directory of `disk` names while one is in use, the file
/// `now` if it is one. May sleep.
///
/// # Errors
///
/// A message for the administrator.
pub(crate) fn change(
    context: &Arc<Context>,
    disk: &CStr,
    now: Option<&CStr>,
    domid: u16,
) -> core::result::Result<Change, CString> {
    let (Ok(params), Ok(mode)) = (
        xenstore::read(disk, c"params"),
        xenstore::read(disk, c"mode"),
    ) else {
        return Ok(Change::None);
    };
    if params.as_bytes().is_empty() {
        return Ok(Change::Eject);
    }
    // libxl names the format when it changes a medium.
    let path = params.as_c_str().to_bytes_with_nul();
    let path = path.strip_prefix(b"raw:").unwrap_or(path);
    let Ok(path) = CStr::from_bytes_with_nul(path) else {
        return Ok(Change::None);
    };
    if now == Some(path) {
        return Ok(Change::None);
    }
    if path_kind(path) == Ok(PathKind::Other) {
        return Err(message(fmt!(
            "{}: only a regular file can be put into the drive of a running guest",
            path
        )));
    }
    let mode = DiskMode::from_node(mode.as_bytes());
    open(context, disk, path, mode, domid).map(Change::Insert)
}

/// Opens the file for a guest, or says why it cannot have it.
fn open(
    context: &Arc<Context>,
    disk: &CStr,
    path: &CStr,
    mode: DiskMode,
    domid: u16,
) -> core::result::Result<FileMedium, CString> {
    let file = open_file(path, mode)?;
    use_file(context, disk, path, file, mode, domid)
}

fn open_file(path: &CStr, mode: DiskMode) -> core::result::Result<File, CString> {
    let (access, purpose) = if mode.writable {
        (Access::Write, "writing")
    } else {
        (Access::Read, "reading")
    };
    File::open(path, access).map_err(|err| refuse(path, err, purpose))
}

fn refuse(path: &CStr, err: Error, purpose: &str) -> CString {
    message(fmt!(
        "{}: cannot be opened for {}: {}",
        path,
        purpose,
        explain(err)
    ))
}

/// Makes an open file a guest's medium, or says why it cannot be that.
fn use_file(
    context: &Arc<Context>,
    disk: &CStr,
    path: &CStr,
    file: File,
    mode: DiskMode,
    domid: u16,
) -> core::result::Result<FileMedium, CString> {
    if !file.is_regular() {
        return Err(message(fmt!("{}: no regular file any more", path)));
    }
    if file.size() == 0 {
        return Err(message(fmt!(
            "{}: the file is empty; give it a size with truncate -s",
            path
        )));
    }
    let claim = FilesInUse::claim(context, &file, mode, domid)
        .map_err(|err| refuse(path, err, "the guest"))?
        .map_err(|other| {
            message(fmt!(
                "{}: already in use by guest {} for {}; only readers can share a file (mode 'w!' \
                 shares it all the same)",
                path,
                other.domid,
                if other.mode.writable {
                    "writing"
                } else {
                    "reading"
                },
            ))
        })?;
    CString::try_from(path)
        .map_err(Error::from)
        .and_then(|path| FileMedium::new(file, path, claim, disk))
        .map_err(|err| refuse(path, err, "the guest"))
}

/// Formats a message; an empty one in the unlikely case that there is no memory for it.
fn message(args: fmt::Arguments<'_>) -> CString {
    CString::try_from_fmt(args).unwrap_or_else(|_| empty())
}

fn empty() -> CString {
    CString::try_from_fmt(fmt!("")).unwrap_or_else(|_| empty())
}

/// What an error means for somebody who wants to use a file.
fn explain(err: Error) -> &'static str {
    match err {
        _ if err == EACCES || err == EPERM => "permission denied (see ls -l and lsattr)",
        _ if err == EROFS => "it is on a read-only file system; use mode 'r' or remount it",
        _ if err == ENOENT => "no such file",
        _ if err == EISDIR => "it is a directory",
        _ if err == ETXTBSY => "it is being executed or used for swapping",
        _ if err == EIO => "I/O error",
        _ if err == ENOMEM => "out of memory",
        _ if err == ENFILE => "too many open files",
        _ => "see the kernel log",
    }
}

/// One disk's use of a file.
struct User {
    /// See [`File::identity`].
    file: usize,
    domid: u16,
    mode: DiskMode,
    /// Path of the virtual machine, which stays the same when a guest gets another domain id.
    vm: Option<Value>,
    claim: u64,
    next: Option<KBox<User>>,
}

/// Somebody whose use of a file excludes ours.
struct Other {
    domid: u16,
    mode: DiskMode,
}

/// The files that disks are on.
#[pin_data]
pub(crate) struct FilesInUse {
    #[pin]
    users: Mutex<Users>,
}

struct Users {
    first: Option<KBox<User>>,
    next_claim: u64,
}

impl FilesInUse {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            users <- new_mutex!(Users {
                first: None,
                next_claim: 0,
            }),
        })
    }

    /// Registers a use of `file`, unless another virtual machine uses it in a way that excludes it:
    /// one writer, or any number of readers. May sleep.
    fn claim(
        context: &Arc<Context>,
        file: &File,
        mode: DiskMode,
        domid: u16,
    ) -> Result<core::result::Result<Claim, Other>> {
        let vm = vm_of(domid);
        let mut users = context.files.users.lock();
        let mut next = users.first.as_ref();
        while let Some(user) = next {
            if user.file == file.identity()
                && (user.mode.writable || mode.writable)
                && !mode.shared
                && !same_vm(&user.vm, &vm)
            {
                return Ok(Err(Other {
                    domid: user.domid,
                    mode: user.mode,
                }));
            }
            next = user.next.as_ref();
        }
        let number = users.next_claim;
        let mut user = KBox::new(
            User {
                file: file.identity(),
                domid,
                mode,
                vm,
                claim: number,
                next: None,
            },
            GFP_KERNEL,
        )?;
        user.next = users.first.take();
        users.next_claim = number.wrapping_add(1);
        users.first = Some(user);
        Ok(Ok(Claim {
            context: context.clone(),
            number,
        }))
    }
}

/// The node that says which virtual machine a domain is; in a local migration two domains have the
/// same for a moment.
fn vm_of(domid: u16) -> Option<Value> {
    let directory = CString::try_from_fmt(fmt!("/local/domain/{}", domid)).ok()?;
    xenstore::read(&directory, c"vm").ok()
}

fn same_vm(one: &Option<Value>, other: &Option<Value>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.as_bytes() == other.as_bytes(),
        _ => false,
    }
}

/// A registered use of a file; dropping it ends the use.
pub(crate) struct Claim {
    context: Arc<Context>,
    number: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut users = self.context.files.users.lock();
        let mut link = &mut users.first;
        while link.as_ref().is_some_and(|user| user.claim != self.number) {
            match link {
                Some(user) => link = &mut user.next,
                None => return,
            }
        }
        if let Some(user) = link.take() {
            *link = KBox::into_inner(user).next;
        }
    }
}
