"""Requests of every kind, right and wrong, get the answers that the protocol demands, on a file, a device, a disk to
read.

Each row of the table in tests/frontend/src/conformance/table.rs is one request. Then random requests are put on the
rings, and what is read is compared with what was written; in every layout of the ring that the backend offers. Requests
that follow one another in a file are done together, and only those fail that touch a block which cannot be accessed.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from lib import tracing
from lib.basics import Failure, check, equal, log, read, sh
from lib.env import Env, block_of, md5
from lib.guest import Guest

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 360
ESTIMATE = 100
SIZE = 16 << 20
REQUESTS = 500
# Sizes of requests in KiB that follow one another, how many, and how many of these are done together.
IN_A_ROW = ((8, 32, 4), (16, 32, 2), (128, 32, 4), (512, 8, 2))
EVENTS = ("iomap/iomap_dio_rw_begin", f"{tracing.OURS}/xen_blkback_rs_start")


def run(env: Env) -> None:
    if env.backend != "qdisk":  # as on a machine with more processors
        env.parameter("max_queues", 4)
    image = env.file("ext4", "disk", SIZE)
    read_only = env.file("ext4", "read-only", SIZE, fill="read only")
    before = md5(read_only)
    disks = {"xvda": env.disk(image, "xvda"), "xvdb": env.disk(env.device(SIZE >> 20), "xvdb")}
    if env.backend != "qdisk":  # qemu 10.0 does not take a file that it may not write
        disks["xvdc"] = env.disk(read_only, "xvdc", access="r")
    joined = JoinedFile(env) if env.backend == "rs" else None
    more = [env.disk(joined.path, "xvdd")] if joined else []
    guest = env.guest(*disks.values(), *more, frontend=True)
    for vdev in disks:
        for abi in ("native", "x86_32"):
            conformance(guest, vdev, f"--abi {abi}")
    equal(md5(read_only), before, "checksum of the read-only file")

    layouts = offered(guest, "xvda")
    for options in layouts:
        if "--indirect" not in options:  # the table has indirect requests in any case
            conformance(guest, "xvda", options)
    requests = env.count(REQUESTS)
    abis = ["native", "x86_32", "x86_64"]
    if env.backend != "qdisk":  # qemu 10.0 takes a frontend that does not name its layout for one of its own
        abis.append("default")
    for number, options in enumerate([*(f"--abi {abi}" for abi in abis), *layouts]):
        vdev = ("xvda", "xvdb")[number % 2]
        frontend(guest, f"verify --vdev {vdev} --requests {requests} --seed {number + 1} {options}")
    for vdev in ("xvda", "xvdb"):
        report = frontend(guest, f"load --vdev {vdev} --depth 32 --reads 50 --seconds 1")
        check(report["requests"] > 0 and report["errors"] == 0, f"load on {vdev}: {report}")
        if env.backend == "rs":
            known = superfluous(guest, vdev)
            report = frontend(guest, f"load --vdev {vdev} --depth 2 --reads 50 --seconds 2")
            found, sent = superfluous(guest, vdev) - known, report["notifications"]
            log(f"    {found} of {sent} events were taken for superfluous")
            # A request can be found while its event is on the way: 2 % were seen on two processors, and 7 % on one
            # whose host was busy, since what interrupts then are other machines. A driver that reports wrongly reports
            # nearly all.
            check(found <= sent / 4, f"{found} of {sent} events of {vdev} were reported as superfluous")
    if env.backend == "rs":
        names = ("pages_mapped", "pages_copied", "pages_persistent", "refused")
        counted = {name: int(read(f"{guest.statistics('xvda')}/{name}")) for name in names}
        log(f"counted: {counted}")
        check(all(counted.values()), f"not all ways to make a page accessible were used, or nothing refused: {counted}")
    if joined:
        joined.run(guest)
    guest.shutdown()
    equal(md5(read_only), before, "checksum of the read-only file")


class JoinedFile:
    """A file whose requests are done together where they follow one another, and a block of which can be made bad."""

    def __init__(self, env: Env) -> None:
        self.device = env.device(64, 1)
        mount = Path("/mnt/joined")
        mount.mkdir(exist_ok=True)
        sh(f"mkfs.ext4 -q -F -b 4096 {self.device}; mount {self.device} {mount}")
        env.at_end(f"umount {mount}")
        self.path = mount / "disk"
        # No holes, and nothing in the page cache.
        sh(f"dd if=/dev/zero of={self.path} bs=1M count={SIZE >> 20} oflag=direct conv=fsync 2>/dev/null")
        self.table = sh(f"dmsetup table {self.device}").split()

    def run(self, guest: Guest) -> None:
        for size, count, together in IN_A_ROW:
            for reads in (0, 100):
                failed, ios, _ = self.traced(
                    guest, f"load --sequential --size {size} --requests {count} --depth {count} --reads {reads}"
                )
                equal(failed, [], "requests that failed")
                length = together * size << 10
                equal(
                    sorted(ios),
                    [(n * length, length) for n in range(count // together)],
                    f"I/Os of {count} requests of {size} KiB",
                )

        _, ios, requests = self.traced(guest, f"verify --area 4 --requests {REQUESTS} --indirect 32")
        several = len(set(ios) - set(requests))
        log(f"    {len(ios)} I/Os for {len(requests)} requests, {several} of them for several requests")
        check(several > REQUESTS // 50, f"only {several} I/Os for more than one of {REQUESTS} random requests")

        # The second of the four requests that are done together meets a bad block, in its middle.
        size, count, bad = 128, 8, 5
        write = f"load --sequential --size {size} --requests {count} --depth {count} --reads 0"
        self.traced(guest, write)
        good = self.pieces(size << 10, count)
        sh(f"dd if=/dev/zero of={self.path} bs=1M count={SIZE >> 20} oflag=direct conv=notrunc,fsync 2>/dev/null")
        self.spoil((bad * size + size // 2) << 10)
        for options in (write, write.replace("--reads 0", "--reads 100")):
            counters = [f"{guest.statistics('xvdd')}/{name}" for name in ("rd_err", "wr_err")]
            errors = [int(read(counter)) for counter in counters]
            failed, ios, _ = self.traced(guest, options)
            errors[0 if "--reads 100" in options else 1] += 1
            equal(
                [int(read(counter)) for counter in counters], errors, f"errors counted of reads and writes in {options}"
            )
            equal(failed, [bad * size * 2], f"sectors of requests that failed in {options}")
            check((4 * size << 10, 4 * size << 10) in ios, f"not done together before they failed: {ios}")
        Env.reload(self.device, " ".join(self.table))
        found = self.pieces(size << 10, count)
        equal(
            [number for number in range(count) if found[number] != good[number]],
            [bad],
            "requests whose data are not in the file",
        )
        equal(self.traced(guest, write)[0], [], "requests that failed when the block was good again")
        equal(self.pieces(size << 10, count), good, "data in the file")

    def traced(self, guest: Guest, options: str) -> tuple[list[int], list[tuple[int, int]], list[tuple[int, int]]]:
        """Runs the frontend. The sectors of requests that failed; offsets and lengths of the file's I/Os and of
        requests."""
        with tracing.traced(*EVENTS) as trace:
            done = guest.run(f"blkif-frontend {options} --vdev xvdd --json /tmp/report", 120)
        report = json.loads(guest.sh("cat /tmp/report"))
        failed = sorted(report.get("failed_sectors", []))
        check(
            done.code == (1 if failed else 0),
            f"blkif-frontend {options} ended with {done.code}: {done.output.strip()[-1500:]}",
        )
        ios = re.findall(
            rf"iomap_dio_rw_begin: .* ino {self.path.stat().st_ino:#x} .* offset (\S+) length (\S+)", trace.text
        )
        requests = re.findall(r"xen_blkback_rs_start: .* sector=(\d+) bytes=(\d+)", trace.text)
        return (
            failed,
            [(int(offset, 16), int(length, 16)) for offset, length in ios],
            [(int(sector) * 512, int(length)) for sector, length in requests],
        )

    def pieces(self, size: int, count: int) -> list[str]:
        """Checksums of the file's first COUNT pieces of SIZE bytes, from its blocks."""
        sh(f"dd if={self.path} of=/tmp/pieces bs={size} count={count} iflag=direct 2>/dev/null")
        data = Path("/tmp/pieces").read_bytes()
        return [hashlib.md5(data[at : at + size]).hexdigest() for at in range(0, size * count, size)]

    def spoil(self, offset: int) -> None:
        """Has all I/O on the file's block at OFFSET fail."""
        block = block_of(self.path, offset >> 12)
        start, sectors, _, device, first = self.table
        bad, end = block * 8, block * 8 + 8
        Env.reload(
            self.device,
            f"{start} {bad} linear {device} {first}\n{bad} 8 error\n"
            f"{end} {int(sectors) - end} linear {device} {int(first) + end}",
        )


