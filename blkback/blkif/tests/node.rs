// SPDX-License-Identifier: GPL-2.0

//! Values of xenstore nodes, good and bad.

use blkif::node::{
    device_numbers,
    number,
    DiskMode,
    Malformed,
    Params,
    Script,
    State, //
};
use std::ffi::{
    CStr,
    CString, //
};

use proptest::prelude::*;

#[test]
fn numbers() {
    for (value, expected) in [
        (&b"0"[..], Ok(0)),
        (b"8", Ok(8)),
        (b"00000000000000000008", Ok(8)),
        (b"4294967295", Ok(u32::MAX)),
        (b"4294967296", Err(Malformed)),
        (b"42949672950", Err(Malformed)),
        (b"99999999999999999999999999999999", Err(Malformed)),
        (b"", Err(Malformed)),
        (b"-1", Err(Malformed)),
        (b"+1", Err(Malformed)),
        (b" 1", Err(Malformed)),
        (b"1 ", Err(Malformed)),
        (b"1\n", Err(Malformed)),
        (b"1\0", Err(Malformed)),
        (b"\0", Err(Malformed)),
        (b"0x10", Err(Malformed)),
        (b"1a", Err(Malformed)),
        (b"1.0", Err(Malformed)),
        (b"1/2", Err(Malformed)),
        (b"1:2", Err(Malformed)),
        // Digits of other scripts, and bytes that would be digits but for one bit.
        (b"\xd9\xa1", Err(Malformed)),
        (b"\xb1", Err(Malformed)),
    ] {
        assert_eq!(number(value), expected, "{value:?}");
    }
    assert_eq!(number(&[b'0'; 4096]), Ok(0));
    assert_eq!(number(&[b'9'; 4096]), Err(Malformed));
    assert_eq!(Malformed.to_string(), "malformed value of a node");
}

#[test]
fn scripts() {
    for (value, expected) in [
        (&b"/etc/xen/scripts/block"[..], Script::Stock),
        (b"/block", Script::Stock),
        (b"/etc/xen/scripts/block-x", Script::Helper),
        (b"/block-x", Script::Helper),
        (b"block", Script::Other),
        (b"block-x", Script::Other),
        (b"/etc/xen/scripts/myblock", Script::Other),
        (b"/etc/xen/scripts/block/", Script::Other),
        (b"/etc/xen/scripts/block\0", Script::Other),
        (b"/etc/xen/scripts/block-x-x", Script::Other),
        (b"/etc/xen/scripts/block-xx", Script::Other),
        (b"/etc/xen/scripts/block-", Script::Other),
        (b"-x", Script::Other),
        (b"", Script::Other),
    ] {
        assert_eq!(Script::from_node(value, b"-x"), expected, "{value:?}");
    }
}

#[test]
fn numbers_of_devices() {
    for (value, expected) in [
        (&b"0:0"[..], Ok((0, 0))),
        (b"fd:1f", Ok((0xfd, 0x1f))),
        (b"FD:1F", Ok((0xfd, 0x1f))),
        (b"7:a", Ok((7, 10))),
        (b"ffffffff:ffffffff", Ok((u32::MAX, u32::MAX))),
        (b"100000000:0", Err(Malformed)),
        (b"0:100000000", Err(Malformed)),
        (b"", Err(Malformed)),
        (b":", Err(Malformed)),
        (b"fd", Err(Malformed)),
        (b"fd:", Err(Malformed)),
        (b":1f", Err(Malformed)),
        (b"fd:1f:0", Err(Malformed)),
        (b"fd::1f", Err(Malformed)),
        (b"fd:1f\n", Err(Malformed)),
        (b"fd: 1f", Err(Malformed)),
        (b"0xfd:1f", Err(Malformed)),
        (b"-1:0", Err(Malformed)),
        (b"g:0", Err(Malformed)),
        (b"/dev/sda", Err(Malformed)),
    ] {
        assert_eq!(device_numbers(value), expected, "{value:?}");
    }
}

#[test]
fn modes() {
    for (value, writable, shared, text) in [
        (&b"r"[..], false, false, c"r"),
        (b"w", true, false, c"w"),
        (b"w!", true, true, c"w!"),
        (b"rw", true, false, c"w"),
        // Nothing that is not said lets a guest write.
        (b"", false, false, c"r"),
        (b"r!", false, true, c"r"),
        (b"W", false, false, c"r"),
        (b"\0", false, false, c"r"),
    ] {
        let mode = DiskMode::from_node(value);
        assert_eq!(
            (mode.writable, mode.shared),
            (writable, shared),
            "{value:?}"
        );
        assert_eq!(mode.text(), text, "{value:?}");
    }
}

proptest! {
    #[test]
    fn what_was_written_is_read(any in any::<u32>(), other in any::<u32>()) {
        prop_assert_eq!(number(any.to_string().as_bytes()), Ok(any));
        prop_assert_eq!(device_numbers(format!("{any:x}:{other:X}").as_bytes()), Ok((any, other)));
    }

    #[test]
    fn a_number_that_is_read_was_written(value in prop::collection::vec(any::<u8>(), 0..12)) {
        if let Ok(found) = number(&value) {
            prop_assert!(value.iter().all(u8::is_ascii_digit));
            let text = String::from_utf8(value).unwrap();
            let significant = text.trim_start_matches('0');
            prop_assert_eq!(if significant.is_empty() { "0" } else { significant }, found.to_string());
        }
    }
}

#[test]
fn states() {
    for number in 0..=8 {
        assert_eq!(State::from_number(number) as u32, number);
    }
    for number in [9, 256, u32::MAX] {
        assert_eq!(State::from_number(number), State::Invalid);
    }
}

#[test]
fn params() {
    for (node, expected) in [
        (c"", Params::Nothing),
        (c"raw:", Params::Nothing),
        (c"/disk", Params::Absolute(c"/disk")),
        (c"raw:/disk", Params::Absolute(c"/disk")),
        (c"/raw:/disk", Params::Absolute(c"/raw:/disk")),
        (c"disk", Params::Relative),
        // The file of this name, and not one of the name behind the colon.
        (c"raw:disk", Params::Relative),
        (c"qcow2:/disk", Params::Relative),
        (c"raw:raw:/disk", Params::Relative),
        (c" /disk", Params::Relative),
    ] {
        assert_eq!(Params::from_node(node), expected, "{node:?}");
    }
}

proptest! {
    /// A path is the end of the node, as it is written there.
    #[test]
    fn params_are_not_changed(bytes in proptest::collection::vec(1..=255u8, 0..40)) {
        let node = CString::new(bytes).unwrap();
        let rest = |path: &CStr| node.to_bytes().ends_with(path.to_bytes());
        match Params::from_node(&node) {
            Params::Absolute(path) => prop_assert!(rest(path) && path.to_bytes().starts_with(b"/")),
            Params::Nothing => prop_assert!(matches!(node.to_bytes(), b"" | b"raw:")),
            Params::Relative => prop_assert!(!node.to_bytes().starts_with(b"/")),
        }
    }
}
