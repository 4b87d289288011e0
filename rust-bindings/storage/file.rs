// SPDX-License-Identifier: GPL-2.0

//! Asynchronous direct I/O on a regular file, between the file system and pages of ours.
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h),
//! [`include/linux/uio.h`](srctree/include/linux/uio.h)
//!
//! A read or write is a kiocb with an iterator over the request's vectors, handed to the file's own
//! `read_iter` or `write_iter`. It has two references, one for the submission and one for the
//! completion, because the completion can run while the file system still looks at the iterator.
//!
//! Requests that are joined are one read or write, for which the memory of the first one is used. If it
//! ends well all are done; else each is tried by itself, so that each gets the result of its own.

use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*,
    sync::atomic::Relaxed, //
};

use crate::{
    raw,
    request::{
        sealed::RequestState,
        Direction,
        Done,
        FileOp,
        Inner,
        Joined,
        Mapped,
        Mode,
        Owner,
        Retry, //
    },
    storage::{
        is_not_supported,
        Access,
        DiscardLimits, //
    }, //
};

/// What the file system says about direct I/O on a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DirectIo {
    /// It does it, for these alignments in bytes, powers of two (`STATX_DIOALIGN`).
    Aligned {
        /// Of the pieces of memory.
        memory: u32,
        /// Of position and length in the file.
        offset: u32,
    },
    /// It does none for this file.
    Unsupported,
    /// The file is in memory anyway.
    InMemory,
}

/// An open file. Dropping it closes it, which may sleep.
///
/// # Invariants
///
/// The pointer is an open file that we own a reference to.
pub struct File(NonNull<raw::file>);

// SAFETY: A file may be used and closed in any task.
unsafe impl Send for File {}
// SAFETY: The functions called take the locks they need.
unsafe impl Sync for File {}

/// Whoever has sent a request that may go to a file.
pub trait OnFile: Owner {
    /// The file that may be read and written for it, which its data keep open. Any context.
    fn file(&self) -> Option<&File>;
}

impl File {
    /// Opens `path`, seen from the init process's root directory. May sleep.
    ///
    /// # Errors
    ///
    /// Those of `open(2)`.
    pub fn open(path: &CStr, access: Access) -> Result<Self> {
        // SAFETY: `path` is NUL-terminated.
        let file = unsafe { raw::filp_open_init(path.as_char_ptr(), access.flags()) };
        let file = from_err_ptr(file)?;
        // INVARIANT: Opened just now.
        Ok(Self(NonNull::new(file).ok_or(ENOENT)?))
    }

    /// # Safety
    ///
    /// `file` must be an open file with a reference that the caller gives away.
    pub(crate) unsafe fn from_raw(file: NonNull<raw::file>) -> Self {
        // INVARIANT: As the caller guarantees.
        Self(file)
    }

    fn as_ptr(&self) -> *mut raw::file {
        self.0.as_ptr()
    }

    /// Size in bytes, as of now. Any context.
    pub fn size(&self) -> u64 {
        // SAFETY: By the type invariant the file is valid. A size is never negative.
        unsafe { raw::i_size_read(self.as_ptr()) }.unsigned_abs()
    }

    /// Reads from its beginning what fits into `to`; returns how much that was. May sleep.
    ///
    /// # Errors
    ///
    /// Those of `read(2)`.
    pub fn read(&self, to: &mut [u8]) -> Result<usize> {
        let mut position = 0;
        // SAFETY: By the type invariant the file is valid and open for reading; `to` may be written as far as it
        // is long.
        let len = unsafe {
            raw::kernel_read(
                self.as_ptr(),
                to.as_mut_ptr().cast(),
                to.len(),
                &mut position,
            )
        };
        usize::try_from(len).map_err(|_| Error::from_errno(len as i32))
    }

    /// Name of the type of file system, such as `ext4`.
    pub fn fs_name(&self) -> &CStr {
        // SAFETY: By the type invariant the file is valid; the type of a mounted file system stays, and its name
        // is NUL-terminated.
        unsafe { raw::c_str(raw::file_fs_name(self.as_ptr())) }
    }

    /// What direct I/O the file system does on this file. May sleep.
    ///
    /// # Errors
    ///
    /// That of `statx(2)`.
    pub fn direct_io(&self) -> Result<DirectIo> {
        let mut stat: raw::kstat = pin_init::zeroed();
        // SAFETY: By the type invariant the file is valid, `stat` may be written.
        unsafe {
            to_result(raw::vfs_getattr(
                &raw const (*self.as_ptr()).__bindgen_anon_1.f_path,
                &mut stat,
                raw::STATX_DIOALIGN,
                0,
            ))?
        };
        // SAFETY: By the type invariant the file is valid.
        let magic = unsafe { raw::file_fs_magic(self.as_ptr()) };
        Ok(if magic as u64 == raw::TMPFS_MAGIC {
            DirectIo::InMemory
        } else if !self.can_direct() {
            DirectIo::Unsupported
        } else if stat.result_mask & raw::STATX_DIOALIGN == 0 {
            // Network file systems that say nothing do it, mostly for any alignment; if not for
            // ours, the request is tried again without.
            DirectIo::Aligned {
                memory: blkif::abi::SECTOR_SIZE,
                offset: blkif::abi::SECTOR_SIZE,
            }
        } else if stat.dio_offset_align == 0 || stat.dio_mem_align == 0 {
            DirectIo::Unsupported
        } else {
            DirectIo::Aligned {
                memory: stat.dio_mem_align,
                offset: stat.dio_offset_align,
            }
        })
    }

