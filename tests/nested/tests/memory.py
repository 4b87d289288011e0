"""dom0's memory is back at its start after many attach and detach cycles and guests."""

from lib.env import Env
from lib.leaks import no_more, used

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 400
ESTIMATE = 90
LONG = 5
WARM_UP, CYCLES = 6, 18


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
    before, count = used(), env.count(CYCLES)
    cycles(count)
    no_more(before, used(), f"{count} cycles")
    guest.destroy()
