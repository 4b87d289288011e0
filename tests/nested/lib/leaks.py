"""What dom0 has in use, to compare before with after."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass

from .basics import check, log, read, sh, wait_for
from .reports import debug_kernel

MARGIN_KIB = 768  # of all memory
SLAB_MARGIN_KIB = 160  # of the kernel's small objects; a leaked ring is 10 KiB
# What one of the kernel's workers has: they come with work, and stay for five minutes after it.
STACK_KIB, WORKER_KIB = 16, 10
# Small objects of vmalloc, which keeps free ones; VmallocUsed has what is in use.
KEPT = "vmap_area"
# Each has sixteen open files, until udev has had nothing to do for three seconds.
UDEV = "(udev-worker)"


def tasks() -> list[str]:
    return sorted(read(f"/proc/{pid}/comm") for pid in os.listdir("/proc") if pid.isdigit())


def quiet() -> None:
    """Waits until udev has nothing to do."""
    wait_for(lambda: UDEV not in tasks(), 60, "udev's workers to end")


@dataclass
class Used:
    """Memory of dom0's kernel in KiB, without what its workers have."""

    all: int  # that is neither free nor given back at request
    small: int  # of its small objects, but for the one KEPT
    parts: dict[str, int]  # what is known of both, by name


def used() -> Used:
    """What dom0 uses when it has given back what it can."""
    quiet()
    # The slabs' own caches keep free objects, hundreds of KiB after a burst.
    sh(
        "sync; echo 3 >/proc/sys/vm/drop_caches; for f in /sys/kernel/slab/*/shrink; do echo 1 >$f; done; echo 1"
        " >/proc/sys/vm/compact_memory"
    )
    values = {line.split(":")[0]: int(line.split()[1]) for line in read("/proc/meminfo").splitlines()}
    # Free pages that processors keep at hand, megabytes at times; MemFree is without them.
    at_hand = 4 * sum(map(int, re.findall(r"count: *(\d+)", read("/proc/zoneinfo"))))
    free = values["MemFree"] + at_hand + values["Buffers"] + values["Cached"] - values["Shmem"] + values["SReclaimable"]
    pages = {name: values[name] for name in ("AnonPages", "PageTables", "KernelStack", "VmallocUsed", "Percpu")}
    # slabinfo(5): objects in use at 1, their size at 3.
    rows = [line.split() for line in read("/proc/slabinfo").splitlines()[2:]]
    objects = {row[0]: int(row[1]) * int(row[3]) >> 10 for row in rows}
    log(
        f"free {free} KiB, slab {values['SUnreclaim']} KiB,"
        f" {', '.join(f'{name} {kib} KiB' for name, kib in pages.items())}"
    )
    # Not their slabs, of which a burst leaves many that are partly filled.
    small = sum(
        kib for name, kib in objects.items() if name != KEPT and read(f"/sys/kernel/slab/{name}/reclaim_account") == "0"
    )
    programs = values["AnonPages"] + values["PageTables"]
    workers = sum(name.startswith("kworker/") for name in tasks())
    log(f"without {workers} of the kernel's workers, and {programs} KiB of programs")
    return Used(
        values["MemTotal"] - free - programs - workers * (STACK_KIB + WORKER_KIB),
        small - workers * WORKER_KIB,
        pages | objects,
    )


def no_more(before: Used, after: Used, what: str) -> None:
    """Compares what was used before and after WHAT."""
    grown = {name: kib - before.parts.get(name, 0) for name, kib in after.parts.items()}
    most = ", ".join(f"{name} {kib:+}" for name, kib in sorted(grown.items(), key=lambda item: -item[1])[:8] if kib > 0)
    log(
        f"KiB more after {what}: {after.all - before.all}, in small objects {after.small - before.small}; by name:"
        f" {most}"
    )
    if debug_kernel():  # KASAN keeps what is freed, for a while; kmemleak looks for leaks there
        return
    check(after.all - before.all < MARGIN_KIB, f"dom0 uses {after.all - before.all} KiB more after {what}: {most}")
    check(
        after.small - before.small < SLAB_MARGIN_KIB,
        f"dom0's kernel has {after.small - before.small} KiB more in small objects after {what}: {most}",
    )


# Tasks that come and go with what a test does beside the disks: workers of the kernel and of udev, threads of device
# mapper and of file systems, and short-lived processes of ours.
PASSING = re.compile(
    r"kworker/|\(udev-worker\)|systemd-udevd|kdmflush|dm[-_]|jbd2/|ext4|xfs|btrfs|loop\d|bash|sh$|xl$|sleep"
)

FEW = 4  # open files, of programs that come and go


def handles() -> dict[str, int]:
    """Things that are counted: dom0's tasks (but those that are PASSING), open files, event channels."""
    quiet()
    names = [name for name in tasks() if not PASSING.match(name)]
    log(f"tasks: {' '.join(names)}")
    return {
        "tasks": len(names),
        "open files": int(read("/proc/sys/fs/file-nr").split()[0]),
        "event channels": len(sh(f"{glob.glob('/usr/lib/xen-*/bin/lsevtchn')[0]} 0").splitlines()),
    }


def no_more_handles(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """What is more than it was."""
    return [
        f"{name}: {number} before, {after[name]} after"
        for name, number in before.items()
        if after[name] > number + (FEW if name == "open files" else 0)
    ]


def mapped(domid: int) -> int:
    """How many grants of a domain are mapped, by Xen's own list (debug key g)."""
    text = sh("xl dmesg -c >/dev/null; xl debug-keys g; xl dmesg -c")
    found = re.search(
        rf"grant-table for remote d{domid} .*?(?=grant-table for remote|no active grant table entries|\Z)", text, re.S
    )
    if not found:
        return 0
    return len(re.findall(r"^\(XEN\) \[0x[0-9a-f]+\]", found[0], re.M))
