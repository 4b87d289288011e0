// SPDX-License-Identifier: GPL-2.0

//! Where a disk's data are: a block device or a file, and which way its I/O takes.
//!
//! A block device gets bios. A file gets asynchronous direct I/O that is asked not to wait; what
//! would have to wait, and what direct I/O cannot do, goes to the workqueue for blocking requests, so
//! that it does not hold up the ring. Requests that follow one another in a file become one I/O there:
//! a guest cuts what is large into pieces, and file systems do something for each.

#![forbid(unsafe_code)]

use core::ops::Deref;

pub(crate) use blkif::node::DiskMode;
use blkif::{
    abi::SECTOR_SIZE,
    Discard, //
};
use kernel::{
    fmt,
    new_mutex,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};
use xen_bindings::{
    bdev::{
        self,
        BlockDevice, //
    },
    file::{
        DirectIo,
        File,
        Mode, //
    },
    io::{
        DiscardLimits,
        Joined,
        Mapped,
        Retry, //
    },
    mem,
    work::OwnedQueue, //
};

use crate::task::{
    Action,
    HasTask,
    Task,
    Way, //
};

pub(crate) mod claims;

use claims::{
    Backing,
    Claim, //
};

/// Pause between looks whether direct I/O has ended.
const SETTLE_PAUSE: Delta = Delta::from_millis(1);

/// What holds the data of a disk. With it goes the mode in which it was opened, and no other.
pub(crate) enum Medium {
    /// A block device.
    Block(DeviceMedium),
    /// A file.
    File(FileMedium),
    /// Nothing: the drive of a disk that has been taken out.
    Empty(DiskMode),
}

/// A block device.
pub(crate) struct DeviceMedium {
    device: BlockDevice,
    mode: DiskMode,
    /// The file behind it, if it is a loop device.
    _backing: Option<Backing>,
}

impl Deref for DeviceMedium {
    type Target = BlockDevice;

    fn deref(&self) -> &BlockDevice {
        &self.device
    }
}

/// A file with the ways to access it.
pub(crate) struct FileMedium {
    /// Closed before the claim is given up.
    file: File,
    /// See [`Path::identity`].
    ///
    /// [`Path::identity`]: xen_bindings::path::Path::identity
    identity: usize,
    mode: DiskMode,
    path: CString,
    /// Whose it is, for log lines.
    disk: CString,
    direct: DirectIo,
    nowait: bool,
    /// Not all that a guest may ask for can be done directly.
    coarse: bool,
    /// Of a coarse one: all goes through the page cache, and how many direct I/Os are in flight.
    all_buffered: Atomic<bool>,
    in_flight: Atomic<u32>,
    /// The last of these has ended.
    settled: Atomic<bool>,
    settling: Pin<KBox<Mutex<()>>>,
    /// Buffered I/O has been mentioned in the log.
    noted: Atomic<bool>,
    _claim: Claim,
}

impl Medium {
    /// Opens the block device with these numbers. May sleep.
    pub(crate) fn open_device(
        (major, minor): (u32, u32),
        mode: DiskMode,
        backing: Option<Backing>,
    ) -> Result<Self> {
        let access = match (mode.writable, mode.shared) {
            (false, _) => bdev::Access::Read,
            (true, false) => bdev::Access::Write,
            (true, true) => bdev::Access::WriteShared,
        };
        let device = BlockDevice::open(major, minor, access)?;
        device.drop_page_cache()?;
        Ok(Self::Block(DeviceMedium {
            device,
            mode,
            _backing: backing,
        }))
    }

    /// How it was opened: what the guest may do with it.
    pub(crate) fn mode(&self) -> DiskMode {
        match self {
            Self::Block(medium) => medium.mode,
            Self::File(medium) => medium.mode,
            Self::Empty(mode) => *mode,
        }
    }

    /// The device that it is.
    pub(crate) fn device(&self) -> Option<&BlockDevice> {
        match self {
            Self::Block(medium) => Some(&medium.device),
            Self::File(_) | Self::Empty(_) => None,
        }
    }

