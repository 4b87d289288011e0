// SPDX-License-Identifier: GPL-2.0

//! Block devices, and bios submitted to them.
//!
//! C headers: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h),
//! [`include/linux/bio.h`](srctree/include/linux/bio.h)

use core::{
    mem::MaybeUninit,
    ptr::{
        self,
        NonNull, //
    }, //
};
use kernel::{
    error::from_err_ptr,
    prelude::*, //
};

use crate::{
    raw,
    request::{
        sealed::RequestState,
        Direction,
        Done,
        Inner,
        Joined,
        Mapped,
        Owner, //
    },
    storage::{
        Access,
        DiscardLimits, //
    }, //
};

/// An open block device. Dropping it closes it, which may sleep.
///
/// # Invariants
///
/// `file` is an open block device file that we own, `bdev` its device.
pub struct BlockDevice {
    file: NonNull<raw::file>,
    bdev: NonNull<raw::block_device>,
    numbers: (u32, u32),
}

// SAFETY: An open device may be used and closed in any task.
unsafe impl Send for BlockDevice {}
// SAFETY: The functions called take the locks they need.
unsafe impl Sync for BlockDevice {}

/// Whoever has sent a request that may go to a block device.
pub trait OnDevice: Owner {
    /// The device that its bios may go to, which its data keep open. Any context.
    fn device(&self) -> Option<&BlockDevice>;
}

/// The holder of all our claims: the address of this, the same for all disks.
static CLAIM: u8 = 0;

impl BlockDevice {
    /// Opens the device with these numbers. May sleep.
    ///
    /// # Errors
    ///
    /// `ENXIO` or `ENODEV` if there is no such device, `ENOMEDIUM`, `EBUSY` if somebody else has
    /// claimed it, `EACCES` or `EROFS` for writing to a read-only device.
    pub fn open(major: u32, minor: u32, access: Access) -> Result<Self> {
        let (mode, holder) = match access {
            Access::Read => (raw::BLK_OPEN_READ, ptr::null()),
            Access::Write => (raw::BLK_OPEN_READ | raw::BLK_OPEN_WRITE, &raw const CLAIM),
            Access::WriteShared => (raw::BLK_OPEN_READ | raw::BLK_OPEN_WRITE, ptr::null()),
        };
        // SAFETY: The holder is only compared. Without holder operations nothing is called back.
        let file = from_err_ptr(unsafe {
            raw::bdev_file_open_by_dev(
                raw::mkdev(major, minor),
                mode,
                holder.cast_mut().cast(),
                ptr::null(),
            )
        })?;
        // SAFETY: `file` is an open block device file.
        let bdev = unsafe { raw::file_bdev(file) };
        // INVARIANT: Opened just now.
        Ok(Self {
            file: NonNull::new(file).ok_or(ENXIO)?,
            bdev: NonNull::new(bdev).ok_or(ENXIO)?,
            numbers: (major, minor),
        })
    }

    /// Its major and minor number.
    pub fn numbers(&self) -> (u32, u32) {
        self.numbers
    }

    /// Size in sectors of 512 bytes, as of now.
    #[inline]
    pub fn sectors(&self) -> u64 {
        // SAFETY: By the type invariant the device is valid.
        unsafe { raw::bdev_nr_sectors(self.bdev.as_ptr()) }
    }

    /// Smallest unit of I/O in bytes, a power of two, 512 or more.
    pub fn logical_block_size(&self) -> u32 {
        // SAFETY: By the type invariant the device is valid.
        unsafe { raw::bdev_logical_block_size(self.bdev.as_ptr()) }
    }

    /// Smallest unit that the device writes without reading, in bytes.
    pub fn physical_block_size(&self) -> u32 {
        // SAFETY: By the type invariant the device is valid.
        unsafe { raw::bdev_physical_block_size(self.bdev.as_ptr()) }
    }

    /// Has the device a volatile write cache?
    pub fn has_write_cache(&self) -> bool {
        // SAFETY: By the type invariant the device is valid.
        unsafe { raw::bdev_write_cache(self.bdev.as_ptr()) }
    }

    /// Is it a CD-ROM drive?
    pub fn is_cdrom(&self) -> bool {
        // SAFETY: By the type invariant the device is valid.
        unsafe { raw::bdev_is_cdrom(self.bdev.as_ptr()) }
    }

    /// Can its medium be taken out?
    pub fn is_removable(&self) -> bool {
        // SAFETY: By the type invariant the device is valid.
        unsafe { raw::bdev_is_removable(self.bdev.as_ptr()) }
    }

    /// Writes out and forgets what dom0's page cache holds of the device, so that I/O that goes past
    /// the cache finds and leaves it consistent. May sleep.
    ///
    /// # Errors
    ///
    /// That of the write.
    pub fn drop_page_cache(&self) -> Result {
        // SAFETY: By the type invariant the device is valid.
        kernel::error::to_result(unsafe { raw::sync_blockdev(self.bdev.as_ptr()) })?;
        // SAFETY: By the type invariant the file is valid. Pages that cannot be dropped are in use by somebody
        // who reads the device by itself, at their own risk.
        unsafe { raw::invalidate_inode_pages2((*self.file.as_ptr()).f_mapping) };
        Ok(())
    }

