// SPDX-License-Identifier: GPL-2.0

//! How a file comes to us from a toolstack that knows nothing of us.
//!
//! libxl hands a raw file over as `type=phy` with `params` its path and `script` the stock block
//! script, which would set up a loop device. libxl reads `script` only after the backend has
//! published InitWait, so before that we open the file ourselves and point `script` to a helper next
//! to the stock one, `block-rs`. The helper reports `hotplug-status=connected`, or fails with the
//! message that we left in `hotplug-error`, which xl prints.
//!
//! The helper also sees to what only the toolstack's process can know. It compares the file that we
//! have opened (node `opened-file`) with the one that it sees, which in a mount namespace of its own
//! may be another. A relative path we do not open: the helper makes it an absolute one, or leaves what
//! is no file to the stock script.
//!
//! Where the helper is not installed, or the administrator wants the script node left alone (module
//! parameter `keep_script`), the stock script makes its loop device. That is then a mere handle: the
//! I/O is done on the file behind it ([`loops`]).
//!
//! What the stock script checks besides is checked here: that the file is not write-protected, and, by
//! inode, that no two guests write to it ([`claims`](crate::medium::claims)); also that nobody in this domain does, which the
//! stock script looks for only where a loop device is mounted.

#![forbid(unsafe_code)]

mod loops;
mod refusal;

use blkif::node::{
    DiskMode,
    Params,
    Script, //
};
use kernel::{
    fmt::{
        self,
        Display, //
    },
    prelude::*,
    str::CString,
    sync::Arc,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};
use xen_bindings::{
    module::{
        log::Speaker,
        params, //
    },
    storage::path::Path,
    xen::{
        xenbus::Binding,
        xenstore::{
            self,
            Transaction,
            Value, //
        }, //
    }, //
};

use crate::{
    medium::{
        access,
        claims::{
            Backing,
            Claim,
            FilesInUse,
            Unclaimed,
            Use, //
        },
        FileMedium,
        Medium, //
    }, //
};
use loops::LoopDevice;
pub(crate) use refusal::Refusal;
use refusal::{
    Purpose,
    Why, //
};

/// What the name of libxl's own script gets to become that of our helper, in the same directory.
const HELPER_SUFFIX: &str = "-rs";

/// How often, and with what pauses, it is looked again whether a file that is in use is so still. The guest or the loop
/// device that it was for may be going away: a script unmounts an image, and starts its guest at once.
const LOOKS: u32 = 20;
const PAUSE: Delta = Delta::from_millis(100);

/// What becomes of the disk of a backend directory.
pub(crate) enum Handover {
    /// Not ours to open: the toolstack's script writes `physical-device`.
    Script,
    /// A file, open, or an empty drive. The helper has to report that the toolstack is ready.
    Medium(Medium),
    /// A file that cannot be used. The helper has to report the message left for it.
    Refused,
}

/// A disk that a file is looked for.
struct Disk<'a> {
    files: &'a Arc<FilesInUse>,
    binding: &'a Binding,
    speaker: &'a Arc<Speaker>,
    mode: DiskMode,
    /// Its medium can be changed, and may be missing.
    drive: bool,
    /// The toolstack has handed it over to a driver before us: what is asked of a new disk has been asked.
    again: bool,
}

