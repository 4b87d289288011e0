// SPDX-License-Identifier: GPL-2.0

//! Which layout a frontend uses, and how many slots fit.

mod common;

use blkif::{
    abi::{
        indirect_pages,
        operation_name,
        MAX_INDIRECT_PAGES,
        MAX_INDIRECT_SEGMENTS,
        MAX_SEGMENTS,
        SEGMENTS_PER_INDIRECT_PAGE, //
    },
    Abi,
    UnknownProtocol, //
};

use common::ABIS;

/// The C driver's `xenbus_scanf(.., "%63s", ..)` decides; values worked out from `vsscanf()`.
#[test]
fn protocol_node() {
    let native = Ok(Abi::Native);
    let x86_32 = Ok(Abi::X86_32);
    let unknown = Err(UnknownProtocol);
    let long = [b'x'; 200];
    for (node, expected) in [
        (None, x86_32),
        (Some(&b""[..]), x86_32),
        (Some(b"\0"), x86_32),
        (Some(b"\0x86_64-abi"), x86_32),
        (Some(b"x86_64-abi"), native),
        (Some(b"x86_32-abi"), x86_32),
        (Some(b"x86_64-abi\0"), native),
        (Some(b"x86_64-abi\0junk"), native),
        (Some(b"x86_64-abi\n"), native),
        (Some(b"x86_64-abi junk"), native),
        (Some(b"x86_64-abi\xa0junk"), native),
        (Some(b" \t\r\n\x0b\x0c\xa0x86_32-abi"), x86_32),
        (Some(b" x86_64-abi "), native),
        (Some(b" "), unknown),
        (Some(b" \0x86_64-abi"), unknown),
        (Some(b"x86_64-ab"), unknown),
        (Some(b"x86_64-abix"), unknown),
        (Some(b"X86_64-ABI"), unknown),
        (Some(b"arm-abi"), unknown),
        (Some(b"x86_64\0-abi"), unknown),
        (Some(b"\x01x86_64-abi"), unknown),
        (Some(b"\x0ex86_64-abi"), unknown),
        (Some(b"\x08x86_64-abi"), unknown),
        (Some(&long), unknown),
    ] {
        assert_eq!(Abi::from_node(node), expected, "{node:?}");
    }
    assert_eq!(
        UnknownProtocol.to_string(),
        "unknown protocol (known are x86_32-abi and x86_64-abi)"
    );
}

#[test]
fn native_is_x86_64() {
    let (native, x86_64) = (Abi::Native, Abi::X86_64);
    assert_eq!(native.name(), x86_64.name());
    assert_eq!(native.request_size(), x86_64.request_size());
    assert_eq!(native.response_size(), x86_64.response_size());
    assert_eq!(native.slot_size(), x86_64.slot_size());
    assert_eq!(native.ring_entries(4096), x86_64.ring_entries(4096));
}

#[test]
fn slots_of_a_ring() {
    for abi in ABIS {
        assert_eq!(abi.slot_size(), abi.request_size().max(abi.response_size()));
        for (order, slots) in [32, 64, 128, 256, 512, 1024].into_iter().enumerate() {
            assert_eq!(abi.ring_entries(4096 << order), slots);
        }
        for bytes in 0..20_000 {
            let slots = abi.ring_entries(bytes) as usize;
            let fit = bytes.saturating_sub(64) / abi.slot_size();
            assert!(slots <= fit && (fit == 0 || 2 * slots > fit));
            assert!(slots == 0 || slots.is_power_of_two());
        }
        assert_eq!(abi.ring_entries(64 + (abi.slot_size() << 29)), 1 << 29);
        assert_eq!(abi.ring_entries(64 + (abi.slot_size() << 30)), 1 << 30);
        assert_eq!(abi.ring_entries(64 + (abi.slot_size() << 31)), 1 << 30);
        assert_eq!(abi.ring_entries(usize::MAX), 1 << 30);
    }
}

#[test]
fn operation_names() {
    let names: Vec<_> = (0..=7).map(operation_name).collect();
    assert_eq!(
        names,
        [
            "read",
            "write",
            "write barrier",
            "flush",
            "unknown",
            "discard",
            "indirect",
            "unknown"
        ]
    );
}

#[test]
fn pages_of_segments() {
    for (segments, pages) in [
        (0, 0),
        (1, 1),
        (MAX_SEGMENTS as u16, 1),
        (MAX_INDIRECT_SEGMENTS, 1),
        (511, 1),
        (512, 1),
        (513, 2),
        (1024, 2),
        (1025, 3),
        (4095, 8),
        (4096, 8),
        (4097, 9),
        (u16::MAX, 128),
    ] {
        assert_eq!(indirect_pages(segments), pages, "{segments}");
    }
    let most = MAX_INDIRECT_PAGES * usize::from(SEGMENTS_PER_INDIRECT_PAGE);
    assert_eq!(indirect_pages(most as u16), MAX_INDIRECT_PAGES);
    assert_eq!(MAX_INDIRECT_SEGMENTS, 256);
}