    /// The file that it is.
    pub(crate) fn file(&self) -> Option<&File> {
        match self {
            Self::File(medium) => Some(&medium.file),
            Self::Block(_) | Self::Empty(_) => None,
        }
    }

    /// Major and minor number; both 0 for a file, which has none.
    pub(crate) fn numbers(&self) -> (u32, u32) {
        match self {
            Self::Block(device) => device.numbers(),
            Self::File(_) | Self::Empty(_) => (0, 0),
        }
    }

    /// Size in sectors of 512 bytes, as of now.
    pub(crate) fn sectors(&self) -> u64 {
        match self {
            Self::Block(device) => device.sectors(),
            // What is left behind the last whole sector cannot be reached by a guest.
            Self::File(medium) => medium.file.size() / u64::from(SECTOR_SIZE),
            Self::Empty(_) => 0,
        }
    }

    /// Smallest unit of I/O that the guest may use, in bytes.
    pub(crate) fn logical_block_size(&self) -> u32 {
        match self {
            Self::Block(device) => device.logical_block_size(),
            Self::File(_) | Self::Empty(_) => SECTOR_SIZE,
        }
    }

    /// Smallest unit of I/O that is done at full speed, in bytes.
    pub(crate) fn physical_block_size(&self) -> u32 {
        match self {
            Self::Block(device) => device.physical_block_size(),
            Self::File(medium) => match medium.direct {
                DirectIo::Aligned { offset, .. } => offset.max(SECTOR_SIZE),
                DirectIo::Unsupported | DirectIo::InMemory => SECTOR_SIZE,
            },
            Self::Empty(_) => SECTOR_SIZE,
        }
    }

    /// Is there anything to flush?
    pub(crate) fn has_write_cache(&self) -> bool {
        match self {
            Self::Block(device) => device.has_write_cache(),
            Self::File(_) | Self::Empty(_) => true,
        }
    }

    pub(crate) fn is_cdrom(&self) -> bool {
        match self {
            Self::Block(device) => device.is_cdrom(),
            Self::File(_) | Self::Empty(_) => false,
        }
    }

    pub(crate) fn is_removable(&self) -> bool {
        match self {
            Self::Block(device) => device.is_removable(),
            Self::File(_) | Self::Empty(_) => false,
        }
    }

    /// How parts of it can be given up, if they can.
    pub(crate) fn discard(&self) -> Option<DiscardLimits> {
        match self {
            Self::Block(device) => device.discard_limits(),
            Self::File(medium) => medium.file.discard_limits(),
            Self::Empty(_) => None,
        }
    }

    /// Submits a request from a ring's worker: what would wait for storage goes to `blocking`. Task
    /// context.
    ///
    /// If others come next the request may be left in `waiting` instead, for them to be joined to it;
    /// [`Medium::finish`] submits what is left in the end.
    pub(crate) fn submit<T: HasTask>(
        &self,
        mut io: Mapped<T>,
        waiting: Option<&mut Option<Joined<T>>>,
        blocking: &OwnedQueue,
    ) {
        let &Task { action, sector, .. } = io.data().task();
        match self {
            Self::Block(device) => match action {
                Action::Read | Action::Write => device.submit(io, sector),
                Action::Flush => device.flush(io, sector),
                Action::Barrier => device.barrier(io, sector),
                Action::Discard(_) => io.defer(blocking),
            },
            Self::File(medium) => {
                io.data_mut().task_mut().way = medium.way(&io);
                let wait = match (action, io.data().task().way) {
                    (Action::Flush | Action::Barrier | Action::Discard(_), _) => true,
                    (_, Way::Buffered) => {
                        medium.note_buffered();
                        true
                    }
                    (Action::Read | Action::Write, Way::Direct) => !medium.nowait,
                };
                match waiting {
                    _ if wait => io.defer(blocking),
                    None => medium.transfer(io.into(), true),
                    Some(waiting) => medium.gather(io, waiting),
                }
            }
            Self::Empty(_) => io.done(Err(EIO)),
        }
    }

