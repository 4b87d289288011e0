"""What dom0 has in use, to compare before with after."""

from __future__ import annotations

import glob
import os
import re

from .basics import check, log, read, sh

MARGIN_KIB = 768  # of all memory
SLAB_MARGIN_KIB = 160  # of the kernel's small objects; a leaked ring is 10 KiB


def used() -> tuple[int, int]:
    """Memory of dom0 that is neither free nor given back at request, and that of small objects, in KiB."""
    sh("sync; echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory")
    values = {line.split(":")[0]: int(line.split()[1]) for line in read("/proc/meminfo").splitlines()}
    # Free pages that processors keep at hand, megabytes at times; MemFree is without them.
    at_hand = 4 * sum(map(int, re.findall(r"count: *(\d+)", read("/proc/zoneinfo"))))
    free = values["MemFree"] + at_hand + values["Buffers"] + values["Cached"] - values["Shmem"] + values["SReclaimable"]
    log(f"free {free} KiB, slab {values['SUnreclaim']} KiB, percpu {values['Percpu']} KiB")
    return values["MemTotal"] - free, values["SUnreclaim"]


def no_more(before: tuple[int, int], after: tuple[int, int], what: str) -> None:
    """Compares two results of used(), before and after WHAT."""
    (memory, slab), (memory_after, slab_after) = before, after
    check(memory_after - memory < MARGIN_KIB, f"dom0 uses {memory_after - memory} KiB more after {what}")
    check(slab_after - slab < SLAB_MARGIN_KIB, f"dom0's kernel has {slab_after - slab} KiB more in small objects after {what}")


def handles() -> dict[str, int]:
    """Things that are counted: dom0's tasks (but the kernel's workers, which come and go), open files, event channels."""
    names = [read(f"/proc/{pid}/comm") for pid in os.listdir("/proc") if pid.isdigit()]
    return {
        "tasks": sum(not name.startswith("kworker/") for name in names),
        "open files": int(read("/proc/sys/fs/file-nr").split()[0]),
        "event channels": len(sh(f"{glob.glob('/usr/lib/xen-*/bin/lsevtchn')[0]} 0").splitlines()),
    }


def mapped(domid: int) -> int:
    """How many grants of a domain are mapped, by Xen's own list (debug key g)."""
    text = sh("xl dmesg -c >/dev/null; xl debug-keys g; xl dmesg -c")
    found = re.search(rf"grant-table for remote d{domid} .*?(?=grant-table for remote|no active grant table entries|\Z)", text, re.S)
    if not found:
        return 0
    return len(re.findall(r"^\(XEN\) \[0x[0-9a-f]+\]", found[0], re.M))
