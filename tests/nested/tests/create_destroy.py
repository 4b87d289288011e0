"""Guests are created and destroyed again and again in the middle of their I/O, on files and on a device."""

from lib.basics import log, wait_for
from lib.env import FILE_SYSTEMS, Env

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 900
ESTIMATE = 150
LONG = 4
CYCLES = 5  # guests; fifty disks

# A program a disk that reads and writes without end, and then waits until all of them have gone some way.
LOAD = """for d in {vdevs}; do
    (while :; do dd if=/dev/$d of=/dev/$d bs=64k conv=notrunc iflag=direct oflag=direct; done) >/dev/null 2>&1 &
done
for d in {vdevs}; do n=0
    until set -- $(cat /sys/block/$d/stat) && [ $1 -gt 4 ] && [ $5 -gt 4 ]; do
        n=$((n+1)); [ $n -lt 400 ] || exit 1; usleep 50000
    done
done"""


def run(env: Env) -> None:
    targets = [*(env.file(kind, f"disk{n}", 8 << 20) for kind in FILE_SYSTEMS for n in range(3)), env.device(8)][-10:]
    if env.backend != "rs":
        targets = targets[-4:]  # more take the peers longer than libxl waits, under emulation
    vdevs = [f"xvd{letter}" for letter, _ in zip("abcdefghij", targets)]
    for cycle in range(env.count(CYCLES)):
        guest = env.guest(*map(env.disk, targets, vdevs), vcpus=1 + cycle % 2)
        guest.sh(LOAD.format(vdevs=" ".join(vdevs)))
        guest.destroy()
        wait_for(lambda: not env.backends(), 20, "the backend's nodes gone")
        log(f"cycle {cycle} done")
