"""Guests are created and destroyed again and again in the middle of their I/O, on files and on a device."""

from lib.basics import log, wait_for
from lib.env import Env

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 900
ESTIMATE = 260
CYCLES = 10  # guests; fifty disks

# Readers and writers without end, and then waits until all of them have gone some way.
LOAD = """for d in {vdevs}; do
    (while :; do dd if=/dev/zero of=/dev/$d bs=128k count=16 oflag=direct; done) >/dev/null 2>&1 &
    (while :; do dd if=/dev/$d of=/dev/null bs=64k count=32 iflag=direct; done) >/dev/null 2>&1 &
done
for d in {vdevs}; do n=0
    until set -- $(cat /sys/block/$d/stat) && [ $1 -gt 8 ] && [ $5 -gt 8 ]; do
        n=$((n+1)); [ $n -lt 400 ] || exit 1; usleep 50000
    done
done"""


def run(env: Env) -> None:
    targets = [*(env.file(kind, f"disk{n}", 8 << 20) for kind in ("ext4", "tmpfs") for n in range(2)), env.device(8)]
    vdevs = ["xvda", "xvdb", "xvdc", "xvdd", "xvde"]
    for cycle in range(env.count(CYCLES)):
        guest = env.guest(*map(env.disk, targets, vdevs), vcpus=1 + cycle % 2)
        guest.sh(LOAD.format(vdevs=" ".join(vdevs)))
        guest.destroy()
        wait_for(lambda: not env.backends(), 20, "the backend's nodes gone")
        log(f"cycle {cycle} done")
