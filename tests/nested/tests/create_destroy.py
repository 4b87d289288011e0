"""Guests with ten disks, on all file systems and a device, get no disk's data mixed up, and are destroyed again and
again in mid-I/O."""

from pathlib import Path

from lib.basics import check, equal, log, wait_for
from lib.env import FILE_SYSTEMS, Env
from lib.guest import Guest

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 900
ESTIMATE = 100
LONG = 7
CYCLES = 3  # guests; thirty disks

# A program a disk that reads and writes without end, and then waits until all of them have gone some way.
LOAD = """for d in {vdevs}; do
    (while :; do dd if=/dev/$d of=/dev/$d bs=64k conv=notrunc iflag=direct oflag=direct; done) >/dev/null 2>&1 &
done
for d in {vdevs}; do n=0
    until set -- $(cat /sys/block/$d/stat) && [ $1 -gt 4 ] && [ $5 -gt 4 ]; do
        n=$((n+1)); [ $n -lt $((400 * XB_PACE)) ] || exit 1; usleep 50000
    done
done"""


def run(env: Env) -> None:
    files = [env.file(kind, f"disk{n}", 8 << 20) for n in range(3) for kind in FILE_SYSTEMS]
    targets: list[str | Path] = [*files, env.device(8)]
    # More take the peers longer than libxl waits, under emulation.
    targets = targets[-10 if env.backend == "rs" else -4 :]
    vdevs = [f"xvd{letter}" for letter, _ in zip("abcdefghij", targets)]
    for cycle in range(env.count(CYCLES)):
        if cycle == 1:
            targets[-1] = env.file("ext4", "instead", 8 << 20)  # Debian's script for devices is slow
        guest = env.guest(*(env.disk(target, vdev) for target, vdev in zip(targets, vdevs)), vcpus=1 + cycle % 2)
        if cycle == 0:
            all_at_once(guest, dict(zip(vdevs, map(str, targets))))
        guest.sh(LOAD.format(vdevs=" ".join(vdevs)))
        guest.destroy()
        wait_for(lambda: not env.backends(), 20, "the backend's nodes gone")
        log(f"cycle {cycle} done")


def all_at_once(guest: Guest, targets: dict[str, str]) -> None:
    """Each disk gets its own text, is read back in the guest, and is looked at in dom0."""
    guest.sh(
        f"for d in {' '.join(targets)}; do (yes this is $d | dd of=/dev/$d bs=64k count=24 oflag=direct conv=notrunc"
        ' iflag=fullblock; dd if=/dev/$d bs=64k count=24 iflag=direct | grep -vc "^this is $d$" >/tmp/wrong$d) &'
        " done; wait",
        timeout=150,
    )
    # One line is cut off at the end.
    equal(set(guest.sh("cat /tmp/wrong*").split()), {"1"}, "lines read back that belong to another disk")
    for vdev, target in targets.items():
        with open(target, "rb") as file:
            data = file.read(24 << 16)
        line = f"this is {vdev}\n".encode()
        check(
            data == (line * (len(data) // len(line) + 1))[: len(data)],
            f"content of {vdev} from dom0 is not what was written",
        )
