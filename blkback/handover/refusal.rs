// SPDX-License-Identifier: GPL-2.0

//! Why a file does not become a medium.

#![forbid(unsafe_code)]

use kernel::{
    fmt::{
        self,
        Display, //
    },
    prelude::*,
    str::CString, //
};

/// Why a file does not become a medium. Shown, it is what the administrator is told.
pub(crate) struct Refusal {
    /// As the toolstack has it. There may be no memory for it.
    path: Option<CString>,
    why: Why,
}

/// What is wrong with a file, or with who has it.
pub(super) enum Why {
    /// What is at the path is no regular file.
    NotRegular,
    /// As above, for a drive of a guest that runs.
    NotForDrive,
    /// The path of a medium for a drive is a relative one.
    Relative,
    /// It has no byte.
    Empty,
    /// A guest is to write to it, and nobody may.
    WriteProtected,
    /// A disk of another guest has it, and may write to it.
    Guest { domid: u16, writes: bool },
    /// A loop device of this domain has it: major and minor number.
    Loop((u32, u32)),
    /// Somebody in this domain writes to it.
    Writer,
    /// This domain swaps to it.
    Swap,
    /// It cannot be looked up or opened for this.
    Unopened(Purpose, Error),
}

/// What a file is to be opened for.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Reading,
    Writing,
    /// To be served.
    Guest,
}

impl Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reading => "reading",
            Self::Writing => "writing",
            Self::Guest => "the guest",
        })
    }
}

impl Why {
    /// Of the file at `path`.
    pub(super) fn of(self, path: &CStr) -> Refusal {
        Refusal {
            path: CString::try_from(path).ok(),
            why: self,
        }
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path: &CStr = self.path.as_deref().unwrap_or(c"a file");
        if let Why::WriteProtected = self.why {
            // As the stock script has it.
            return f.write_fmt(fmt!(
                "File {} is read-only, and so I will not mount it read-write in a guest domain.",
                path
            ));
        }
        f.write_fmt(fmt!("{}: ", path))?;
        match self.why {
            Why::NotRegular => f.write_str("no regular file"),
            Why::NotForDrive => {
                f.write_str("only a regular file can be put into the drive of a running guest")
            }
            Why::Relative => f.write_str("a medium needs an absolute path"),
            Why::Empty => f.write_str("the file is empty; give it a size with truncate -s"),
            Why::WriteProtected => Ok(()),
            Why::Guest { domid, writes } => f.write_fmt(fmt!(
                "already in use by guest {} for {}; only readers can share a file (mode 'w!' shares it all the same)",
                domid,
                if writes { Purpose::Writing } else { Purpose::Reading },
            )),
            Why::Loop((major, minor)) => f.write_fmt(fmt!(
                "already in use in this domain by loop device {}:{}; umount and losetup -d it first (mode 'w!' shares \
                 the file all the same)",
                major,
                minor
            )),
            Why::Writer => f.write_str(
                "already in use in this domain by somebody who writes to it (see losetup -a and fuser -v); end that \
                 first (mode 'w!' shares the file all the same)",
            ),
            Why::Swap => f.write_str("this domain swaps to it; swapoff first"),
            Why::Unopened(purpose, err) => f.write_fmt(fmt!(
                "cannot be opened for {}: {}",
                purpose,
                explain(err)
            )),
        }
    }
}

/// What an error means for somebody who wants to use a file.
fn explain(err: Error) -> &'static str {
    match err {
        _ if err == EACCES || err == EPERM => "permission denied (see ls -l and lsattr)",
        _ if err == EROFS => "it is on a read-only file system; use mode 'r' or remount it",
        _ if err == ENOENT => "no such file",
        _ if err == EISDIR => "it is a directory",
        _ if err == ETXTBSY => "it is being executed or used for swapping",
        _ if err == EIO => "I/O error",
        _ if err == ENOMEM => "out of memory",
        _ if err == ENFILE => "too many open files",
        _ => "see the kernel log",
    }
}