/// Takes the file over if the backend directory of the disk names one. May sleep.
///
/// # Errors
///
/// What xenstore answers with.
pub(crate) fn take(
    files: &Arc<FilesInUse>,
    binding: &Binding,
    speaker: &Arc<Speaker>,
) -> Result<Handover> {
    let disk = binding.device().nodename();
    let (Some(kind), Some(script), Some(params), Some(mode)) = (
        xenstore::read_optional(disk, c"type")?,
        xenstore::read_optional(disk, c"script")?,
        xenstore::read_optional(disk, c"params")?,
        xenstore::read_optional(disk, c"mode")?,
    ) else {
        return Ok(Handover::Script);
    };
    // A disk that we have seen before has our helper already.
    let has_helper = match Script::from_node(script.as_bytes(), HELPER_SUFFIX.as_bytes()) {
        Script::Stock => false,
        Script::Helper => true,
        Script::Other => return Ok(Handover::Script),
    };
    if kind.as_bytes() != b"phy"
        // A script has made a device of the file, and will want to undo that.
        || xenstore::read_optional(disk, c"physical-device")?.is_some()
    {
        return Ok(Handover::Script);
    }
    let again = has_helper && matches!(report(disk)?, Some(Report::Ready));
    let asked = Disk {
        files,
        binding,
        speaker,
        mode: DiskMode::from_node(mode.as_bytes()),
        drive: is_drive(disk)?,
        again,
    };
    let found = match Params::from_node(params.as_c_str()) {
        Params::Absolute(path) => match Path::lookup(path) {
            Ok(found) if found.is_regular() => Some((path, found)),
            Ok(_) if has_helper => {
                return asked.refused(&Why::NotRegular.of(path), None);
            }
            Err(err) if has_helper => {
                return asked.refused(&Why::Unopened(asked.purpose(), err).of(path), None);
            }
            _ => return Ok(Handover::Script),
        },
        Params::Nothing if again && asked.drive => {
            return Ok(Handover::Medium(Medium::Empty(asked.mode)));
        }
        Params::Relative => None,
        Params::Nothing => return Ok(Handover::Script),
    };
    if !has_helper {
        if params::keep_script() {
            return Ok(Handover::Script);
        }
        let helper = CString::try_from_fmt(fmt!("{}{}", script.as_c_str(), HELPER_SUFFIX))?;
        if !Path::lookup(&helper).is_ok_and(|helper| helper.is_regular()) {
            speaker.warn(fmt!(
                "{} is not installed, file {} gets a loop device; install it with the module",
                &*helper,
                params.as_c_str(),
            ));
            return Ok(Handover::Script);
        }
        asked
            .binding
            .publish(|xbt| xbt.write(disk, c"script", fmt!("{}", &*helper)))?;
    }
    let Some((path, found)) = found else {
        // The helper will say what it is.
        return Ok(Handover::Script);
    };
    let numbers = found.numbers().ok();
    match asked.open(path, found, None) {
        Ok(medium) => {
            if let Some(numbers) = numbers {
                asked
                    .binding
                    .publish(|xbt| opened_file(xbt, disk, numbers))?;
            }
            Ok(Handover::Medium(medium))
        }
        Err(refusal) => asked.refused(&refusal, numbers),
    }
}

/// Says which file it is that we have opened, or that has been refused, as `stat(2)` has it.
fn opened_file(xbt: &Transaction, disk: &CStr, (major, minor, inode): (u32, u32, u64)) -> Result {
    xbt.write(disk, c"opened-file", fmt!("{major}:{minor} {inode}"))
}

/// What the helper, or a script, says.
pub(crate) enum Report {
    /// The toolstack has come to it.
    Ready,
    /// There will be no disk.
    Failed,
}

/// What the helper, or a script, has said, if it has.
///
/// # Errors
///
/// What xenstore answers with.
pub(crate) fn report(disk: &CStr) -> Result<Option<Report>> {
    let status = xenstore::read_optional(disk, c"hotplug-status")?;
    Ok(match status.as_ref().map(Value::as_bytes) {
        Some(b"connected") => Some(Report::Ready),
        Some(b"error") => Some(Report::Failed),
        _ => None,
    })
}

/// Does the toolstack say that the medium can be changed?
///
/// # Errors
///
/// What xenstore answers with.
pub(crate) fn is_drive(disk: &CStr) -> Result<bool> {
    let is = |node, value: &[u8]| {
        let found = xenstore::read_optional(disk, node)?;
        Ok::<_, Error>(found.is_some_and(|found| found.as_bytes() == value))
    };
    Ok(is(c"device-type", b"cdrom")? || is(c"removable", b"1")?)
}

/// What a script has named as the medium of a disk, besides the block device.
pub(crate) enum Behind {
    /// Nothing: it is the device.
    Nothing,
    /// The device is a loop device that is used as such. The claim of the file behind it goes with it.
    Device(Backing),
    /// The device is a loop device that the script has made of the file that it was to give to the guest.
    Medium(Medium),
}

/// Why a medium that the toolstack has named cannot be used.
pub(crate) enum Unusable {
    /// The file is not one for a guest, or not now.
    Refused(Refusal),
    /// The backend directory cannot be read.
    Unread(Error),
}

impl From<Refusal> for Unusable {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Error> for Unusable {
    fn from(err: Error) -> Self {
        Self::Unread(err)
    }
}

impl Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Unread(err) => f.write_fmt(fmt!("reading the backend directory: {:?}", *err)),
        }
    }
}

