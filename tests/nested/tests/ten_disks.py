"""One guest with ten disks, files on all file systems and devices, all in use at once; none gets another's data."""

from lib.basics import check, equal
from lib.env import FILE_SYSTEMS, Env

BACKENDS = ("rs", "qdisk")  # libxl gives up on ten runs of Debian's script for loop devices, under emulation
TIMEOUT = 240
ESTIMATE = 35


def run(env: Env) -> None:
    targets = [str(env.file(FILE_SYSTEMS[n % 4], f"disk{n}", 8 << 20)) for n in range(8)] + [env.device(8, 0), env.device(8, 1)]
    vdevs = [f"xvd{chr(ord('a') + n)}" for n in range(10)]
    guest = env.guest(*(env.disk(target, vdev) for target, vdev in zip(targets, vdevs)))
    guest.sh("for d in a b c d e f g h i j; do (yes this is disk $d | dd of=/dev/xvd$d bs=64k count=64 oflag=direct "
             "iflag=fullblock; dd if=/dev/xvd$d bs=64k count=64 iflag=direct | grep -vc \"^this is disk $d$\" >/tmp/wrong$d) & done; wait",
             timeout=150)
    # One line is cut off at the end.
    equal(set(guest.sh("cat /tmp/wrong?").split()), {"1"}, "lines read back that belong to another disk")
    guest.shutdown()
    for target, vdev in zip(targets, vdevs):
        with open(target, "rb") as file:
            data = file.read(4 << 20)
        line = f"this is disk {vdev[-1]}\n".encode()
        check(data == (line * (len(data) // len(line) + 1))[:len(data)], f"content of {vdev} from dom0 is not what was written")
