"""One guest with ten disks, files on all file systems and devices, all in use at once; none gets another's data."""

from lib.basics import check, equal
from lib.env import FILE_SYSTEMS, Env

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 240
ESTIMATE = 35


def run(env: Env) -> None:
    targets = [str(env.file(FILE_SYSTEMS[n % 4], f"disk{n}", 8 << 20)) for n in range(8)] + [env.device(8, 0), env.device(8, 1)]
    if env.backend != "rs":
        targets = targets[:4]  # more take the peers longer than libxl waits, under emulation
    vdevs = [f"xvd{chr(ord('a') + n)}" for n in range(len(targets))]
    guest = env.guest(*(env.disk(target, vdev) for target, vdev in zip(targets, vdevs)))
    letters = " ".join(vdev[-1] for vdev in vdevs)
    guest.sh(f"for d in {letters}; do (yes this is disk $d | dd of=/dev/xvd$d bs=64k count=24 oflag=direct "
             "iflag=fullblock; dd if=/dev/xvd$d bs=64k count=24 iflag=direct | grep -vc \"^this is disk $d$\" >/tmp/wrong$d) & done; wait",
             timeout=150)
    # One line is cut off at the end.
    equal(set(guest.sh("cat /tmp/wrong?").split()), {"1"}, "lines read back that belong to another disk")
    guest.shutdown()
    for target, vdev in zip(targets, vdevs):
        with open(target, "rb") as file:
            data = file.read(24 << 16)
        line = f"this is disk {vdev[-1]}\n".encode()
        check(data == (line * (len(data) // len(line) + 1))[:len(data)], f"content of {vdev} from dom0 is not what was written")
