"""dom0's memory is back at its start after many attach and detach cycles and guests."""

import re

from lib.basics import check, log, read, sh
from lib.env import Env

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 400
ESTIMATE = 90
WARM_UP, CYCLES = 6, 24
MARGIN_KIB = 768  # of all memory
SLAB_MARGIN_KIB = 160  # of the kernel's small objects; a leaked ring is 10 KiB


def used(env: Env) -> tuple[int, int]:
    """Memory of dom0 that is neither free nor given back at request, and that of small objects, in KiB."""
    sh("sync; echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory")
    values = {line.split(":")[0]: int(line.split()[1]) for line in read("/proc/meminfo").splitlines()}
    # Free pages that processors keep at hand, megabytes at times; MemFree is without them.
    at_hand = 4 * sum(map(int, re.findall(r"count: *(\d+)", read("/proc/zoneinfo"))))
    free = values["MemFree"] + at_hand + values["Buffers"] + values["Cached"] - values["Shmem"] + values["SReclaimable"]
    log(f"free {free} KiB, slab {values['SUnreclaim']} KiB, percpu {values['Percpu']} KiB")
    return values["MemTotal"] - free, values["SUnreclaim"]


def run(env: Env) -> None:
    image, device = env.file("ext4", "disk", 8 << 20), env.device(8)
    guest = env.guest(env.disk(env.file("tmpfs", "first", 1 << 20)))  # with none, libxl would start no qemu for the second

    def cycles(number: int) -> None:
        for cycle in range(number):
            target = device if cycle % 6 == 5 else str(image)  # Debian's script for devices is slow
            guest.attach(env.disk(target, "xvdb"))
            guest.sh("dd if=/dev/zero of=/dev/xvdb bs=256k count=16 oflag=direct; dd if=/dev/xvdb of=/dev/null bs=256k count=16 iflag=direct")
            guest.detach("xvdb")

    cycles(WARM_UP)
    memory, slab = used(env)
    cycles(env.count(CYCLES))
    after, slab_after = used(env)
    check(after - memory < MARGIN_KIB, f"dom0 uses {after - memory} KiB more after {CYCLES} cycles")
    check(slab_after - slab < SLAB_MARGIN_KIB, f"dom0's kernel has {slab_after - slab} KiB more in small objects after {CYCLES} cycles")
    guest.destroy()
