"""A disk is attached and detached again and again while another is busy; each time with I/O of its own."""

from lib.basics import equal, log
from lib.env import Env

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 900
ESTIMATE = 240
LONG = 20  # a thousand cycles
CYCLES = 50


def run(env: Env) -> None:
    busy = env.file("ext4", "busy", 16 << 20)
    targets = [str(env.file("xfs", "disk", 8 << 20)), env.device(8)]
    guest = env.guest(env.disk(busy))
    guest.sh("while :; do dd if=/dev/zero of=/dev/xvda bs=64k count=32 oflag=direct; sleep 1; done >/dev/null 2>&1 &")
    for cycle in range(env.count(CYCLES)):
        target = targets[cycle % 10 == 9]  # Debian's script for devices is slow
        guest.attach(env.disk(target, "xvdb"))
        guest.check_served("xvdb")
        # A reader is still at work when the disk is taken away: the frontend lets go when it has finished.
        guest.sh(f"echo cycle {cycle} of many | dd of=/dev/xvdb bs=4096 seek={cycle} conv=sync,fsync oflag=direct iflag=fullblock;"
                 f"dd if=/dev/xvdb bs=4096 skip={cycle} count=1 iflag=direct | grep -q 'cycle {cycle} of';"
                 " r=$?; dd if=/dev/xvdb of=/dev/null bs=64k count=24 iflag=direct >/dev/null 2>&1 & exit $r")
        guest.detach("xvdb")
        with open(target, "rb") as file:
            file.seek(4096 * cycle)
            equal(file.read(20).partition(b" of")[0], f"cycle {cycle}".encode(), "what the cycle wrote")
        log(f"cycle {cycle} done")
    guest.destroy()