    /// Submits what [`Medium::submit`] has left waiting. Task context.
    pub(crate) fn finish<T: HasTask>(&self, waiting: Option<Joined<T>>) {
        if let (Self::File(medium), Some(io)) = (self, waiting) {
            medium.transfer(io, true);
        }
    }

    /// Does what has been deferred. Task context, may sleep.
    pub(crate) fn run<T: HasTask>(&self, io: Joined<T>) {
        mem::with_noio(|| match self {
            Self::File(medium) if io.is_joined() => medium.transfer(io, false),
            _ => io.part(|io| self.run_one(io)),
        });
    }

    /// As [`Medium::run`], in a scope in which allocating does no I/O.
    fn run_one<T: HasTask>(&self, mut io: Mapped<T>) {
        match (self, io.data().task().action) {
            (Self::Block(device), Action::Discard(discard)) => {
                let done = device.discard(discard.sector(), discard.sectors(), discard.secure());
                io.done(done);
            }
            // Bios are never deferred.
            (Self::Block(_) | Self::Empty(_), _) => io.done(Err(EIO)),
            (Self::File(medium), Action::Discard(discard)) => {
                let done = medium.discard(&discard);
                io.done(done);
            }
            (Self::File(medium), action) => {
                if matches!(action, Action::Flush | Action::Barrier) && !io.data().task().flushed {
                    let synced = medium.file.sync();
                    if synced.is_err() || io.bytes() == 0 {
                        return io.done(synced);
                    }
                    io.data_mut().task_mut().flushed = true;
                    io.data_mut().task_mut().way = medium.way(&io);
                }
                medium.transfer(io.into(), false);
            }
        }
    }

    /// What it is, and how its data are accessed.
    pub(crate) fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(device) => {
                let (major, minor) = device.numbers();
                writeln!(f, "medium: block device {major:x}:{minor:x}\nI/O: bios")
            }
            Self::File(medium) => {
                f.write_fmt(fmt!(
                    "medium: file {} on {}\nI/O: ",
                    &*medium.path,
                    medium.file.fs_name()
                ))?;
                match medium.direct {
                    DirectIo::Aligned { memory, offset } => writeln!(
                        f,
                        "direct, aligned to {} bytes in memory, {} in the file{}{}",
                        memory,
                        offset,
                        if medium.nowait {
                            ""
                        } else {
                            ", submitted by a workqueue"
                        },
                        if medium.all_buffered.load(Relaxed) {
                            "; all buffered, since the guest writes less than that"
                        } else if medium.noted.load(Relaxed) {
                            "; buffered where the guest's requests are not"
                        } else {
                            ""
                        },
                    ),
                    DirectIo::Unsupported => {
                        f.write_str("buffered, the file system does no direct I/O on the file\n")
                    }
                    DirectIo::InMemory => f.write_str("buffered, the file system is in memory\n"),
                }
            }
            Self::Empty(_) => f.write_str("medium: none\n"),
        }
    }

    /// Identity of the file that it is ([`Path::identity`]).
    ///
    /// [`Path::identity`]: xen_bindings::path::Path::identity
    pub(crate) fn identity(&self) -> Option<usize> {
        match self {
            Self::File(medium) => Some(medium.identity),
            Self::Block(_) | Self::Empty(_) => None,
        }
    }

    /// Path of the file that it is.
    pub(crate) fn path(&self) -> Option<&CStr> {
        match self {
            Self::File(medium) => Some(&medium.path),
            Self::Block(_) | Self::Empty(_) => None,
        }
    }

    /// I/O has ended, for now at least, that was submitted. Any context.
    pub(crate) fn ended(&self, task: &mut Task) {
        if core::mem::take(&mut task.counted) {
            if let Self::File(medium) = self {
                medium.in_flight.fetch_sub(1, Full);
            }
        }
    }

    /// Has what could not be done as it was submitted done by the queue for blocking requests. Any context.
    pub(crate) fn retry<T: HasTask>(&self, mut io: Joined<T>, why: Retry, blocking: &OwnedQueue) {
        self.ended(io.data_mut().task_mut());
        if why == Retry::NotDirect {
            io.data_mut().task_mut().way = Way::Buffered;
            if let Self::File(medium) = self {
                medium.note_buffered();
            }
        }
        io.defer(blocking);
    }
}