def offered(guest: Guest, vdev: str) -> list[str]:
    """Options for each way of connecting that the backend offers beside the plain one."""
    store, path = guest.env.store, guest.backend(vdev)
    offer = {
        name: int(store.read(f"{path}/{name}") or 0)
        for name in (
            "max-ring-page-order",
            "multi-queue-max-queues",
            "feature-max-indirect-segments",
            "feature-persistent",
        )
    }
    log(f"{vdev}: {offer}")
    if guest.env.backend == "rs":
        equal(offer["feature-max-indirect-segments"], 256, "segments offered")
    order, queues = min(offer["max-ring-page-order"], 4), min(offer["multi-queue-max-queues"], 4)
    found = [f"--abi {abi} --ring-order {order}" for abi in ("native", "x86_32") if order]
    if queues > 1:
        found.append(f"--abi x86_32 --queues {queues}")
        found += [f"--abi native --queues {queues} --ring-order {order} --persistent"] if order else []
    if offer["feature-persistent"]:
        found += ["--abi native --persistent", "--abi x86_32 --persistent --indirect 32"]
    if indirect := min(offer["feature-max-indirect-segments"], 256):
        found += [f"--abi native --indirect {indirect}", "--abi x86_32 --indirect 32"]
    if guest.env.backend != "qdisk":  # qemu counts from 0, whatever the ring says
        found.append(f"--abi native --first-index {(1 << 32) - 40}")
    return found