    /// Submits a read or write of all the request's data at `sector` (of 512 bytes). Task context,
    /// may sleep.
    ///
    /// A request that does not keep this device open ([`OnDevice::device`]) is done with `EBADF`, one without data
    /// with `EINVAL`.
    pub fn submit<T: OnDevice>(&self, io: Mapped<T>, sector: u64) {
        if io.bytes() == 0 {
            // Drivers of devices expect something to do.
            return io.done(Err(EINVAL));
        }
        let op = match io.0.direction() {
            Direction::Read => raw::REQ_OP_READ,
            // As O_DIRECT writes: somebody waits for it, and it is not alone.
            Direction::Write => raw::REQ_OP_WRITE | raw::REQ_SYNC | raw::REQ_IDLE,
        };
        self.submit_bio(io, op, sector);
    }

    /// Has the device write its cache to the medium, then submits a write of the request's data, if
    /// it has any. Task context, may sleep.
    pub fn flush<T: OnDevice>(&self, io: Mapped<T>, sector: u64) {
        self.submit_bio(
            io,
            raw::REQ_OP_WRITE | raw::REQ_SYNC | raw::REQ_PREFLUSH,
            sector,
        );
    }

    /// As [`BlockDevice::flush`], and the request's data are durable when it is done. Task context,
    /// may sleep.
    pub fn barrier<T: OnDevice>(&self, io: Mapped<T>, sector: u64) {
        let fua = if io.bytes() == 0 { 0 } else { raw::REQ_FUA };
        self.submit_bio(
            io,
            raw::REQ_OP_WRITE | raw::REQ_SYNC | raw::REQ_PREFLUSH | fua,
            sector,
        );
    }

    /// How sectors can be given up, if they can.
    pub fn discard_limits(&self) -> Option<DiscardLimits> {
        // SAFETY: By the type invariant the device is valid.
        unsafe {
            (raw::bdev_max_discard_sectors(self.bdev.as_ptr()) != 0).then(|| DiscardLimits {
                granularity: raw::bdev_discard_granularity(self.bdev.as_ptr()),
                alignment: raw::bdev_discard_alignment(self.bdev.as_ptr()),
                secure: raw::bdev_max_secure_erase_sectors(self.bdev.as_ptr()) != 0,
            })
        }
    }

    /// Gives up sectors (of 512 bytes); with `secure` so that they cannot be read again, where the
    /// device can do that. May sleep.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP`, `EIO` and others.
    pub fn discard(&self, sector: u64, sectors: u64, secure: bool) -> Result {
        if sectors == 0 {
            return Ok(());
        }
        // SAFETY: By the type invariant the device is valid.
        kernel::error::to_result(unsafe {
            if secure && raw::bdev_max_secure_erase_sectors(self.bdev.as_ptr()) != 0 {
                raw::blkdev_issue_secure_erase(self.bdev.as_ptr(), sector, sectors, raw::GFP_NOIO)
            } else {
                raw::blkdev_issue_discard(self.bdev.as_ptr(), sector, sectors, raw::GFP_NOIO)
            }
        })
    }

    fn submit_bio<T: OnDevice>(&self, io: Mapped<T>, opf: u32, sector: u64) {
        if !io
            .data()
            .device()
            .is_some_and(|device| ptr::eq(device, self))
        {
            return Joined::from(io).refuse();
        }
        let ptr = KBox::into_raw(io.into_inner());
        // SAFETY: The request is ours, and from submit_bio() on the bio's, which gives it back in
        // `end_io`. The vectors are initialised up to `count` and lie in mapped pages. They are not
        // merged here: two foreign pages that are neighbours in our address space are none in the
        // machine's.
        //
        // The device stays open: until this returns because of `self`, until the bio is done because the
        // request's data, which nobody touches as long, have a reference to it: it could be borrowed all
        // the time.
        unsafe {
            let (count, bytes) = ((*ptr).count() as u16, (*ptr).bytes);
            let (vecs, room) = Inner::vecs_ptr(ptr);
            let bio = Inner::target(ptr).cast::<raw::bio>();
            raw::bio_init(bio, self.bdev.as_ptr(), vecs, room as u16, opf);
            (*bio).bi_vcnt = count;
            (*bio).bi_iter.bi_size = bytes;
            (*bio).bi_iter.bi_sector = sector;
            (*bio).bi_private = ptr.cast();
            (*bio).bi_end_io = Some(Self::end_io::<T>);
            raw::submit_bio(bio);
        }
    }

    /// # Safety
    ///
    /// Called by the block layer only, once for a bio that `submit_bio` submitted.
    unsafe extern "C" fn end_io<T: Owner>(bio: *mut raw::bio) {
        // SAFETY: The bio is done, its request is ours again.
        let (inner, result) = unsafe {
            let result = match (*bio).bi_status {
                0 => Ok(()),
                status => kernel::error::to_result(raw::blk_status_to_errno(status)),
            };
            let ptr = (*bio).bi_private;
            raw::bio_uninit(bio);
            (KBox::from_raw(ptr.cast()), result)
        };
        T::complete(Done::with(inner, result));
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the file is ours; we are in task context, and hold no lock that closing takes.
        unsafe { raw::bdev_close_sync(self.file.as_ptr()) }
    }
}

/// Runs `f` with the bios it submits held back until the end, so that the block layer can merge
/// and dispatch them together. Task context, `f` may sleep.
pub fn plugged<R>(f: impl FnOnce() -> R) -> R {
    let mut plug = MaybeUninit::<raw::blk_plug>::uninit();
    // SAFETY: The plug stays in place until it is finished below, and belongs to this task.
    unsafe { raw::blk_start_plug(plug.as_mut_ptr()) };
    let ret = f();
    // SAFETY: Started above.
    unsafe { raw::blk_finish_plug(plug.as_mut_ptr()) };
    ret
}
