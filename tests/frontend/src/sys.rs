// SPDX-License-Identifier: GPL-2.0

//! Granted pages and event channels, by Linux's `/dev/xen/gntalloc` and `/dev/xen/evtchn`.
//!
//! This is the only module with unsafe code. What it hands out is safe to use: accesses are checked against the size
//! of the pages, and memory that the backend may change at any time is reached by atomic words or by copies.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blkif::abi::PAGE_SIZE;

use crate::error::{fail, Result};

/// Size of a page, as a size in memory.
pub const PAGE: usize = PAGE_SIZE as usize;

const GNTALLOC: &str = "/dev/xen/gntalloc";
const GNTALLOC_LIMIT: &str = "/sys/module/xen_gntalloc/parameters/limit";
const EVTCHN: &str = "/dev/xen/evtchn";

/// `_IOC(_IOC_NONE, kind, number, size)`: both devices use the direction "none" throughout.
const fn ioctl_number(kind: u8, number: u8, size: usize) -> libc::c_ulong {
    ((size as libc::c_ulong) << 16) | ((kind as libc::c_ulong) << 8) | number as libc::c_ulong
}

/// Words in front of the grant references in the argument of the allocation: domain and flags, count, and the
/// index in two.
const ALLOC_HEADER: usize = 4;
/// `sizeof(struct ioctl_gntalloc_alloc_gref)`: the kernel copies at least this much.
const ALLOC_SIZE: usize = 24;
const ALLOC_GREF: libc::c_ulong = ioctl_number(b'G', 5, ALLOC_SIZE);
const ALLOC_WRITABLE: u32 = 1;

const BIND_UNBOUND_PORT: libc::c_ulong = ioctl_number(b'E', 2, 4);
const NOTIFY: libc::c_ulong = ioctl_number(b'E', 4, 4);

fn open(path: &str, module: &str, flags: i32) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|error| {
            format!("{path}: {error}; in the guest, run `modprobe {module}` as root").into()
        })
}

/// Pages that one domain may map, contiguous in our memory. They stay granted until this is dropped.
pub struct Pages {
    /// Closing it ends the grants.
    _file: File,
    start: NonNull<u8>,
    grefs: Vec<u32>,
}

// SAFETY: The mapping belongs to this value alone, and nothing about it depends on the thread.
unsafe impl Send for Pages {}

impl Pages {
    /// Grants `count` zeroed pages to `domain`; without `writable` it may only read them.
    pub fn grant(domain: u16, count: usize, writable: bool) -> Result<Pages> {
        raise_limit(count)?;
        let file = open(GNTALLOC, "xen-gntalloc", 0)?;
        let mut argument = vec![0u32; (ALLOC_HEADER + count).max(ALLOC_SIZE / 4)];
        argument[0] = u32::from(domain) | if writable { ALLOC_WRITABLE << 16 } else { 0 };
        argument[1] = u32::try_from(count).map_err(|_| format!("cannot grant {count} pages"))?;
        // SAFETY: The argument has room for the structure's fixed part and for `count` grant references behind
        // its fourth word, which is all that the kernel writes.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), ALLOC_GREF, argument.as_mut_ptr()) };
        if done != 0 {
            let error = std::io::Error::last_os_error();
            fail!("{GNTALLOC}: cannot grant {count} pages: {error}; is {GNTALLOC_LIMIT} too low, or the guest's memory?");
        }
        let index = i64::from(argument[2]) | (i64::from(argument[3]) << 32);
        // SAFETY: A new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                count * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                index,
            )
        };
        let start = match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => start,
            _ => fail!(
                "{GNTALLOC}: cannot map {count} pages: {}",
                std::io::Error::last_os_error()
            ),
        };
        let grefs = argument[ALLOC_HEADER..ALLOC_HEADER + count].to_vec();
        Ok(Pages {
            _file: file,
            start,
            grefs,
        })
    }

    /// The grant references, one a page.
    pub fn grefs(&self) -> &[u32] {
        &self.grefs
    }

    fn check(&self, at: usize, length: usize) {
        let size = self.grefs.len() * PAGE;
        assert!(
            at <= size && length <= size - at,
            "{length} bytes at {at} are not within {size}"
        );
    }

    /// The 32-bit word at a byte offset, a multiple of 4; the backend may use it at the same time.
    pub fn word(&self, at: usize) -> &AtomicU32 {
        self.check(at, 4);
        assert_eq!(at % 4, 0, "a word at {at} is not aligned");
        // SAFETY: The word is within the mapping, which outlives the reference, and aligned. Everybody here uses
        // it only atomically, or while no reference from here is alive; the backend is no part of this program.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(at).cast()) }
    }

    /// Copies `data` into the pages.
    pub fn write(&mut self, at: usize, data: &[u8]) {
        self.check(at, data.len());
        // SAFETY: The target is within the mapping; `data` is memory of this program and no part of it.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), self.start.as_ptr().add(at), data.len()) };
    }

    /// Sets bytes of the pages to one value.
    pub fn fill(&mut self, at: usize, length: usize, byte: u8) {
        self.check(at, length);
        // SAFETY: The range is within the mapping.
        unsafe { ptr::write_bytes(self.start.as_ptr().add(at), byte, length) };
    }

    /// Copies out of the pages. Meant for pages that no request in flight uses: else the result is a mixture.
    pub fn read(&self, at: usize, data: &mut [u8]) {
        self.check(at, data.len());
        // SAFETY: The source is within the mapping; `data` is memory of this program and no part of it.
        unsafe {
            ptr::copy_nonoverlapping(self.start.as_ptr().add(at), data.as_mut_ptr(), data.len())
        };
    }
}