/// What is behind the block device with these numbers, which a script has named as the medium of a disk. May sleep.
///
/// # Errors
///
/// Why it cannot be used.
pub(crate) fn behind(
    files: &Arc<FilesInUse>,
    binding: &Binding,
    speaker: &Arc<Speaker>,
    (major, minor): (u32, u32),
    mode: DiskMode,
) -> Result<Behind, Unusable> {
    let disk = binding.device().nodename();
    let Some(device) = LoopDevice::find(major, minor) else {
        return Ok(Behind::Nothing);
    };
    let (Some(name), Some(path)) = (device.name(), device.path()) else {
        speaker.warn(fmt!(
            "which file is behind loop device {}:{} cannot be told, nor whether others have it",
            major,
            minor,
        ));
        return Ok(Behind::Nothing);
    };
    let asked = Disk {
        files,
        binding,
        speaker,
        mode,
        drive: is_drive(disk)?,
        again: false,
    };
    if device.whole && made_by_script(disk) {
        return Ok(Behind::Medium(asked.open(&name, path, Some(&device))?));
    }
    let part = if device.whole {
        0..u64::MAX
    } else {
        device.part.clone()
    };
    let how = asked.use_of(part, false, Some(&device));
    let claim = asked.claim(&name, &path, how)?;
    if device.whole {
        asked.see_to_others(&name, &path, &claim)?;
    }
    Ok(Behind::Device(Backing::new(claim, path)))
}

/// Was it a file that the toolstack has asked for? The stock script says so in a node.
fn made_by_script(disk: &CStr) -> bool {
    if matches!(xenstore::read_optional(disk, c"node"), Ok(Some(_))) {
        return true;
    }
    // An administrator may have done it by hand.
    let Ok(params) = xenstore::read(disk, c"params") else {
        return false;
    };
    match Params::from_node(params.as_c_str()) {
        Params::Absolute(path) => Path::lookup(path).is_ok_and(|path| path.is_regular()),
        Params::Nothing | Params::Relative => false,
    }
}

/// Looks at the medium that the backend directory of a disk names while `now` is in its drive. `None` if it is that, or
/// nothing that could be put in. May sleep.
///
/// # Errors
///
/// Why it cannot be used.
pub(crate) fn change(
    files: &Arc<FilesInUse>,
    binding: &Binding,
    speaker: &Arc<Speaker>,
    now: &Medium,
) -> Result<Option<Medium>, Unusable> {
    let disk = binding.device().nodename();
    let (Some(params), Some(mode)) = (
        xenstore::read_optional(disk, c"params")?,
        xenstore::read_optional(disk, c"mode")?,
    ) else {
        return Ok(None);
    };
    let asked = Disk {
        files,
        binding,
        speaker,
        mode: DiskMode::from_node(mode.as_bytes()),
        drive: true,
        again: false,
    };
    let medium = match Params::from_node(params.as_c_str()) {
        Params::Nothing => Medium::Empty(asked.mode),
        Params::Relative => {
            return Err(Why::Relative.of(params.as_c_str()).into());
        }
        Params::Absolute(path) => {
            let found =
                Path::lookup(path).map_err(|err| Why::Unopened(asked.purpose(), err).of(path))?;
            // A new file under the name of the old one is another medium, a new name of the old one is not.
            if now.identity() == Some(found.identity()) {
                return Ok(None);
            }
            if !found.is_regular() {
                return Err(Why::NotForDrive.of(path).into());
            }
            asked.open(path, found, None)?
        }
    };
    if matches!((now, &medium), (Medium::Empty(_), Medium::Empty(_))) {
        return Ok(None);
    }
    Ok(Some(medium))
}