    /// Can the file system be asked for direct I/O?
    fn can_direct(&self) -> bool {
        // SAFETY: By the type invariant the file is valid.
        unsafe { (*self.as_ptr()).f_mode & raw::FMODE_CAN_ODIRECT != 0 }
    }

    /// Can the file system be asked not to wait?
    pub fn can_nowait(&self) -> bool {
        // SAFETY: By the type invariant the file is valid.
        unsafe { (*self.as_ptr()).f_mode & raw::FMODE_NOWAIT != 0 }
    }

    /// Makes everything written to the file durable. May sleep.
    ///
    /// # Errors
    ///
    /// `EIO` and others, also for a write that failed earlier.
    pub fn sync(&self) -> Result {
        // Data and what is needed to find them again (fdatasync): the times of the inode are not.
        //
        // SAFETY: By the type invariant the file is valid.
        to_result(unsafe { raw::vfs_fsync(self.as_ptr(), 1) })
    }

    /// Writes out what the page cache has of the file, and has it forget that. May sleep.
    ///
    /// # Errors
    ///
    /// `EIO` and others, `EBUSY` if somebody uses it at the same time.
    pub fn drop_page_cache(&self) -> Result {
        // SAFETY: The file is valid.
        to_result(unsafe { raw::file_drop_cache(self.as_ptr()) })
    }

    /// How parts of the file can be given up, if the file system does that.
    pub fn discard_limits(&self) -> Option<DiscardLimits> {
        // SAFETY: By the type invariant the file is valid.
        unsafe {
            raw::file_can_fallocate(self.as_ptr()).then(|| DiscardLimits {
                granularity: raw::file_block_size(self.as_ptr()),
                alignment: 0,
                secure: false,
            })
        }
    }

    /// Makes a hole of `len` bytes, not 0, at `position`; the file keeps its size. May sleep.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` and others.
    pub fn punch_hole(&self, position: u64, len: u64) -> Result {
        // SAFETY: By the type invariant the file is valid.
        to_result(unsafe {
            raw::vfs_fallocate(
                self.as_ptr(),
                raw::FALLOC_PUNCH_HOLE,
                position as i64,
                len as i64,
            )
        })
    }

    /// Submits a read or write of what has not been transferred yet; `position` is that of the first
    /// request's first byte in the file. Task context; may sleep, with `mode.nowait` only briefly.
    ///
    /// Requests the first of which does not keep this file open ([`OnFile::file`]) are done with `EBADF`.
    pub fn submit<T: OnFile>(&self, io: Joined<T>, position: u64, mode: Mode) {
        if !io.data().file().is_some_and(|file| ptr::eq(file, self)) {
            return io.refuse();
        }
        let ptr = KBox::into_raw(io.into_inner());
        // SAFETY: The request is ours until its last reference is dropped. The vectors are
        // initialised up to `joined_count`, and stay in place with the pages until the I/O is done; so
        // do the pages of requests joined to it, which it owns.
        //
        // The file stays open: until this returns because of `self`, until the I/O is done because the
        // request's data, which nobody touches as long, have a reference to it: it could be borrowed all
        // the time.
        let ret = unsafe {
            let direction = (*ptr).direction;
            let progress = (*ptr).progress;
            let (count, bytes) = ((*ptr).joined_count(), (*ptr).joined_bytes());
            let (vecs, _) = Inner::vecs_ptr(ptr);
            let op = Inner::target(ptr).cast::<FileOp>();
            let iocb = &raw mut (*op).iocb;
            let iter = &raw mut (*op).iter;
            (&raw mut (*op).mode).write(mode);
            raw::init_sync_kiocb(iocb, self.as_ptr());
            (*iocb).ki_pos = position.wrapping_add(u64::from(progress)) as i64;
            (*iocb).ki_complete = Some(Self::ki_complete::<T>);
            (*iocb).ki_flags &= !raw::IOCB_APPEND;
            if mode.direct {
                (*iocb).ki_flags |= raw::IOCB_DIRECT;
            }
            if mode.durable {
                (*iocb).ki_flags |= raw::IOCB_DSYNC;
            }
            if mode.nowait {
                (*iocb).ki_flags |= raw::IOCB_NOWAIT;
            }
            raw::iov_iter_bvec(
                iter,
                match direction {
                    Direction::Read => raw::ITER_DEST,
                    Direction::Write => raw::ITER_SOURCE,
                },
                vecs,
                count as usize,
                bytes as usize,
            );
            if progress != 0 {
                raw::iov_iter_advance(iter, progress as usize);
            }
            (*ptr).refs.store(2, Relaxed);
            match direction {
                // The file system is not asked: it may have no function for it.
                _ if mode.direct && !self.can_direct() => -(raw::EINVAL as isize),
                Direction::Read => raw::vfs_iocb_iter_read(self.as_ptr(), iocb, iter),
                // `IOCB_NOWAIT` alone does not keep the C function from waiting for a frozen file system.
                Direction::Write if mode.nowait => {
                    raw::vfs_iocb_iter_write_nowait(self.as_ptr(), iocb, iter)
                }
                Direction::Write => raw::vfs_iocb_iter_write(self.as_ptr(), iocb, iter),
            }
        };
        if ret != -(raw::EIOCBQUEUED as isize) {
            // The completion is not called; its reference goes here.
            //
            // SAFETY: Both references are ours.
            unsafe {
                Self::set_result(ptr, ret);
                Inner::put_ref(ptr);
            }
        }
        // SAFETY: The submission's reference is ours.
        unsafe { Self::put::<T>(ptr) };
    }

