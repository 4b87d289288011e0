// SPDX-License-Identifier: GPL-2.0

//! A file as a medium.
//!
//! It gets asynchronous direct I/O that is asked not to wait; what would have to wait, and what direct I/O cannot do,
//! goes to the workqueue for blocking requests, so that it does not hold up the ring. Requests that follow one another
//! in the file become one I/O there: a guest cuts what is large into pieces, and file systems do something for each.
//!
//! Owns the file, and the claim of it. Nothing is locked inside of [`FileMedium::settling`].

#![forbid(unsafe_code)]

use blkif::{
    abi::SECTOR_SIZE,
    node::DiskMode,
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
        Arc,
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};
use xen_bindings::{
    module::log::Speaker,
    request::{
        Joined,
        Mapped,
        Mode,
        Retry, //
    },
    storage::file::{
        DirectIo,
        File, //
    },
    work::OwnedQueue, //
};

use super::{
    claims::Claim,
    Properties, //
};
use crate::task::{
    Action,
    HasTask,
    Task,
    Way, //
};

/// Pause between looks whether direct I/O has ended.
const SETTLE_PAUSE: Delta = Delta::from_millis(1);

/// How the disk's sectors lie in the file.
enum Layout {
    /// One after the other, from the file's first byte to its last whole sector.
    Raw,
}

impl Layout {
    /// Number of sectors in a file of `bytes` bytes.
    fn sectors(&self, bytes: u64) -> u64 {
        match self {
            // What is left behind the last whole sector cannot be reached by a guest.
            Self::Raw => bytes / u64::from(SECTOR_SIZE),
        }
    }

    /// Where in the file a run of sectors is, in bytes: what follows its first one on the disk follows it there.
    fn position(&self, sector: u64) -> u64 {
        match self {
            // A sector of the disk, which is not larger than the file was: this cannot wrap around.
            Self::Raw => sector.wrapping_mul(u64::from(SECTOR_SIZE)),
        }
    }
}

