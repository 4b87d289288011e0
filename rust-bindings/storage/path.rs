// SPDX-License-Identifier: GPL-2.0

//! What a path leads to: looked at, and told from other files, before it is opened.
//!
//! C headers: [`include/linux/namei.h`](srctree/include/linux/namei.h),
//! [`include/linux/path.h`](srctree/include/linux/path.h)

use core::ptr::NonNull;
use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*, //
};

use crate::{
    raw,
    storage::{
        file::File,
        Access, //
    }, //
};

/// What a path has led to. It stays the same whatever becomes of its names, and cannot be unmounted.
/// Dropping it may sleep.
///
/// # Invariants
///
/// `path` is a path with a reference that we own, `inode` the inode that it has led to, which is not negative.
pub struct Path {
    path: raw::path,
    inode: NonNull<raw::inode>,
}

// SAFETY: A path may be used and given back in any task.
unsafe impl Send for Path {}
// SAFETY: The path is not changed; what is read of the inode may be read by anybody.
unsafe impl Sync for Path {}

impl Path {
    /// Looks `name` up, seen from the init process's root directory, and follows symbolic links. May sleep.
    ///
    /// # Errors
    ///
    /// Those of `stat(2)`.
    pub fn lookup(name: &CStr) -> Result<Self> {
        let mut path: raw::path = pin_init::zeroed();
        // SAFETY: `name` is NUL-terminated, `path` may be written.
        to_result(unsafe { raw::kern_path_init(name.as_char_ptr(), &mut path) })?;
        // SAFETY: The look-up has succeeded, so the path is valid and its inode stays with it.
        match NonNull::new(unsafe { raw::path_inode(&path) }) {
            // INVARIANT: Both are of the look-up.
            Some(inode) => Ok(Self { path, inode }),
            None => {
                // SAFETY: The reference is ours, and is not used any more.
                unsafe { raw::path_put(&path) };
                Err(ENOENT)
            }
        }
    }

    fn mode(&self) -> u32 {
        // SAFETY: The inode is valid.
        u32::from(unsafe { raw::inode_mode(self.inode.as_ptr()) })
    }

    /// Is it a regular file?
    pub fn is_regular(&self) -> bool {
        self.mode() & raw::S_IFMT == raw::S_IFREG
    }

    /// Do its permissions let nobody write it? Root could all the same.
    pub fn is_write_protected(&self) -> bool {
        self.mode() & (raw::S_IWUSR | raw::S_IWGRP | raw::S_IWOTH) == 0
    }

    /// Size in bytes, as of now. Any context.
    pub fn size(&self) -> u64 {
        // SAFETY: The inode is valid. A size is never negative.
        unsafe { raw::inode_size(self.inode.as_ptr()) }.unsigned_abs()
    }

    /// Identifies the file, by whatever name it was found, for as long as somebody has it, open or as a path.
    pub fn identity(&self) -> usize {
        self.inode.as_ptr().addr()
    }

    /// Major and minor number of the device, and number of the inode, as `stat(2)` gives them. May sleep.
    ///
    /// # Errors
    ///
    /// That of `stat(2)`.
    pub fn numbers(&self) -> Result<(u32, u32, u64)> {
        let mut stat: raw::kstat = pin_init::zeroed();
        // SAFETY: The path is valid, `stat` may be written.
        to_result(unsafe { raw::vfs_getattr(&self.path, &mut stat, raw::STATX_INO, 0) })?;
        // SAFETY: These functions only compute.
        let (major, minor) = unsafe { (raw::dev_major(stat.dev), raw::dev_minor(stat.dev)) };
        Ok((major, minor, stat.ino))
    }

    /// How many in this domain have it open for writing, ourselves included. Any context.
    pub fn writers(&self) -> u32 {
        // SAFETY: The inode is valid. A number below 0 is of those who allow no writer.
        u32::try_from(unsafe { raw::inode_writers(self.inode.as_ptr()) }).unwrap_or(0)
    }

    /// Does the kernel swap to it? Any context.
    pub fn is_swap(&self) -> bool {
        // SAFETY: The inode is valid.
        unsafe { raw::inode_is_swapfile(self.inode.as_ptr()) }
    }

    /// Has a loop device been made of it? Certain only if not: two loop devices of one file that come and go may
    /// leave the trace that this looks for. Any context.
    pub fn may_be_behind_loop(&self) -> bool {
        // SAFETY: The inode is valid.
        unsafe { raw::inode_behind_loop(self.inode.as_ptr()) }
    }

    /// Opens it, as if by name. May sleep.
    ///
    /// # Errors
    ///
    /// Those of `open(2)`.
    pub fn open(&self, access: Access) -> Result<File> {
        // SAFETY: The path is valid.
        let file = from_err_ptr(unsafe { raw::path_open(&self.path, access.flags()) })?;
        // SAFETY: The file was opened just now, and its reference is ours.
        Ok(unsafe { File::from_raw(NonNull::new(file).ok_or(ENOENT)?) })
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours.
        unsafe { raw::path_put(&self.path) }
    }
}