impl FileMedium {
    /// A medium of a file that has been opened in the way of `mode`. Says in the log how it will be accessed. May
    /// sleep.
    pub(crate) fn new(
        file: File,
        identity: usize,
        path: CString,
        mode: DiskMode,
        claim: Claim,
        disk: &CStr,
    ) -> Result<Self> {
        let direct = file.direct_io()?;
        let nowait = file.can_nowait();
        match direct {
            DirectIo::Aligned { memory, offset } => {
                pr_info!(
                "{}: file {} on {}: direct I/O, aligned to {} bytes in memory, {} in the file{}\n",
                disk,
                &*path,
                file.fs_name(),
                memory,
                offset,
                if nowait { "" } else { ", submitted by a workqueue" },
            )
            }
            DirectIo::Unsupported => pr_warn!(
                "{}: file {} on {}: the file system does no direct I/O on it, using buffered I/O\n",
                disk,
                &*path,
                file.fs_name(),
            ),
            DirectIo::InMemory => pr_info!(
                "{}: file {} on {}: buffered I/O, the file system is in memory\n",
                disk,
                &*path,
                file.fs_name(),
            ),
        }
        let coarse = match direct {
            DirectIo::Aligned { memory, offset } => memory.max(offset) > SECTOR_SIZE,
            DirectIo::Unsupported | DirectIo::InMemory => false,
        };
        if file.size() % u64::from(SECTOR_SIZE) != 0 {
            pr_warn!(
                "{}: file {}: its last {} bytes are no whole sector and cannot be accessed\n",
                disk,
                &*path,
                file.size() % u64::from(SECTOR_SIZE),
            );
        }
        Ok(Self {
            file,
            identity,
            mode,
            path,
            disk: CString::try_from(disk)?,
            direct,
            nowait,
            coarse,
            all_buffered: Atomic::new(false),
            in_flight: Atomic::new(0),
            settled: Atomic::new(false),
            settling: KBox::pin_init(new_mutex!(()), GFP_KERNEL)?,
            noted: Atomic::new(false),
            _claim: claim,
        })
    }

    /// Which way a request can go.
    fn way<T: HasTask>(&self, io: &Mapped<T>) -> Way {
        let DirectIo::Aligned { memory, offset } = self.direct else {
            return Way::Buffered;
        };
        let mask = u64::from(offset).wrapping_sub(1);
        if self.all_buffered.load(Relaxed) {
            Way::Buffered
        } else if (Self::position(io.data().task()) | u64::from(io.bytes())) & mask == 0
            && io.memory_aligned(memory)
        {
            Way::Direct
        } else {
            Way::Buffered
        }
    }

    /// Where in the file a request's data are, in bytes.
    fn position(task: &Task) -> u64 {
        // A sector of the disk, which is not larger than the file was: this cannot wrap around.
        task.sector.wrapping_mul(u64::from(SECTOR_SIZE))
    }

    /// Where in the file the data of all of them end.
    fn end<T: HasTask>(io: &Joined<T>) -> u64 {
        Self::position(io.data().task()).saturating_add(u64::from(io.bytes()))
    }