/// Pages that several threads use at a time, and therefore only word by word. The last one to go ends the grants.
#[derive(Clone)]
pub struct Words(Arc<OnlyWords>);

struct OnlyWords(Pages);

// SAFETY: Only `Words` has one, and it uses nothing but atomic words and what never changes.
unsafe impl Sync for OnlyWords {}

impl Words {
    /// As [`Pages::grant`].
    pub fn grant(domain: u16, count: usize, writable: bool) -> Result<Words> {
        let pages = Pages::grant(domain, count, writable)?;
        Ok(Words(Arc::new(OnlyWords(pages))))
    }

    /// The grant references, one a page.
    pub fn grefs(&self) -> &[u32] {
        self.0 .0.grefs()
    }

    /// The 32-bit word at a byte offset, a multiple of 4; the backend and other threads may use it at the same time.
    pub fn word(&self, at: usize) -> &AtomicU32 {
        self.0 .0.word(at)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: This is the mapping that `grant` made; no reference into it outlives the value.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.grefs.len() * PAGE) };
    }
}

/// The device's limit is 1024 pages for all programs together, too few for deep queues.
fn raise_limit(count: usize) -> Result<()> {
    const ENOUGH: usize = 1 << 18;
    let text = fs::read_to_string(GNTALLOC_LIMIT).map_err(|error| {
        format!("{GNTALLOC_LIMIT}: {error}; in the guest, run `modprobe xen-gntalloc` as root")
    })?;
    if text
        .trim()
        .parse()
        .is_ok_and(|limit: usize| limit >= ENOUGH.max(count))
    {
        return Ok(());
    }
    fs::write(GNTALLOC_LIMIT, ENOUGH.max(count).to_string())
        .map_err(|error| format!("{GNTALLOC_LIMIT}: cannot raise it: {error}; run as root").into())
}

/// An event channel to a backend.
pub struct EventChannel {
    file: File,
    port: u32,
}

impl EventChannel {
    /// Makes a port that `domain` may bind to.
    pub fn new(domain: u16) -> Result<EventChannel> {
        let file = open(EVTCHN, "xen-evtchn", libc::O_NONBLOCK)?;
        let mut remote = u32::from(domain);
        // SAFETY: The argument is the one word that the kernel reads; it writes nothing.
        let port = unsafe { libc::ioctl(file.as_raw_fd(), BIND_UNBOUND_PORT, &raw mut remote) };
        match u32::try_from(port) {
            Ok(port) => Ok(EventChannel { file, port }),
            Err(_) => fail!(
                "{EVTCHN}: no port for domain {domain}: {}",
                std::io::Error::last_os_error()
            ),
        }
    }

    /// Number of the port, for xenstore.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Sends an event to the backend.
    pub fn notify(&self) -> Result<()> {
        let mut port = self.port;
        // SAFETY: The argument is the one word that the kernel reads; it writes nothing.
        if unsafe { libc::ioctl(self.file.as_raw_fd(), NOTIFY, &raw mut port) } != 0 {
            fail!(
                "{EVTCHN}: cannot notify port {port}: {}",
                std::io::Error::last_os_error()
            );
        }
        Ok(())
    }

    /// Waits for an event until `deadline`, and takes it; false if none came.
    pub fn wait(&mut self, deadline: Instant) -> Result<bool> {
        loop {
            if self.take()? {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Ok(false);
            }
            wait_any(&[self], deadline)?;
        }
    }

    /// Takes an event that is there already, and lets the next one through: the kernel masks a port until then.
    pub fn take(&mut self) -> Result<bool> {
        let mut ports = [0u8; 64];
        match self.file.read(&mut ports) {
            Ok(0) => Ok(false),
            Ok(length) => {
                self.file.write_all(&ports[..length]).map_err(|error| {
                    format!("{EVTCHN}: cannot unmask port {}: {error}", self.port)
                })?;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => fail!("{EVTCHN}: {error}"),
        }
    }
}

/// Waits until one of the channels has an event, or until `deadline`; takes nothing.
pub fn wait_any(channels: &[&EventChannel], deadline: Instant) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let milliseconds = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
    let mut polls: Vec<libc::pollfd> = channels
        .iter()
        .map(|channel| libc::pollfd {
            fd: channel.file.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    let count = polls.len() as libc::nfds_t;
    // SAFETY: It is an array of `count` descriptors, which the kernel fills in.
    if unsafe { libc::poll(polls.as_mut_ptr(), count, milliseconds) } < 0 {
        let error = std::io::Error::last_os_error();
        if error.kind() != ErrorKind::Interrupted {
            fail!("{EVTCHN}: poll: {error}");
        }
    }
    Ok(())
}