/// A file with the ways to access it.
pub(crate) struct FileMedium {
    /// Closed before the claim is given up.
    file: File,
    layout: Layout,
    /// See [`Path::identity`].
    ///
    /// [`Path::identity`]: xen_bindings::storage::path::Path::identity
    identity: usize,
    mode: DiskMode,
    path: CString,
    speaker: Arc<Speaker>,
    direct: DirectIo,
    /// The file system can be asked not to wait.
    nowait: bool,
    /// Not all that a guest may ask for can be done directly.
    coarse: bool,
    /// Of a coarse one: all goes through the page cache.
    all_buffered: Atomic<bool>,
    /// Of a coarse one: direct I/Os in flight.
    in_flight: Atomic<u32>,
    /// Of a coarse one: the last direct I/O has ended.
    settled: Atomic<bool>,
    /// Held by whoever waits for that.
    settling: Pin<KBox<Mutex<()>>>,
    /// Buffered I/O has been mentioned in the log.
    noted: Atomic<bool>,
    _claim: Claim,
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
        speaker: Arc<Speaker>,
    ) -> Result<Self> {
        let direct = file.direct_io()?;
        let nowait = file.can_nowait();
        match direct {
            DirectIo::Aligned { memory, offset } => speaker.info(fmt!(
                "file {} on {}: direct I/O, aligned to {} bytes in memory, {} in the file{}",
                &*path,
                file.fs_name(),
                memory,
                offset,
                if nowait {
                    ""
                } else {
                    ", submitted by a workqueue"
                },
            )),
            DirectIo::Unsupported => speaker.warn(fmt!(
                "file {} on {}: the file system does no direct I/O on it, using buffered I/O",
                &*path,
                file.fs_name(),
            )),
            DirectIo::InMemory => speaker.info(fmt!(
                "file {} on {}: buffered I/O, the file system is in memory",
                &*path,
                file.fs_name(),
            )),
        }
        let coarse = match direct {
            DirectIo::Aligned { memory, offset } => memory.max(offset) > SECTOR_SIZE,
            DirectIo::Unsupported | DirectIo::InMemory => false,
        };
        if file.size() % u64::from(SECTOR_SIZE) != 0 {
            speaker.warn(fmt!(
                "file {}: its last {} bytes are no whole sector and cannot be accessed",
                &*path,
                file.size() % u64::from(SECTOR_SIZE),
            ));
        }
        Ok(Self {
            file,
            layout: Layout::Raw,
            identity,
            mode,
            path,
            speaker,
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

    /// Size in sectors of 512 bytes, as of now.
    pub(super) fn sectors(&self) -> u64 {
        self.layout.sectors(self.file.size())
    }

    pub(super) fn properties(&self) -> Properties {
        Properties {
            physical_block_size: match self.direct {
                DirectIo::Aligned { offset, .. } => offset.max(SECTOR_SIZE),
                DirectIo::Unsupported | DirectIo::InMemory => SECTOR_SIZE,
            },
            discard: self.file.discard_limits(),
            ..Properties::NOTHING
        }
    }

    pub(super) fn mode(&self) -> DiskMode {
        self.mode
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// See [`Path::identity`].
    ///
    /// [`Path::identity`]: xen_bindings::storage::path::Path::identity
    pub(super) fn identity(&self) -> usize {
        self.identity
    }

    pub(super) fn path(&self) -> &CStr {
        &self.path
    }

    /// As [`Medium::submit`](super::Medium::submit).
    pub(super) fn submit<T: HasTask>(
        &self,
        mut io: Mapped<T>,
        waiting: Option<&mut Option<Joined<T>>>,
        blocking: &OwnedQueue,
    ) {
        let position = self.layout.position(io.data().task().sector);
        io.data_mut().task_mut().position = position;
        io.data_mut().task_mut().way = self.way(&io);
        let &Task { action, way, .. } = io.data().task();
        let wait = match (action, way) {
            (Action::Flush | Action::Barrier | Action::Discard(_), _) => true,
            (_, Way::Buffered) => {
                self.note_buffered();
                true
            }
            (Action::Read | Action::Write, Way::Direct) => !self.nowait,
        };
        match waiting {
            _ if wait => io.defer(blocking),
            None => self.transfer(io.into(), true),
            Some(waiting) => self.gather(io, waiting),
        }
    }

    /// Does a request that has been deferred. Task context, may sleep.
    pub(super) fn run_one<T: HasTask>(&self, mut io: Mapped<T>) {
        let action = io.data().task().action;
        if let Action::Discard(discard) = action {
            let done = self.discard(&discard);
            return io.done(done);
        }
        if matches!(action, Action::Flush | Action::Barrier) && !io.data().task().flushed {
            let synced = self.file.sync();
            if synced.is_err() || io.bytes() == 0 {
                return io.done(synced);
            }
            io.data_mut().task_mut().flushed = true;
            io.data_mut().task_mut().way = self.way(&io);
        }
        self.transfer(io.into(), false);
    }

    /// What it is, and how its data are accessed.
    pub(super) fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_fmt(fmt!(
            "medium: file {} on {}\nI/O: ",
            &*self.path,
            self.file.fs_name()
        ))?;
        match self.direct {
            DirectIo::Aligned { memory, offset } => writeln!(
                f,
                "direct, aligned to {} bytes in memory, {} in the file{}{}",
                memory,
                offset,
                if self.nowait {
                    ""
                } else {
                    ", submitted by a workqueue"
                },
                if self.all_buffered.load(Relaxed) {
                    "; all buffered, since the guest writes less than that"
                } else if self.noted.load(Relaxed) {
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

    /// Direct I/O that was counted has ended. Any context.
    pub(super) fn direct_io_ended(&self) {
        self.in_flight.fetch_sub(1, Full);
    }

    /// Which way a request can go.
    fn way<T: HasTask>(&self, io: &Mapped<T>) -> Way {
        let DirectIo::Aligned { memory, offset } = self.direct else {
            return Way::Buffered;
        };
        let mask = u64::from(offset).wrapping_sub(1);
        if self.all_buffered.load(Relaxed) {
            Way::Buffered
        } else if (io.data().task().position | u64::from(io.bytes())) & mask == 0
            && io.memory_aligned(memory)
        {
            Way::Direct
        } else {
            Way::Buffered
        }
    }

    /// Where in the file the data of all of them end.
    fn end<T: HasTask>(io: &Joined<T>) -> u64 {
        io.data()
            .task()
            .position
            .saturating_add(u64::from(io.bytes()))
    }

    /// Joins a request to the one that waits, or submits that and lets this one wait. Both are to be read
    /// or written directly, without waiting for the storage. Task context.
    fn gather<T: HasTask>(&self, mut io: Mapped<T>, waiting: &mut Option<Joined<T>>) {
        if let Some(mut first) = waiting.take() {
            if Self::end(&first) == io.data().task().position {
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
    /// after a direct write next to a buffered one it could not forget what it has of the place, would go on showing that,
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
            self.speaker.warn(fmt!(
                "file {}: emptying the page cache: {:?}",
                &*self.path,
                err
            ));
        }
        self.speaker.info(fmt!(
            "file {}: using buffered I/O only, since the guest writes less than direct I/O can",
            &*self.path,
        ));
        self.settled.store(true, Release);
    }

    /// Reads or writes. Task context; may sleep unless `nowait`.
    pub(super) fn transfer<T: HasTask>(&self, mut io: Joined<T>, nowait: bool) {
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
        let position = io.data().task().position;
        self.file.submit(io, position, mode);
    }

    /// Punches a hole. May sleep.
    fn discard(&self, discard: &Discard) -> Result {
        if discard.sectors() == 0 {
            return Ok(());
        }
        let position = self.layout.position(discard.sector());
        // Sectors of the disk, which is not larger than the file was: this cannot wrap around.
        let len = discard.sectors().wrapping_mul(u64::from(SECTOR_SIZE));
        if position.saturating_add(len) > self.file.size() {
            return Err(EIO);
        }
        self.file.punch_hole(position, len)
    }

    pub(super) fn note_buffered(&self) {
        if matches!(self.direct, DirectIo::Aligned { .. })
            && !self.noted.load(Relaxed)
            && !self.noted.xchg(true, Relaxed)
        {
            self.speaker.info(fmt!(
                "file {}: using buffered I/O for requests that direct I/O cannot do",
                &*self.path,
            ));
        }
    }
}
