"""A guest boots with one disk on a file, udev having loaded the backend, and reads and writes a block of it."""

from lib.basics import check, equal, read, sh
from lib.env import Env

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 100
ESTIMATE = 15


def run(env: Env) -> None:
    image = env.file("ext4", "disk", 16 << 20)
    guest = env.guest(env.disk(image))  # checks who serves the disk
    equal(guest.sh("blockdev --getsize64 /dev/xvda").strip(), str(16 << 20), "size of xvda")
    guest.sh("echo hello, disk | dd of=/dev/xvda bs=4096 seek=3 conv=sync oflag=direct count=1 iflag=fullblock && sync")
    guest.sh(
        "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/xvda bs=4096 skip=3 count=1 iflag=direct | grep -q 'hello, disk'"
    )
    if env.backend != "qdisk":
        loaded = {line.split()[0] for line in read("/proc/modules").splitlines()}
        check(env.driver in loaded, f"{env.driver} is not loaded")
        other = {"xen_blkback", "xen_blkback_rs"} - {env.driver}
        check(not other & loaded, f"{other} is loaded, too")
    guest.shutdown()
    equal(
        sh(f"dd if={image} bs=4096 skip=3 count=1 status=none | head -c 11"), "hello, disk", "what arrived in the file"
    )