    /// # Safety
    ///
    /// `ptr` must be a request with a reference of the completion, that the caller owns.
    unsafe fn set_result<T: Owner>(ptr: *const Inner<T>, ret: isize) {
        // A transfer is at most `MAX_SEGMENTS` pages long, an error number at most 4095.
        let ret = i32::try_from(ret).unwrap_or(EIO.to_errno());
        // SAFETY: The request is valid.
        unsafe { (*ptr).result.store(ret, Relaxed) };
    }

    /// # Safety
    ///
    /// Called by the file system only, once for a kiocb that was queued.
    unsafe extern "C" fn ki_complete<T: Owner>(iocb: *mut raw::kiocb, ret: kernel::ffi::c_long) {
        // SAFETY: `iocb` is a field of the `FileOp` that is in `target` of a request, which is valid because
        // the completion has a reference.
        unsafe {
            let op = kernel::container_of!(iocb, FileOp, iocb);
            let ptr = Inner::<T>::of_target(op.cast());
            if (*ptr).direction == Direction::Write {
                raw::kiocb_end_write(iocb);
            }
            Self::set_result(ptr, ret);
            Self::put::<T>(ptr);
        }
    }

    /// Drops a reference, and finishes the request if it was the last.
    ///
    /// # Safety
    ///
    /// `ptr` must be a request submitted to a file, with a reference that the caller owns.
    unsafe fn put<T: Owner>(ptr: *mut Inner<T>) {
        // SAFETY: The caller owns a reference.
        if !unsafe { Inner::put_ref(ptr) } {
            return;
        }
        // SAFETY: With the last reference gone the request is ours alone.
        let (mut inner, mode) = unsafe {
            let op = Inner::target(ptr).cast::<FileOp>();
            let mode = (*op).mode;
            (KBox::from_raw(ptr), mode)
        };
        let ret = *inner.result.get_mut();
        if inner.is_joined() {
            // INVARIANT: Nothing has been unmapped since it was one.
            return Self::end_joined(Joined::from_inner(inner), ret, mode);
        }
        let rest = inner.bytes.saturating_sub(inner.progress);
        let done = |inner, result| T::complete(Done::with(inner, result));
        // INVARIANT (of `Mapped`, below): Nothing has been unmapped since it was one, or is joined to it.
        let retry = |inner, why| T::retry(Mapped::from_inner(inner).into(), why);
        match u32::try_from(ret) {
            Ok(len) if len >= rest => done(inner, Ok(())),
            // The end of the file where the disk has a sector: somebody has truncated it.
            Ok(0) => done(inner, Err(EIO)),
            Ok(len) => {
                inner.progress = inner.progress.saturating_add(len);
                retry(inner, Retry::Partial);
            }
            Err(_) => {
                let err = Error::from_errno(ret);
                if err == EAGAIN && mode.nowait {
                    retry(inner, Retry::WouldBlock);
                } else if (err == EINVAL || is_not_supported(err)) && (mode.direct || mode.nowait) {
                    retry(inner, Retry::NotDirect);
                } else {
                    done(inner, Err(err));
                }
            }
        }
    }

    /// Finishes requests that are joined and whose transfer ended with `ret`. Any context.
    fn end_joined<T: Owner>(io: Joined<T>, ret: i32, mode: Mode) {
        if ret == EAGAIN.to_errno() && mode.nowait {
            // Waiting, too, is cheaper together.
            return T::retry(io, Retry::WouldBlock);
        }
        if u32::try_from(ret).is_ok_and(|len| len >= io.bytes()) {
            return io.part(|io| io.done(Ok(())));
        }
        // Which of them it is that does not work is found by trying.
        io.part(|io| T::retry(io.into(), Retry::Parted));
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // Closed before this returns, so that the file system can be unmounted at once. The usual
        // fput() would leave that to a work item, since we are no user task.
        //
        // SAFETY: By the type invariant the reference is ours; we are in task context and hold no
        // lock of the file system.
        unsafe { raw::__fput_sync(self.as_ptr()) }
    }
}
