"""Several requests are done together and end short: each gets the answer of its own, and what is said to be done is.

On btrfs a read goes through the page cache from a compressed extent on, and ends short, without an error, if that
cannot be read. A write that finds not enough room for all ends short, or not at all."""

import json
import os
import re
from pathlib import Path

from lib import tracing
from lib.basics import check, equal, log, run as command, sh
from lib.env import Env
from lib.guest import Guest
from lib.tracing import TRACING

BACKENDS = ("rs",)
TIMEOUT = 240
ESTIMATE = 35
PIECE = 128 << 10  # size of a request
TOGETHER = 4  # requests
WRITES = 16
ROOM = 21  # for so many halves of a request
MOUNT = Path("/mnt/short")
BAD, COMPRESSED = 5, 1  # requests whose second half is compressed; that of the bad one cannot be read


def run(env: Env) -> None:
    # One kind of block group, each block once: so that this small file system is full when its data fill it.
    device = env.device(64)
    probes = "; ".join(
        f"echo 'r:xb_{way} vfs_iocb_iter_{way} returned=$retval:s64' >>{TRACING}/kprobe_events"
        for way in ("read", "write")
    )
    tracing.mount()
    sh(f"mkfs.btrfs -q -f --mixed -m single -d single {device}; mkdir -p {MOUNT}; mount {device} {MOUNT}; {probes}")
    env.at_end(f"umount {MOUNT}; echo >{TRACING}/kprobe_events")
    unreadable, packed = MOUNT / "unreadable", MOUNT / "packed"
    data = make_unreadable(unreadable, device)
    sh(
        f"touch {packed}; btrfs property set {packed} compression lzo; dd if=/dev/zero of={packed} bs={PIECE}"
        f" count={WRITES} conv=fsync 2>/dev/null; btrfs property set {packed} compression none"
    )
    guest = env.guest(env.disk(unreadable, "xvda", access="r"), env.disk(packed, "xvdb"), frontend=True)

    failed, sums, returned = load(guest, "xvda", 2 * TOGETHER, 100)
    check(
        any(PIECE < number < TOGETHER * PIECE for number in returned),
        f"no transfer of several requests has ended short: {returned}",
    )
    equal(failed, [BAD], "reads that failed")
    good = [number for number in range(2 * TOGETHER) if number not in failed]
    equal([sums[number] for number in good], [total(data[number]) for number in good], "sums of what was read")

    # All the room there is but for some of the requests. A file cannot be truncated on a full btrfs, but removed.
    sh(
        f"cd {MOUNT}; dd if=/dev/zero of=room bs={PIECE // 2} count={ROOM} 2>/dev/null; sync; ! dd if=/dev/zero"
        " of=filler bs=1M 2>/dev/null; sync; rm room; sync"
    )
    failed, sums, returned = load(guest, "xvdb", WRITES, 0)
    check(TOGETHER * PIECE in returned, f"no requests were done together: {returned}")
    check(failed and len(failed) < WRITES, f"of {WRITES} writes to a full file system failed: {failed}")
    sh("sync; echo 3 >/proc/sys/vm/drop_caches")
    written = pieces(packed)
    good = [number for number in range(WRITES) if number not in failed]
    equal([total(written[number]) for number in good], [sums[number] for number in good], "sums of what is in the file")
    guest.shutdown()


def make_unreadable(path: Path, device: str) -> list[bytes]:
    """A file of random data, but for two compressed extents, one of which is overwritten on the device. Its pieces."""
    data = [os.urandom(PIECE) for _ in range(2 * TOGETHER)]
    path.write_bytes(b"".join(data))
    sh(f"sync; btrfs property set {path} compression lzo")
    mark = b""
    with path.open("r+b") as file:
        for number in (COMPRESSED, BAD):
            mark = os.urandom(256)  # which cannot be made shorter, and is found again on the device
            half = (mark + bytes(4096 - len(mark))) * (PIECE // 2 // 4096)
            data[number] = data[number][: PIECE // 2] + half
            file.seek(number * PIECE + PIECE // 2)
            file.write(half)
            file.flush()
            os.fsync(file.fileno())
    sh(f"sync; dd if={device} of=/tmp/device bs=1M iflag=direct 2>/dev/null")
    content = Path("/tmp/device").read_bytes()
    os.unlink("/tmp/device")
    at = content.find(mark)
    check(at >= 0, "the compressed extent is not found on the device")
    log(f"compressed extent at {at} of the device")
    sh(
        f"dd if=/dev/zero of={device} bs=4096 seek={at // 4096} count=1 oflag=direct conv=notrunc 2>/dev/null; "
        "echo 3 >/proc/sys/vm/drop_caches"
    )
    check(
        command(
            "dd", f"if={path}", "of=/dev/null", "bs=4096", f"skip={(BAD * PIECE + PIECE // 2) // 4096}", "count=1"
        ).returncode,
        "the bad extent can be read",
    )
    return data


def load(guest: Guest, vdev: str, count: int, reads: int) -> tuple[list[int], list[int], list[int]]:
    """Sends COUNT requests that follow one another at once. Which of them failed, the sums of their pages, and what the
    file system has returned."""
    sh("echo 3 >/proc/sys/vm/drop_caches")
    with tracing.traced("kprobes") as trace:
        done = guest.run(
            f"blkif-frontend load --sequential --size {PIECE >> 10} --requests {count} --depth {count} --reads {reads}"
            f" --sums --vdev {vdev} --json /tmp/report",
            120,
        )
    returned = [int(number) for number in re.findall(r"returned=(-?\d+)", trace.text)]
    log(f"    {done.output.strip()}")
    log(f"    transfers ended with {returned}")
    check(done.code == 1, f"blkif-frontend ended with {done.code}: {done.output.strip()[-1500:]}")
    report = json.loads(guest.sh("cat /tmp/report"))
    return sorted(sector * 512 // PIECE for sector in report["failed_sectors"]), report["sums"], returned


def pieces(path: Path) -> list[bytes]:
    data = path.read_bytes()
    return [data[at : at + PIECE] for at in range(0, len(data), PIECE)]


def total(data: bytes) -> int:
    """Of all words, as blkif-frontend does it."""
    return sum(memoryview(data).cast("Q")) % (1 << 64)
