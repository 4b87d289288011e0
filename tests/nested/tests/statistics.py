"""What a disk does is counted in the files that xentop and scripts read."""

import os
import re
import time

from lib import tracing
from lib.basics import PACE, check, equal, log, read, sh, there, wait_for
from lib.env import Env, cached_pages
from lib.guest import Guest

BACKENDS = ("rs", "loop")
TIMEOUT = 240
ESTIMATE = 30
NAMES = ("oo_req", "rd_req", "wr_req", "f_req", "ds_req", "rd_sect", "wr_sect")
ERRORS = ("rd_err", "wr_err", "f_err", "ds_err", "refused")
WAYS = ("pages_mapped", "pages_copied", "pages_persistent")
OURS = (*ERRORS, *WAYS, "buffered_req", "events_sent")
DEBUGFS = "/sys/kernel/debug/xen-blkback-rs"


def run(env: Env) -> None:
    image = env.file("ext4", "disk", 32 << 20)
    device = env.device(32)
    guest = env.guest(
        env.disk(image, "xvda"),
        env.disk(device, "xvdb", access="r"),
        env.disk(env.file("tmpfs", "memory", 4 << 20), "xvdc"),
    )
    disks = {vdev: os.path.dirname(guest.statistics(vdev)) for vdev in ("xvda", "xvdb", "xvdc")}

    def numbers(vdev: str) -> dict[str, int]:
        names = NAMES + (OURS if env.backend == "rs" else ())
        return {name: int(sh(f"cat {disks[vdev]}/statistics/{name}")) for name in names}

    equal([sh(f"cat {disks[vdev]}/mode").strip() for vdev in disks], ["w", "r", "w"], "mode")
    major, minor = sh(f"stat -Lc '%t %T' {device}").split()
    equal(sh(f"cat {disks['xvdb']}/physical_device").strip(), f"{major}:{minor}", "physical_device")

    before = numbers("xvda")
    guest.sh(
        "dd if=/dev/zero of=/dev/xvda bs=16k count=64 oflag=direct conv=notrunc,fsync; dd if=/dev/xvda of=/dev/null"
        " bs=32k count=16 iflag=direct; blkdiscard -o 8M -l 4M /dev/xvda"
    )
    wait_for(lambda: numbers("xvda")["ds_req"] > before["ds_req"], 10, "the discard to be counted")
    after = numbers("xvda")
    used = {name: after[name] - before[name] for name in after}
    log(f"{used}")
    equal(
        (used["wr_req"], used["wr_sect"], used["rd_req"], used["rd_sect"]),
        (64, 2048, 16, 1024),
        "requests and sectors written and read",
    )
    check(used["f_req"] >= 1 and used["ds_req"] >= 1, f"flushes and discards: {used}")

    # xentop adds up what all disks of a domain have done.
    row = there(re.search(rf"^\s*{guest.name}\s.*$", sh("xentop -b -i 1"), re.M), "xentop does not show the guest")
    words = row[0].split()
    total = {name: sum(numbers(vdev)[name] for vdev in disks) for name in NAMES}
    log(f"xentop: {row[0].strip()}; files: {total}")
    for name in ("rd_req", "wr_req", "rd_sect", "wr_sect"):
        check(str(total[name]) in words, f"xentop shows no {name} of {total[name]}: {row[0]}")

    if env.backend == "rs":
        equal([after[name] for name in ERRORS], [0] * len(ERRORS), "errors")
        equal(
            sum(used[way] for way in WAYS),
            (used["wr_sect"] + used["rd_sect"]) // 8,
            f"pages that were made accessible in {used}",
        )
        equal(used["pages_copied"], 0, "pages copied from a frontend with persistent grants")
        equal(after["buffered_req"], 0, "buffered requests of a file with direct I/O")
        equal(cached_pages(image), 0, "pages of a file with direct I/O in dom0's memory")
        in_memory = numbers("xvdc")
        equal(
            in_memory["buffered_req"],
            in_memory["rd_req"] + in_memory["wr_req"],
            "buffered requests of a file in memory",
        )
        check(in_memory["rd_req"] > 0, f"{in_memory}")
        in_debugfs(
            f"{DEBUGFS}/{guest.bus_name('xvda')}",
            [f"file {image} on ext4", "I/O: direct", "in flight", "mode: w\n"],
            after,
        )
        in_debugfs(
            f"{DEBUGFS}/{guest.bus_name('xvdb')}", [f"block device {major}:{minor}", "mode: r\n"], numbers("xvdb")
        )
        busy(guest)
        traced(guest)
        # One request at a time: each answer is told at once.
        check(
            80 <= used["events_sent"] <= 80 + used["f_req"] + used["ds_req"],
            f"events for one request at a time in {used}",
        )
    guest.shutdown()
    if env.backend == "rs":
        equal(os.listdir(DEBUGFS), [], "what is left in debugfs")