def superfluous(guest: Guest, vdev: str) -> int:
    """Events that the backend has reported as such; the kernel delays those that follow."""
    return int(read(f"{guest.statistics(vdev)}/../xenbus/spurious_events", "0"))


def conformance(guest: Guest, vdev: str, options: str) -> None:
    """The whole table on one disk."""
    done = guest.run(
        f"blkif-frontend conformance --backend {guest.env.backend} --vdev {vdev} {options} --json /tmp/report", 120
    )
    if done.code not in (0, 1):
        raise Failure(f"conformance {vdev} {options}: {done.output.strip()[-1500:]}")
    *rows, summary = done.output.strip().splitlines()
    skipped = sum(row.startswith("skip ") for row in rows)
    log(f"    {summary}")
    failed = [row for row in rows if row.startswith("FAIL ")]
    for row in failed:
        log(f"    {row}")
    check(
        not failed and done.code == 0,
        f"conformance {vdev} {options}: {len(failed)} rows failed, the first: {failed[:1]}",
    )
    # Ours offers everything, on any disk.
    least = len(rows) if guest.env.backend == "rs" else 70
    check(
        len(rows) - skipped >= least,
        f"conformance {vdev} {options}: only {len(rows) - skipped} of {len(rows)} rows were sent",
    )


def frontend(guest: Guest, options: str) -> dict[str, Any]:
    """Runs the frontend, which must succeed, and returns its report."""
    done = guest.run(f"blkif-frontend {options} --json /tmp/report", 120)
    check(done.code == 0, f"blkif-frontend {options} ended with {done.code}: {done.output.strip()[-1500:]}")
    log(f"    {done.output.strip().splitlines()[0]}")
    return json.loads(guest.sh("cat /tmp/report"))
