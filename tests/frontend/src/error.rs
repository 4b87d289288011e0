// SPDX-License-Identifier: GPL-2.0

//! One error type: a sentence for the person who runs the program, and the exit status that goes with it.

use std::fmt;

/// What went wrong, in words that name the node, the file or the request.
#[derive(Debug)]
pub enum Error {
    /// Something failed.
    Failed(String),
    /// The backend does not offer what the options ask for; nothing was tested.
    NotOffered(String),
}

/// The result of nearly every function here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The exit status of the program.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Failed(_) => 2,
            Error::NotOffered(_) => 3,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Failed(text) | Error::NotOffered(text) => f.write_str(text),
        }
    }
}

impl From<String> for Error {
    fn from(text: String) -> Error {
        Error::Failed(text)
    }
}

/// Returns from the function with an [`Error::Failed`] of the formatted text.
macro_rules! fail {
    ($($text:tt)*) => { return Err($crate::error::Error::Failed(format!($($text)*))) };
}
pub(crate) use fail;