def busy(guest: Guest) -> None:
    """A ring that always has something to do keeps nobody waiting who reads what it does: half a minute, when readers
    took its lock."""
    files = (
        f"{DEBUGFS}/{guest.bus_name('xvdc')}/state",
        f"{DEBUGFS}/{guest.bus_name('xvdc')}/latency",
        guest.statistics("xvdc") + "/rd_req",
    )
    served = int(read(files[-1]))
    guest.sh(
        "fio --name=b --filename=/dev/xvdc --rw=randread --bs=4k --iodepth=32 --ioengine=libaio --direct=1 --time_based"
        " --runtime=1000 --thread --minimal >/tmp/fio 2>&1 &"
    )
    wait_for(lambda: int(read(files[-1])) > served + 1000, 30, "the ring to be busy")
    longest = 0.0
    for name in files * 20:
        start = time.monotonic()
        check(read(name), f"{name} is empty")
        longest = max(longest, time.monotonic() - start)
    log(f"longest time to read a file of a busy disk: {longest:.3f} s")
    check(longest < 2 * PACE, f"to read a file of a busy disk took {longest:.1f} s")
    guest.sh("killall fio; while pidof fio; do sleep 0.1; done")


def traced(guest: Guest) -> None:
    """A request leaves a line when it is taken and one when it is answered."""
    with tracing.traced(tracing.OURS) as trace:
        guest.sh("dd if=/dev/xvda of=/dev/null bs=32k count=8 skip=4 iflag=direct")
    text = trace.text
    disk = f"backend/vbd/{guest.domid}/51712 ring=0"
    starts = re.findall(rf"xen_blkback_rs_start: {disk} id=(\d+) operation=0 sector=(\d+) bytes=32768", text)
    equal(
        [int(sector) for _, sector in starts], [(4 + n) * 64 for n in range(8)], f"sectors of traced requests in {text}"
    )
    ends = re.findall(rf"xen_blkback_rs_end: {disk} id=(\d+) error=0 nanoseconds=(\d+)", text)
    equal([id for id, _ in ends], [id for id, _ in starts], "ids of traced requests")
    check(all(0 < int(nanoseconds) < 10**10 * PACE for _, nanoseconds in ends), f"times of traced requests: {ends}")


def in_debugfs(directory: str, words: list[str], counted: dict[str, int]) -> None:
    state = sh(f"cat {directory}/state")
    log(state)
    for word in words:
        check(word in state, f"{directory}/state does not say {word!r}: {state}")
    head, *rows = (line.split() for line in sh(f"cat {directory}/latency").splitlines())
    equal(head, ["us", "read", "write", "flush", "discard"], "columns of latency")
    log(" ".join(":".join(row) for row in rows if any(word != "0" for word in row[1:])))
    equal([int(row[0]) for row in rows], [1 << n for n in range(len(rows))], "limits in latency")
    equal(
        [sum(int(row[column]) for row in rows) for column in (1, 2, 3, 4)],
        [counted[name] for name in ("rd_req", "wr_req", "f_req", "ds_req")],
        "requests in latency",
    )
