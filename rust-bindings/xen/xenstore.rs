// SPDX-License-Identifier: GPL-2.0

//! Reading and writing xenstore.
//!
//! C header: [`include/xen/xenbus.h`](srctree/include/xen/xenbus.h)
//!
//! Every function here waits for the answer of xenstored: task context, may sleep.
//!
//! What a guest wrote is bytes of its choice, at most a xenstore payload (4096) of them; they are
//! parsed in [`blkif::node`].

use core::ptr::NonNull;
use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    fmt,
    prelude::*,
    str::CString, //
};

use crate::raw;

/// A value read from xenstore.
///
/// # Invariants
///
/// `ptr` is an allocation of `kmalloc` with `len` bytes and a NUL after them, ours to free.
pub struct Value {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: The memory is ours alone.
unsafe impl Send for Value {}
// SAFETY: The memory is not changed.
unsafe impl Sync for Value {}

impl Value {
    /// The bytes of the value, without the final NUL.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: By the type invariant there are `len` bytes.
        unsafe { core::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// The value as a C string: up to the first NUL, where the guest may have put one.
    pub fn as_c_str(&self) -> &CStr {
        // SAFETY: By the type invariant a NUL follows the bytes at the latest.
        unsafe { raw::c_str(self.ptr.as_ptr().cast()) }
    }

    /// The value as a decimal number.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it is empty, too large, or anything but decimal digits.
    pub fn number(&self) -> Result<u32> {
        blkif::node::number(self.as_bytes()).map_err(|_| EINVAL)
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the allocation is ours.
        unsafe { raw::kfree(self.ptr.as_ptr().cast()) }
    }
}

/// Number of no transaction (`XBT_NIL`).
const NO_TRANSACTION: u32 = 0;

/// Reads `dir/node`.
///
/// # Errors
///
/// `ENOENT` if there is no such node, `EACCES` if we may not read it.
pub fn read(dir: &CStr, node: &CStr) -> Result<Value> {
    read_in(NO_TRANSACTION, dir, node)
}

fn read_in(xbt: u32, dir: &CStr, node: &CStr) -> Result<Value> {
    let mut len = 0;
    // SAFETY: The strings are NUL-terminated, `len` may be written.
    let ptr = unsafe {
        raw::xenbus_read(
            raw::xenbus_transaction { id: xbt },
            dir.as_char_ptr(),
            node.as_char_ptr(),
            &mut len,
        )
    };
    let ptr = NonNull::new(from_err_ptr(ptr)?.cast::<u8>()).ok_or(ENOMEM)?;
    // INVARIANT: xenbus_read() allocates one byte more than it reads, and sets it to NUL.
    Ok(Value {
        ptr,
        len: len as usize,
    })
}

/// Reads `dir/node`, with `None` for a node that does not exist.
///
/// # Errors
///
/// As [`read`], but for `ENOENT`.
pub fn read_optional(dir: &CStr, node: &CStr) -> Result<Option<Value>> {
    optional(read(dir, node))
}

fn optional(value: Result<Value>) -> Result<Option<Value>> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(err) if err == ENOENT => Ok(None),
        Err(err) => Err(err),
    }
}

/// Writes `dir/node`.
///
/// # Errors
///
/// `ENOMEM`, or the error that xenstore answers with.
pub fn write(dir: &CStr, node: &CStr, value: fmt::Arguments<'_>) -> Result {
    write_in(NO_TRANSACTION, dir, node, value)
}

fn write_in(xbt: u32, dir: &CStr, node: &CStr, value: fmt::Arguments<'_>) -> Result {
    let value = CString::try_from_fmt(value)?;
    // SAFETY: All strings are NUL-terminated.
    to_result(unsafe {
        raw::xenbus_write(
            raw::xenbus_transaction { id: xbt },
            dir.as_char_ptr(),
            node.as_char_ptr(),
            value.as_char_ptr(),
        )
    })
}

/// A transaction: what is written through it becomes visible at once, or not at all.
pub struct Transaction(u32);

impl Transaction {
    /// Runs `body` in a transaction, again as often as somebody else's change got in its way. If
    /// `body` fails, nothing is written.
    ///
    /// # Errors
    ///
    /// That of `body`, or of xenstore.
    pub fn run(mut body: impl FnMut(&Transaction) -> Result) -> Result {
        loop {
            let mut xbt = raw::xenbus_transaction { id: NO_TRANSACTION };
            // SAFETY: `xbt` may be written.
            to_result(unsafe { raw::xenbus_transaction_start(&mut xbt) })?;
            let ret = body(&Transaction(xbt.id));
            // SAFETY: The transaction was started above, and is ended just once.
            let end = to_result(unsafe { raw::xenbus_transaction_end(xbt, ret.is_err()) });
            ret?;
            match end {
                Err(err) if err == EAGAIN => continue,
                end => return end,
            }
        }
    }

    /// As [`Transaction::run`], but only if the directory of a device exists, that is, its node `state`: what a
    /// toolstack has removed must not come back. Returns whether it does.
    ///
    /// # Errors
    ///
    /// That of `body`, or of xenstore.
    pub fn run_in(dir: &CStr, mut body: impl FnMut(&Transaction) -> Result) -> Result<bool> {
        let mut exists = false;
        Self::run(|xbt| {
            exists = optional(read_in(xbt.0, dir, c"state"))?.is_some();
            if exists {
                body(xbt)
            } else {
                Ok(())
            }
        })?;
        Ok(exists)
    }

    /// Writes `dir/node`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or the error that xenstore answers with.
    pub fn write(&self, dir: &CStr, node: &CStr, value: fmt::Arguments<'_>) -> Result {
        write_in(self.0, dir, node, value)
    }
}
