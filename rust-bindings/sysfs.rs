// SPDX-License-Identifier: GPL-2.0

//! Files in sysfs that show something of a device's driver.
//!
//! C headers: [`include/linux/sysfs.h`](srctree/include/linux/sysfs.h),
//! [`include/linux/device.h`](srctree/include/linux/device.h)

use core::ptr;
use kernel::{
    prelude::*,
    types::ForeignOwnable, //
};

use crate::raw;

/// What a file shows.
pub enum Content {
    /// A decimal number.
    Number(u64),
    /// Major and minor number of a block device.
    Device(u32, u32),
    /// A word.
    Text(&'static CStr),
}

/// A file that can be read, and perhaps be written.
///
/// What reads or writes it must not wait for anything that takes its time: the device cannot be unbound meanwhile.
pub struct Attribute<D> {
    /// Its name.
    pub name: &'static CStr,
    /// Called when it is read, in task context; may sleep.
    pub show: fn(&D) -> Content,
    /// Called when it is written, as `show`, with what is written, without the newline at its end. None for a file that
    /// can only be read.
    pub store: Option<fn(&D, &[u8]) -> Result>,
}

/// Files in one directory.
pub struct Group<D: 'static> {
    /// Name of the directory; `None` for the device's own.
    pub name: Option<&'static CStr>,
    /// The files.
    pub attributes: &'static [Attribute<D>],
}

/// A file, as the kernel knows it.
#[repr(C)]
struct File<D> {
    attr: raw::device_attribute,
    show: fn(&D) -> Content,
    store: Option<fn(&D, &[u8]) -> Result>,
}

/// What a driver keeps for a device, in a box: its data are in there.
pub(crate) trait Bound: Send + Sync + 'static {
    type Data: Send + Sync + 'static;

    fn data(&self) -> &Self::Data;
}

/// The files of a driver whose data for a device are a `KBox<B>`.
///
/// # Invariants
///
/// What the vectors point to is in the vectors before them, which do not change any more.
pub(crate) struct Groups<B: Bound> {
    _files: KVec<File<B::Data>>,
    _attrs: KVec<*mut raw::attribute>,
    _groups: KVec<raw::attribute_group>,
    list: KVec<*const raw::attribute_group>,
}

// SAFETY: All of it is ours, and is only read.
unsafe impl<B: Bound> Send for Groups<B> {}
// SAFETY: It is only read.
unsafe impl<B: Bound> Sync for Groups<B> {}

impl<B: Bound> Groups<B> {
    /// Prepares the files. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(groups: &'static [Group<B::Data>]) -> Result<Self> {
        let mut count = 0usize;
        for group in groups {
            count = count.saturating_add(group.attributes.len());
        }
        let ends = groups.len();
        // INVARIANT: There is room for everything from the start, so that nothing moves.
        let mut files: KVec<File<B::Data>> = KVec::with_capacity(count, GFP_KERNEL)?;
        let mut attrs: KVec<*mut raw::attribute> =
            KVec::with_capacity(count.saturating_add(ends), GFP_KERNEL)?;
        let mut table: KVec<raw::attribute_group> = KVec::with_capacity(ends, GFP_KERNEL)?;
        let mut list = KVec::with_capacity(ends.saturating_add(1), GFP_KERNEL)?;
        for group in groups {
            // SAFETY: There is room for what follows; the pointer stays within the allocation.
            let first: *mut *mut raw::attribute = unsafe { attrs.as_mut_ptr().add(attrs.len()) };
            for attribute in group.attributes {
                // SAFETY: As above.
                let file: *mut File<B::Data> = unsafe { files.as_mut_ptr().add(files.len()) };
                let _ = files.push_within_capacity(File {
                    attr: pin_init::zeroed(),
                    show: attribute.show,
                    store: attribute.store,
                });
                // SAFETY: The element was written just now; the name lives for ever.
                let attr = unsafe {
                    raw::device_attribute_init(
                        &raw mut (*file).attr,
                        attribute.name.as_char_ptr(),
                        Some(Self::show),
                        match attribute.store {
                            Some(_) => Some(Self::store),
                            None => None,
                        },
                    )
                };
                let _ = attrs.push_within_capacity(attr);
            }
            let _ = attrs.push_within_capacity(ptr::null_mut());
            let mut group_of: raw::attribute_group = pin_init::zeroed();
            let name = group.name.map_or(ptr::null(), |name| name.as_char_ptr());
            // SAFETY: The structure may be written; the list ends with a null pointer.
            unsafe { raw::attribute_group_init(&mut group_of, name, first) };
            // SAFETY: As above.
            let place: *const raw::attribute_group = unsafe { table.as_ptr().add(table.len()) };
            let _ = table.push_within_capacity(group_of);
            let _ = list.push_within_capacity(place);
        }
        let _ = list.push_within_capacity(ptr::null());
        Ok(Self {
            _files: files,
            _attrs: attrs,
            _groups: table,
            list,
        })
    }

    /// For the field `dev_groups` of a driver, which must not outlive this.
    pub(crate) fn as_ptr(&self) -> *mut *const raw::attribute_group {
        self.list.as_ptr().cast_mut()
    }

    /// # Safety
    ///
    /// Called by sysfs only, for a file of a [`Groups`] of the device's driver: after probe, and
    /// before remove.
    unsafe extern "C" fn show(
        dev: *mut raw::device,
        attr: *mut raw::device_attribute,
        buf: *mut kernel::ffi::c_char,
    ) -> isize {
        // SAFETY: The attribute is part of a `File`. Probe has stored the data, and remove, which
        // frees them, comes after the files have gone.
        let value = unsafe {
            let file = kernel::container_of!(attr, File<B::Data>, attr);
            let bound = <KBox<B> as ForeignOwnable>::borrow((*dev).driver_data.cast());
            ((*file).show)(bound.data())
        };
        // SAFETY: `buf` is the page that sysfs gives us, and the formats fit their arguments.
        let len = unsafe {
            match value {
                Content::Number(number) => raw::sysfs_emit(buf, c"%llu\n".as_char_ptr(), number),
                Content::Device(major, minor) => {
                    raw::sysfs_emit(buf, c"%x:%x\n".as_char_ptr(), major, minor)
                }
                Content::Text(text) => {
                    raw::sysfs_emit(buf, c"%s\n".as_char_ptr(), text.as_char_ptr())
                }
            }
        };
        len as isize
    }

    /// # Safety
    ///
    /// As [`Groups::show`]; `buf` has `count` bytes.
    unsafe extern "C" fn store(
        dev: *mut raw::device,
        attr: *mut raw::device_attribute,
        buf: *const kernel::ffi::c_char,
        count: usize,
    ) -> isize {
        // SAFETY: As in `show`; sysfs gives us `count` bytes.
        let (bound, store, text) = unsafe {
            let file = kernel::container_of!(attr, File<B::Data>, attr);
            (
                <KBox<B> as ForeignOwnable>::borrow((*dev).driver_data.cast()),
                (*file).store,
                core::slice::from_raw_parts(buf.cast::<u8>(), count),
            )
        };
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        match store.map(|store| store(bound.data(), text)) {
            Some(Ok(())) => count as isize,
            Some(Err(err)) => err.to_errno() as isize,
            None => EACCES.to_errno() as isize,
        }
    }
}
