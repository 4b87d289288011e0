// SPDX-License-Identifier: GPL-2.0

//! Values of xenstore nodes: bytes that a frontend or the toolstack has written.
//!
//! A guest can write into its own nodes what it likes, at most a payload of xenstore (4096 bytes). A value
//! that is not what its node is for is an error, never a value that was not written. What names the layout of the
//! rings is [`Abi::from_node`](crate::Abi::from_node).

use core::{
    ffi::CStr,
    fmt, //
};

/// A node's value is not of the form that it has to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed value of a node")
    }
}

/// A decimal number without a sign, such as those of grant references, event channels, features and limits.
///
/// # Errors
///
/// [`Malformed`] if the value is empty, too large for 32 bits, or has anything but decimal digits. White space,
/// a NUL and a sign are no digits.
///
/// # Examples
///
/// ```
/// use blkif::node::{number, Malformed};
///
/// assert_eq!(number(b"51712"), Ok(51712));
/// assert_eq!(number(b"-1"), Err(Malformed));
/// ```
pub fn number(value: &[u8]) -> Result<u32, Malformed> {
    digits(value, 10)
}

/// Major and minor number of a block device, as scripts write them into `physical-device`: hexadecimal, with a
/// colon between.
///
/// # Errors
///
/// [`Malformed`] if the value has another form, or if a number is too large for 32 bits. Whether there is such
/// a device is another question.
///
/// # Examples
///
/// ```
/// use blkif::node::device_numbers;
///
/// assert_eq!(device_numbers(b"fd:1f"), Ok((253, 31)));
/// ```
pub fn device_numbers(value: &[u8]) -> Result<(u32, u32), Malformed> {
    let mut parts = value.splitn(2, |&byte| byte == b':');
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) => Ok((digits(major, 16)?, digits(minor, 16)?)),
        _ => Err(Malformed),
    }
}

/// A number of the given base, 2 to 16.
fn digits(value: &[u8], base: u32) -> Result<u32, Malformed> {
    if value.is_empty() {
        return Err(Malformed);
    }
    value.iter().try_fold(0u32, |number, byte| {
        let digit = char::from(*byte).to_digit(base).ok_or(Malformed)?;
        number
            .checked_mul(base)
            .and_then(|number| number.checked_add(digit))
            .ok_or(Malformed)
    })
}

/// State of one end of a device (`enum xenbus_state`, xen/include/public/io/xenbus.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum State {
    /// No node, or one that cannot be read: the end is gone.
    Unknown = 0,
    /// The end has been created and has said nothing yet.
    Initialising = 1,
    /// The end has published what it offers, and waits for the other.
    InitWait = 2,
    /// The end has published everything, and waits for the other to connect.
    Initialised = 3,
    /// The end is ready for I/O.
    Connected = 4,
    /// The end wants the connection to be closed.
    Closing = 5,
    /// The end has closed the connection.
    Closed = 6,
    /// Used for PCI pass-through only.
    Reconfiguring = 7,
    /// Used for PCI pass-through only.
    Reconfigured = 8,
    /// A number that the protocol does not define.
    Invalid = u32::MAX,
}

impl State {
    /// The state with this number; [`State::Invalid`] for what the protocol does not define.
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Unknown,
            1 => Self::Initialising,
            2 => Self::InitWait,
            3 => Self::Initialised,
            4 => Self::Connected,
            5 => Self::Closing,
            6 => Self::Closed,
            7 => Self::Reconfiguring,
            8 => Self::Reconfigured,
            _ => Self::Invalid,
        }
    }
}

/// How the toolstack lets the guest use the disk (node `mode`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskMode {
    /// The guest may write.
    pub writable: bool,
    /// The administrator knows that others write as well (`w!`).
    pub shared: bool,
}

impl DiskMode {
    /// From the value of the node: as in the in-tree driver, a `w` anywhere makes it writable.
    ///
    /// # Examples
    ///
    /// ```
    /// use blkif::node::DiskMode;
    ///
    /// assert!(DiskMode::from_node(b"w!").writable);
    /// assert!(!DiskMode::from_node(b"").writable);
    /// ```
    pub fn from_node(mode: &[u8]) -> Self {
        DiskMode {
            writable: mode.contains(&b'w'),
            shared: mode.contains(&b'!'),
        }
    }

    /// As it is written: `r`, `w` or `w!`.
    pub const fn text(self) -> &'static CStr {
        match (self.writable, self.shared) {
            (false, _) => c"r",
            (true, false) => c"w",
            (true, true) => c"w!",
        }
    }
}

/// What sets up the disk for the toolstack (node `script`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Script {
    /// The one that libxl uses for a disk without one of its own: `block`, in whatever directory.
    Stock,
    /// The one that stands in for it, with a suffix to its name.
    Helper,
    /// Another one.
    Other,
}

impl Script {
    /// From the value of the node; `suffix` is what the helper's name ends with.
    ///
    /// # Examples
    ///
    /// ```
    /// use blkif::node::Script;
    ///
    /// assert_eq!(Script::from_node(b"/etc/xen/scripts/block", b"-own"), Script::Stock);
    /// assert_eq!(Script::from_node(b"/etc/xen/scripts/block-own", b"-own"), Script::Helper);
    /// assert_eq!(Script::from_node(b"/etc/xen/scripts/block-nbd", b"-own"), Script::Other);
    /// ```
    pub fn from_node(script: &[u8], suffix: &[u8]) -> Self {
        let is_stock = |path: &[u8]| path.ends_with(b"/block");
        if is_stock(script) {
            Self::Stock
        } else if script.strip_suffix(suffix).is_some_and(is_stock) {
            Self::Helper
        } else {
            Self::Other
        }
    }
}

/// The medium that the toolstack names (node `params`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Params<'a> {
    /// None: a drive may be empty.
    Nothing,
    /// An absolute path.
    Absolute(&'a CStr),
    /// A path relative to a directory that only the toolstack knows, or what is no path at all.
    Relative,
}

impl<'a> Params<'a> {
    /// From the value of the node. libxl puts the format before the path when it changes a medium: `raw:`.
    ///
    /// # Examples
    ///
    /// ```
    /// use blkif::node::Params;
    ///
    /// assert_eq!(Params::from_node(c"raw:/disk"), Params::Absolute(c"/disk"));
    /// assert_eq!(Params::from_node(c"raw:"), Params::Nothing);
    /// assert_eq!(Params::from_node(c"raw:disk"), Params::Relative);
    /// ```
    pub fn from_node(node: &'a CStr) -> Self {
        let bytes = node.to_bytes_with_nul();
        let path = bytes
            .strip_prefix(b"raw:")
            .filter(|rest| rest.starts_with(b"/") || rest.starts_with(b"\0"))
            .unwrap_or(bytes);
        match (path, CStr::from_bytes_with_nul(path)) {
            ([0, ..], _) => Params::Nothing,
            ([b'/', ..], Ok(path)) => Params::Absolute(path),
            _ => Params::Relative,
        }
    }
}
