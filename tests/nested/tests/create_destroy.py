"""Guests are created and destroyed again and again in the middle of their I/O, on files and on a device."""

from lib.basics import log, wait_for
from lib.env import Env

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 900
ESTIMATE = 360
CYCLES = 20  # guests; fifty disks

# Readers and writers without end, and then waits until all of them have gone some way.
LOAD = """for d in {vdevs}; do for n in 0 1; do
    (while :; do dd if=/dev/zero of=/dev/$d bs=128k seek=$((n*16)) count=16 oflag=direct; done) >/dev/null 2>&1 &
    (while :; do dd if=/dev/$d of=/dev/null bs=64k skip=$((n*32)) count=32 iflag=direct; done) >/dev/null 2>&1 &
done; done
for d in {vdevs}; do n=0
    until set -- $(cat /sys/block/$d/stat) && [ $1 -gt 8 ] && [ $5 -gt 8 ]; do
        n=$((n+1)); [ $n -lt 400 ] || exit 1; usleep 50000
    done
done"""


def run(env: Env) -> None:
    images = [env.file(kind, "disk", 8 << 20) for kind in ("ext4", "tmpfs")]
    device = env.device(8)
    for cycle in range(env.count(CYCLES)):
        targets = [*images, device][:2 + cycle % 2]
        vdevs = ["xvda", "xvdb", "xvdc"][:len(targets)]
        guest = env.guest(*map(env.disk, targets, vdevs), vcpus=1 + cycle % 2)
        guest.sh(LOAD.format(vdevs=" ".join(vdevs)))
        guest.destroy()
        wait_for(lambda: not env.backends(), 20, "the backend's nodes gone")
        log(f"cycle {cycle} done")
