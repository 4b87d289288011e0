// SPDX-License-Identifier: GPL-2.0

//! A client of xenstore, through the guest's `/dev/xen/xenbus`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};

use crate::error::{fail, Result};

const DEVICE: &str = "/dev/xen/xenbus";

// Message types of xen/include/public/io/xs_wire.h.
const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 11;
const RM: u32 = 13;
const ERROR: u32 = 16;
/// No message carries more.
const PAYLOAD_MAX: usize = 4096;

/// A connection to xenstore. Paths may be relative to the guest's own directory.
pub struct Store {
    device: File,
}

impl Store {
    /// Connects.
    pub fn open() -> Result<Store> {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open(DEVICE)
            .map_err(|error| {
                format!("{DEVICE}: {error}; this program has to run as root, in a Xen guest")
            })?;
        Ok(Store { device })
    }

    /// Sends one message and returns the answer's payload, or the name of the error that xenstore gives.
    fn call(&mut self, kind: u32, payload: &[u8]) -> Result<std::result::Result<Vec<u8>, String>> {
        if payload.len() > PAYLOAD_MAX {
            fail!("xenstore: a message of {} bytes is too long", payload.len());
        }
        let mut message = Vec::with_capacity(16 + payload.len());
        for field in [kind, 0, 0, payload.len() as u32] {
            message.extend_from_slice(&field.to_le_bytes());
        }
        message.extend_from_slice(payload);
        self.device
            .write_all(&message)
            .map_err(|error| format!("{DEVICE}: {error}"))?;
        let mut header = [0; 16];
        self.device
            .read_exact(&mut header)
            .map_err(|error| format!("{DEVICE}: {error}"))?;
        let field = |number: usize| {
            u32::from_le_bytes(std::array::from_fn(|byte| header[number * 4 + byte]))
        };
        let mut answer = vec![0; (field(3) as usize).min(PAYLOAD_MAX)];
        self.device
            .read_exact(&mut answer)
            .map_err(|error| format!("{DEVICE}: {error}"))?;
        if field(0) == ERROR {
            return Ok(Err(text(&answer)));
        }
        if field(0) != kind {
            fail!(
                "{DEVICE}: an answer of type {} to a request of type {kind}",
                field(0)
            );
        }
        Ok(Ok(answer))
    }

    /// The value of a node; `None` if there is no such node.
    pub fn read(&mut self, path: &str) -> Result<Option<String>> {
        match self.call(READ, &terminated(path))? {
            Ok(value) => Ok(Some(text(&value))),
            Err(error) if error == "ENOENT" => Ok(None),
            Err(error) => fail!("xenstore: reading {path}: {error}"),
        }
    }

    /// The value of a node as a number; `None` if there is no such node.
    pub fn number<T: std::str::FromStr>(&mut self, path: &str) -> Result<Option<T>> {
        match self.read(path)? {
            None => Ok(None),
            Some(value) => match value.trim().parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => fail!("xenstore: {path} is {value:?}, expected a number"),
            },
        }
    }

    /// Names of the nodes below a node.
    pub fn list(&mut self, path: &str) -> Result<Vec<String>> {
        match self.call(DIRECTORY, &terminated(path))? {
            Ok(names) => Ok(names
                .split(|&byte| byte == 0)
                .filter(|name| !name.is_empty())
                .map(text)
                .collect()),
            Err(error) if error == "ENOENT" => Ok(Vec::new()),
            Err(error) => fail!("xenstore: listing {path}: {error}"),
        }
    }

    /// Sets the value of a node, which comes into being if need be.
    pub fn write(&mut self, path: &str, value: &str) -> Result<()> {
        let mut payload = terminated(path);
        payload.extend_from_slice(value.as_bytes());
        match self.call(WRITE, &payload)? {
            Ok(_) => Ok(()),
            Err(error) => fail!("xenstore: writing {value:?} to {path}: {error}"),
        }
    }

    /// Removes a node and all below it; one that is not there is removed already.
    pub fn remove(&mut self, path: &str) -> Result<()> {
        match self.call(RM, &terminated(path))? {
            Err(error) if error != "ENOENT" => fail!("xenstore: removing {path}: {error}"),
            _ => Ok(()),
        }
    }
}

fn terminated(path: &str) -> Vec<u8> {
    let mut bytes = path.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches('\0')
        .to_owned()
}
