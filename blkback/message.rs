// SPDX-License-Identifier: GPL-2.0

//! Messages for the administrator.

#![forbid(unsafe_code)]

use core::ops::Deref;

use kernel::{
    fmt,
    prelude::*,
    str::CString, //
};

/// What to tell somebody; that memory is short where there was none for the text.
pub(crate) struct Message(Option<CString>);

impl Message {
    pub(crate) fn new(text: fmt::Arguments<'_>) -> Self {
        Self(CString::try_from_fmt(text).ok())
    }
}

impl Deref for Message {
    type Target = CStr;

    fn deref(&self) -> &CStr {
        match &self.0 {
            Some(text) => text,
            None => c"out of memory",
        }
    }
}
