// SPDX-License-Identifier: GPL-2.0

//! Values of xenstore nodes.

use std::ffi::{CStr, CString};

use blkif::node::{device_numbers, number, DiskMode, Params};
use blkif::Abi;

/// Any value, for all parsers.
pub fn run(data: &[u8]) {
    let text = std::str::from_utf8(data).ok();

    let digits = |text: &str, radix| -> Option<u32> {
        // from_str_radix() takes a sign.
        let plain = !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
        plain
            .then(|| u32::from_str_radix(text, radix).ok())
            .flatten()
    };
    let found = number(data).ok();
    assert_eq!(found, text.and_then(|text| digits(text, 10)));
    if let Some(number) = found {
        assert_eq!(
            blkif::node::number(number.to_string().as_bytes()),
            Ok(number)
        );
    }

    let found = device_numbers(data).ok();
    let expected = text
        .and_then(|text| text.split_once(':'))
        .and_then(|(major, minor)| Some((digits(major, 16)?, digits(minor, 16)?)));
    assert_eq!(found, expected);
    if let Some((major, minor)) = found {
        assert_eq!(
            device_numbers(format!("{major:x}:{minor:x}").as_bytes()),
            Ok((major, minor))
        );
    }

    let mode = DiskMode::from_node(data);
    assert_eq!(
        (mode.writable, mode.shared),
        (data.contains(&b'w'), data.contains(&b'!'))
    );
    // What is shown says whether it can be written, and means the same when it is read.
    let shown = DiskMode::from_node(mode.text().to_bytes());
    assert_eq!(shown.writable, mode.writable);
    assert_eq!(shown.shared, mode.shared && mode.writable);

    if let Ok(node) = CString::new(data) {
        assert_eq!(Params::from_node(&node), medium(&node));
    }

    assert_eq!(Abi::from_node(Some(data)).ok(), protocol(data));
    if let Ok(abi) = Abi::from_node(Some(data)) {
        assert_eq!(Abi::from_node(Some(abi.name().as_bytes())), Ok(abi));
    }
}

/// A path without the format that may stand before it, if what is left is one, or nothing.
fn medium(node: &CStr) -> Params<'_> {
    let start = match node.to_bytes() {
        b"raw:" => return Params::Nothing,
        [b'r', b'a', b'w', b':', b'/', ..] => 4,
        _ => 0,
    };
    let path = CStr::from_bytes_with_nul(&node.to_bytes_with_nul()[start..]).unwrap();
    match path.to_bytes().first() {
        None => Params::Nothing,
        Some(b'/') => Params::Absolute(path),
        Some(_) => Params::Relative,
    }
}

/// What the C driver's `xenbus_scanf(.., "%63s", ..)` would find, one byte after the other.
fn protocol(data: &[u8]) -> Option<Abi> {
    let mut name = Vec::new();
    for &byte in data {
        let space = [b' ', b'\t', b'\n', 0x0b, 0x0c, b'\r', 0xa0].contains(&byte);
        match (byte, space, name.is_empty()) {
            (0, ..) => break,
            (_, true, true) => continue,
            (_, true, false) => break,
            _ => name.push(byte),
        }
    }
    // Without a value there is the default; with nothing but space there is no name.
    if data.first().is_none_or(|&byte| byte == 0) {
        return Some(Abi::X86_32);
    }
    match &name[..] {
        b"x86_32-abi" => Some(Abi::X86_32),
        b"x86_64-abi" => Some(Abi::Native),
        _ => None,
    }
}

/// Values as they are written, and some that are nearly so.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        "0",
        "8",
        "51712",
        "4294967295",
        "4294967296",
        "-1",
        "fd:1f",
        "7:a",
        "ffffffff:100000000",
        "raw:/disk",
        "raw:",
        "r",
        "w",
        "w!",
        "x86_32-abi",
        "x86_64-abi",
        " x86_64-abi\n",
        "arm-abi",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect()
}
