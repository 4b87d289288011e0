// SPDX-License-Identifier: GPL-2.0

//! Compares every number of the protocol with the Xen headers, by a C compiler.

mod common;

use std::{
    io::Write,
    process::{
        Command,
        Stdio, //
    }, //
};

use blkif::{
    abi::*,
    Abi,
    Status, //
};

use common::layout;

/// Compiles `source` for the machine that `abi` stands for, without producing anything.
fn compile(abi: Abi, source: &str) -> Result<(), String> {
    let machine = match abi {
        Abi::X86_32 => "-m32",
        Abi::Native | Abi::X86_64 => "-m64",
    };
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut child = Command::new(&compiler)
        .args([machine, "-std=gnu11", "-ffreestanding", "-fsyntax-only"])
        .args(["-x", "c", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("cannot run the C compiler `{compiler}` ({error}); `apt-get install gcc`")
        });
    // Closed at the end of the statement. A compiler that fails early shows in its status.
    let _ = child.stdin.take().unwrap().write_all(source.as_bytes());
    let output = child.wait_with_output().unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

const PROLOGUE: &str = "#include <stddef.h>\n\
                        #include <stdint.h>\n\
                        #include <xen/io/blkif.h>\n\
                        #include <xen/io/protocols.h>\n";

/// Collects equations and compiles them all together.
struct Equations(String);

impl Equations {
    fn new() -> Equations {
        Equations(PROLOGUE.into())
    }

    fn equal(&mut self, expression: &str, value: i64) {
        self.0 += &format!("_Static_assert(({expression}) == {value}, \"is not {value}\");\n");
    }

    fn offset(&mut self, structure: &str, field: &str, value: usize) {
        self.equal(&format!("offsetof({structure}, {field})"), value as i64);
    }

    fn size(&mut self, structure: &str, field: &str, value: usize) {
        self.equal(
            &format!("sizeof((({structure} *)0)->{field})"),
            value as i64,
        );
    }

    fn check(self, abi: Abi) {
        if let Err(message) = compile(abi, PROLOGUE) {
            panic!(
                "the Xen headers do not compile for {}; on Debian they come with \
                 `apt-get install libxen-dev`\n{message}",
                abi.name()
            );
        }
        if let Err(message) = compile(abi, &self.0) {
            panic!("{} is different in the Xen headers:\n{message}", abi.name());
        }
    }
}

/// The check itself works: a wrong equation is found.
#[test]
fn a_difference_is_found() {
    let wrong = format!("{PROLOGUE}_Static_assert(sizeof(struct blkif_request) == 111, \"\");");
    assert!(compile(Abi::X86_64, &wrong).is_err());
}

#[test]
fn layouts() {
    for abi in [Abi::X86_32, Abi::X86_64] {
        let at = layout(abi);
        let mut c = Equations::new();

        let request = "struct blkif_request";
        c.equal("sizeof(struct blkif_request)", abi.request_size() as i64);
        c.offset(request, "operation", at.operation);
        c.offset(request, "nr_segments", at.nr_segments);
        c.offset(request, "handle", at.handle);
        c.offset(request, "id", at.id);
        c.offset(request, "sector_number", at.sector_number);
        c.offset(request, "seg", at.seg);
        let segment = "struct blkif_request_segment";
        c.equal("sizeof(struct blkif_request_segment)", at.seg_size as i64);
        c.offset(segment, "gref", at.seg_gref);
        c.offset(segment, "first_sect", at.seg_first_sect);
        c.offset(segment, "last_sect", at.seg_last_sect);

        let discard = "struct blkif_request_discard";
        c.offset(discard, "operation", at.operation);
        c.offset(discard, "flag", at.discard_flag);
        c.offset(discard, "handle", at.handle);
        c.offset(discard, "id", at.id);
        c.offset(discard, "sector_number", at.sector_number);
        c.offset(discard, "nr_sectors", at.discard_nr_sectors);
        c.size(discard, "flag", 1);
        c.size(discard, "nr_sectors", 8);

        let indirect = "struct blkif_request_indirect";
        c.offset(indirect, "operation", at.operation);
        c.offset(indirect, "indirect_op", at.indirect_op);
        c.offset(indirect, "nr_segments", at.indirect_nr_segments);
        c.offset(indirect, "id", at.id);
        c.offset(indirect, "sector_number", at.sector_number);
        c.offset(indirect, "handle", at.indirect_handle);
        c.offset(indirect, "indirect_grefs", at.indirect_grefs);
        c.size(indirect, "indirect_op", 1);
        c.size(indirect, "nr_segments", 2);
        c.size(indirect, "indirect_grefs", 4 * MAX_INDIRECT_PAGES);
        for structure in [discard, indirect] {
            c.equal(
                &format!("sizeof({structure}) <= sizeof({request})"),
                true.into(),
            );
        }

        let response = "struct blkif_response";
        c.equal("sizeof(struct blkif_response)", abi.response_size() as i64);
        c.offset(response, "id", at.rsp_id);
        c.offset(response, "operation", at.rsp_operation);
        c.offset(response, "status", at.rsp_status);
        c.equal("sizeof(((struct blkif_response *)0)->status)", 2);

        let ring = "struct blkif_sring";
        c.offset(ring, "req_prod", REQ_PROD_OFFSET);
        c.offset(ring, "req_event", REQ_EVENT_OFFSET);
        c.offset(ring, "rsp_prod", RSP_PROD_OFFSET);
        c.offset(ring, "rsp_event", RSP_EVENT_OFFSET);
        c.offset(ring, "ring", RING_HEADER_SIZE);
        c.equal("sizeof(RING_IDX)", 4);
        c.equal("sizeof(union blkif_sring_entry)", abi.slot_size() as i64);

        c.check(abi);
    }
}

#[test]
fn ring_sizes() {
    for abi in [Abi::X86_32, Abi::X86_64] {
        let mut c = Equations::new();
        let slot = abi.slot_size();
        let around = [0, 1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 63, 64]
            .into_iter()
            .flat_map(|slots| [64 + slots * slot, 64 + (slots + 1) * slot - 1]);
        for bytes in around.chain((0..=6).map(|order| 4096 << order)) {
            c.equal(
                &format!("__CONST_RING_SIZE(blkif, {bytes})"),
                abi.ring_entries(bytes).into(),
            );
        }
        c.check(abi);
    }
}

#[test]
fn constants() {
    for abi in [Abi::X86_32, Abi::X86_64] {
        let mut c = Equations::new();
        c.equal("BLKIF_OP_READ", OP_READ.into());
        c.equal("BLKIF_OP_WRITE", OP_WRITE.into());
        c.equal("BLKIF_OP_WRITE_BARRIER", OP_WRITE_BARRIER.into());
        c.equal("BLKIF_OP_FLUSH_DISKCACHE", OP_FLUSH_DISKCACHE.into());
        c.equal("BLKIF_OP_DISCARD", OP_DISCARD.into());
        c.equal("BLKIF_OP_INDIRECT", OP_INDIRECT.into());
        c.equal("BLKIF_RSP_OKAY", Status::Okay as i64);
        c.equal("BLKIF_RSP_ERROR", Status::Error as i64);
        c.equal("BLKIF_RSP_EOPNOTSUPP", Status::NotSupported as i64);
        c.equal("BLKIF_MAX_SEGMENTS_PER_REQUEST", MAX_SEGMENTS as i64);
        c.equal(
            "BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST",
            MAX_INDIRECT_PAGES as i64,
        );
        c.equal(
            &format!("{PAGE_SIZE} / sizeof(struct blkif_request_segment)"),
            SEGMENTS_PER_INDIRECT_PAGE.into(),
        );
        c.equal("BLKIF_DISCARD_SECURE", DISCARD_SECURE.into());
        for (constant, value) in [
            ("XEN_IO_PROTO_ABI_NATIVE", abi.name()),
            ("XEN_IO_PROTO_ABI_X86_32", Abi::X86_32.name()),
            ("XEN_IO_PROTO_ABI_X86_64", Abi::X86_64.name()),
        ] {
            c.equal(&format!("__builtin_strcmp({constant}, \"{value}\")"), 0);
        }
        c.check(abi);
    }
}
