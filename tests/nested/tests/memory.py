"""dom0's memory is back at its start after many attach and detach cycles and guests."""

from lib.basics import check, log, read, sh
from lib.env import Env

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 400
ESTIMATE = 90
WARM_UP, CYCLES = 3, 12
MARGIN_KIB = 6 * 1024  # a ring with its requests leaked in each cycle would be well above it


def used(env: Env) -> int:
    """Memory of dom0 that is neither free nor given back at request, in KiB."""
    sh("sync; echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory")
    values = {line.split(":")[0]: int(line.split()[1]) for line in read("/proc/meminfo").splitlines()}
    free = values["MemFree"] + values["Buffers"] + values["Cached"] - values["Shmem"] + values["SReclaimable"]
    log(f"free {free} KiB, slab {values['SUnreclaim']} KiB, percpu {values['Percpu']} KiB")
    return values["MemTotal"] - free


def run(env: Env) -> None:
    guest = env.guest()
    image, device = env.file("ext4", "disk", 8 << 20), env.device(8)

    def cycle(vdev_target: str) -> None:
        guest.attach(env.disk(vdev_target, "xvdb"))
        guest.sh("dd if=/dev/zero of=/dev/xvdb bs=256k count=16 oflag=direct; dd if=/dev/xvdb of=/dev/null bs=256k count=16 iflag=direct")
        guest.detach("xvdb")

    for number in range(WARM_UP):
        cycle((str(image), device)[number % 2])
    before = used(env)
    for number in range(env.count(CYCLES)):
        cycle((str(image), device)[number % 2])
    after = used(env)
    check(after - before < MARGIN_KIB, f"dom0 uses {after - before} KiB more after {CYCLES} cycles")
    guest.destroy()