    /// Joins a request to the one that waits, or submits that and lets this one wait. Both are to be read
    /// or written directly, without waiting for the storage. Task context.
    fn gather<T: HasTask>(&self, mut io: Mapped<T>, waiting: &mut Option<Joined<T>>) {
        if let Some(mut first) = waiting.take() {
            if Self::end(&first) == Self::position(io.data().task()) {
                match first.join(io) {
                    Ok(()) => {
                        *waiting = Some(first);
                        return;
                    }
                    Err(back) => io = back,
                }
            }
            self.transfer(first, true);
        }
        *waiting = Some(io.into());
    }

    /// Before direct I/O on a coarse file: whether it may be done. If so it is counted until it has ended.
    fn begin_direct_io(&self) -> bool {
        // Fully ordered against the load, as is the store in `settle` against its look at the count.
        self.in_flight.fetch_add(1, Full);
        let permitted = !self.all_buffered.load(Relaxed);
        if !permitted {
            self.in_flight.fetch_sub(1, Full);
        }
        permitted
    }

    /// Before the first buffered write to a coarse file: has all that comes go through the page cache, and waits
    /// for what does not. The cache has pieces of memory (folios) that are larger than what is written:
    /// after a direct write beside a buffered one it could not forget what it has of the place, would go on showing that,
    /// and give the guest's next flush an error. May sleep.
    fn settle(&self) {
        if self.settled.load(Acquire) {
            return;
        }
        let _one = self.settling.lock();
        if self.settled.load(Acquire) {
            return;
        }
        self.all_buffered.xchg(true, Full);
        while self.in_flight.load(Acquire) != 0 {
            fsleep(SETTLE_PAUSE);
        }
        // What there is in the cache was read by others, before what has been written directly.
        if let Err(err) = self.file.drop_page_cache() {
            pr_warn!(
                "{}: file {}: emptying the page cache: {:?}\n",
                &*self.disk,
                &*self.path,
                err
            );
        }
        pr_info!(
            "{}: file {}: using buffered I/O only, since the guest writes less than direct I/O can\n",
            &*self.disk,
            &*self.path,
        );
        self.settled.store(true, Release);
    }

    /// Reads or writes. Task context; may sleep unless `nowait`.
    fn transfer<T: HasTask>(&self, mut io: Joined<T>, nowait: bool) {
        // A file that has been truncated must not grow again by what a guest writes.
        if Self::end(&io) > self.file.size() {
            if io.is_joined() {
                // Some of them may lie before its end.
                return io.part(|io| self.transfer(io.into(), nowait));
            }
            return io.part(|io| io.done(Err(EIO)));
        }
        if self.coarse {
            if io.data().task().way == Way::Direct {
                if self.begin_direct_io() {
                    io.data_mut().task_mut().counted = true;
                } else if nowait {
                    return T::retry(io, Retry::NotDirect);
                } else {
                    io.data_mut().task_mut().way = Way::Buffered;
                }
            }
            if io.data().task().way == Way::Buffered && io.data().task().action != Action::Read {
                self.settle();
            }
        }
        let mode = Mode {
            direct: io.data().task().way == Way::Direct,
            nowait,
            durable: io.data().task().action == Action::Barrier,
        };
        let position = Self::position(io.data().task());
        self.file.submit(io, position, mode);
    }

    /// Punches a hole. May sleep.
    fn discard(&self, discard: &Discard) -> Result {
        if discard.sectors() == 0 {
            return Ok(());
        }
        // Sectors of the disk, which is not larger than the file was: this cannot wrap around.
        let position = discard.sector().wrapping_mul(u64::from(SECTOR_SIZE));
        let len = discard.sectors().wrapping_mul(u64::from(SECTOR_SIZE));
        if position.saturating_add(len) > self.file.size() {
            return Err(EIO);
        }
        self.file.punch_hole(position, len)
    }

    fn note_buffered(&self) {
        if matches!(self.direct, DirectIo::Aligned { .. })
            && !self.noted.load(Relaxed)
            && !self.noted.xchg(true, Relaxed)
        {
            pr_info!(
                "{}: file {}: using buffered I/O for requests that direct I/O cannot do\n",
                &*self.disk,
                &*self.path,
            );
        }
    }
}
