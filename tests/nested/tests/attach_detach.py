"""A disk is attached and detached again and again while another is busy, each time with I/O of its own; dom0's memory
is back at its start."""

from pathlib import Path

from lib.basics import equal, log
from lib.env import Env
from lib.guest import Guest, until_there
from lib.leaks import Used, no_more, used

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 900
ESTIMATE = 80
LONG = 67  # a thousand cycles
CYCLES = 15
# At least: caches of the kernel and dom0's programs grow by 800 KiB in the first hundreds of cycles, and then stay.
WARM_UP = 6


def run(env: Env) -> None:
    targets = [env.file("xfs", "disk", 8 << 20), Path(env.device(8))]
    guest = env.guest(env.disk(env.file("ext4", "busy", 16 << 20)))
    guest.sh(
        "while :; do [ -e /tmp/pause ] || dd if=/dev/zero of=/dev/xvda bs=512k count=2 oflag=direct; sleep 2; done"
        " >/dev/null 2>&1 &"
    )
    count = env.count(CYCLES)
    for number in range(max(WARM_UP, count // 10)):
        cycle(env, guest, targets[number % 6 == 5], number)
    before = memory(guest)
    for number in range(count):
        cycle(env, guest, targets[number % 10 == 9], number)  # Debian's script for devices is slow
    after = memory(guest)
    if env.backend == "rs":  # what a peer keeps is not ours to judge
        no_more(before, after, f"{count} cycles")
    guest.destroy()


def cycle(env: Env, guest: Guest, target: Path, number: int) -> None:
    place = number % 1024
    guest.attach(env.disk(target, "xvdb"), wait=False)
    guest.check_served("xvdb")
    # A reader is still at work when the disk is taken away: the frontend lets go when it has finished.
    guest.sh(
        until_there("xvdb")
        + f"echo cycle {number} of many | dd of=/dev/xvdb bs=4096 seek={place} conv=sync,fsync oflag=direct"
        f" iflag=fullblock && dd if=/dev/xvdb bs=4096 skip={place} count=1 iflag=direct | grep -q 'cycle {number}"
        " of'; r=$?; dd if=/dev/xvdb of=/dev/null bs=64k count=24 iflag=direct >/dev/null 2>&1 & exit $r"
    )
    guest.detach("xvdb")
    with target.open("rb") as file:
        file.seek(4096 * place)
        equal(file.read(20).partition(b" of")[0], f"cycle {number}".encode(), "what the cycle wrote")
    log(f"cycle {number} done")


def memory(guest: Guest) -> Used:
    """What dom0 uses while nothing is in flight."""
    guest.sh("touch /tmp/pause; while pidof dd; do usleep 50000; done")
    try:
        return used()
    finally:
        guest.sh("rm /tmp/pause")
