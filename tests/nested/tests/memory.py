"""dom0's memory is back at its start after many attach and detach cycles and guests."""

from lib.basics import check, sh
from lib.env import Env
from lib.leaks import used

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 400
ESTIMATE = 90
LONG = 5
WARM_UP, CYCLES = 6, 18
MARGIN_KIB = 768  # of all memory
SLAB_MARGIN_KIB = 160  # of the kernel's small objects; a leaked ring is 10 KiB


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
    memory, slab = used()
    cycles(env.count(CYCLES))
    after, slab_after = used()
    check(after - memory < MARGIN_KIB, f"dom0 uses {after - memory} KiB more after {env.count(CYCLES)} cycles")
    check(slab_after - slab < SLAB_MARGIN_KIB, f"dom0's kernel has {slab_after - slab} KiB more in small objects after {env.count(CYCLES)} cycles")
    guest.destroy()