impl Disk<'_> {
    /// Its backend directory.
    fn name(&self) -> &CStr {
        self.binding.device().nodename()
    }

    fn purpose(&self) -> Purpose {
        if self.mode.writable {
            Purpose::Writing
        } else {
            Purpose::Reading
        }
    }

    /// Leaves a message for the helper, and which file it is about. A drive that a guest has already goes on without a
    /// medium.
    fn refused(&self, refusal: &Refusal, numbers: Option<(u32, u32, u64)>) -> Result<Handover> {
        self.speaker.warn(fmt!("{}", *refusal));
        if self.again && self.drive {
            return Ok(Handover::Medium(Medium::Empty(self.mode)));
        }
        self.binding.publish(|xbt| {
            xbt.write(self.name(), c"hotplug-error", fmt!("{}", *refusal))?;
            numbers.map_or(Ok(()), |numbers| opened_file(xbt, self.name(), numbers))
        })?;
        Ok(Handover::Refused)
    }

    /// Makes a file the medium, which may have a loop device that belongs to the disk, or says why it cannot be that.
    fn open(
        &self,
        path: &CStr,
        file: Path,
        device: Option<&LoopDevice>,
    ) -> Result<Medium, Refusal> {
        if file.size() == 0 {
            if self.drive {
                // What libxl puts into a drive that is to be empty.
                return Ok(Medium::Empty(self.mode));
            }
            return Err(Why::Empty.of(path));
        }
        if self.mode.writable && !self.mode.shared && !self.again && file.is_write_protected() {
            return Err(Why::WriteProtected.of(path));
        }
        self.open_file(path, file, device).map(Medium::File)
    }

    /// Opens a file that nobody else has in a way that excludes the guest.
    fn open_file(
        &self,
        path: &CStr,
        file: Path,
        device: Option<&LoopDevice>,
    ) -> Result<FileMedium, Refusal> {
        let claim = self.claim(path, &file, self.use_of(0..u64::MAX, true, device))?;
        let open = file
            .open(access(self.mode))
            .map_err(|err| Why::Unopened(self.purpose(), err).of(path))?;
        self.see_to_others(path, &file, &claim)?;
        CString::try_from(path)
            .map_err(Error::from)
            .and_then(|path| {
                FileMedium::new(
                    open,
                    file.identity(),
                    path,
                    self.mode,
                    claim,
                    self.speaker.clone(),
                )
            })
            .map_err(|err| Why::Unopened(Purpose::Guest, err).of(path))
    }

    fn use_of(&self, part: core::ops::Range<u64>, opens: bool, device: Option<&LoopDevice>) -> Use {
        Use {
            domid: self.binding.device().otherend_id(),
            mode: self.mode,
            part,
            opens,
            device: device.map(|it| (it.numbers, it.writable)),
        }
    }

    /// Claims a file for the disk. Waits a moment for who has it still.
    fn claim(&self, path: &CStr, file: &Path, how: Use) -> Result<Claim, Refusal> {
        let mut looks = 0;
        loop {
            match self.files.claim(file, how.clone()) {
                Ok(claim) => return Ok(claim),
                Err(Unclaimed::InUse { .. }) if looks < LOOKS && !self.binding.is_over() => {
                    fsleep(PAUSE);
                }
                Err(Unclaimed::InUse { domid, mode }) => {
                    let writes = mode.writable;
                    return Err(Why::Guest { domid, writes }.of(path));
                }
                Err(Unclaimed::Failed(err)) => {
                    return Err(Why::Unopened(Purpose::Guest, err).of(path))
                }
            }
            looks = looks.wrapping_add(1);
        }
    }

    /// Refuses a file that the disk has claimed if somebody in this domain has it in a way that excludes the guest.
    /// Waits a moment for them to let go.
    fn see_to_others(&self, path: &CStr, file: &Path, claim: &Claim) -> Result<(), Refusal> {
        if self.mode.shared {
            return Ok(());
        }
        if file.is_swap() {
            return Err(Why::Swap.of(path));
        }
        if self.again {
            return Ok(());
        }
        let mut looks = 0;
        while let Some(other) = self.other(file, claim) {
            if looks == LOOKS || self.binding.is_over() {
                return Err(other.of(path));
            }
            fsleep(PAUSE);
            looks = looks.wrapping_add(1);
        }
        Ok(())
    }

    /// Who in this domain has a file that the disk has claimed, besides our disks. A guest that writes excludes loop
    /// devices and whoever writes, one that reads only a loop device that writes: a program may be finishing an image.
    fn other(&self, file: &Path, claim: &Claim) -> Option<Why> {
        if claim.is_shared_by_vm(file) {
            return None;
        }
        let writer = claim.has_foreign_writer(file);
        if !writer && !self.mode.writable {
            return None;
        }
        LoopDevice::of(file, |numbers| !claim.knows_loop(file, numbers))
            .map(|device| Why::Loop(device.numbers))
            .or(
                (writer && (self.mode.writable || file.may_be_behind_loop()))
                    .then_some(Why::Writer),
            )
    }
}
