"""A file system that does a part only of what it is asked for: the rest follows, at its place, whatever the request's
pages are."""

import subprocess
import sys
from pathlib import Path

from lib import fuse
from lib.basics import check, equal, log, sh, wait_for
from lib.env import Env

BACKENDS = ("rs",)
TIMEOUT = 150
ESTIMATE = 15
SIZE = 4 << 20
MOUNT = Path("/mnt/partial")
# Where, and how much; dom0 reads what the guest has written, and the other way round.
PIECES = ((0, 512 << 10), (1 << 20, 20 << 10), ((3 << 20) + 512, 512), (2 << 20, 256 << 10))


def run(env: Env) -> None:
    MOUNT.mkdir(exist_ok=True)
    daemon = subprocess.Popen([sys.executable, fuse.__file__, str(MOUNT), str(SIZE)], text=True, stdout=subprocess.PIPE)
    env.at_end(f"! mountpoint -q {MOUNT} || umount {MOUNT}")
    image = MOUNT / "disk"
    wait_for(image.exists, 20, "the file system in user space")
    guest = env.guest(env.disk(image))
    for at, size in PIECES:
        guest.sh(
            f"dd if=/dev/urandom of=/tmp/data bs={size} count=1 iflag=fullblock 2>/dev/null; dd if=/tmp/data"
            f" of=/dev/xvda bs={min(size, 256 << 10)} seek={at} oflag=direct,seek_bytes conv=notrunc 2>/dev/null"
        )
        wanted = guest.sh("md5sum </tmp/data").split()[0]
        equal(
            sh(f"tail -c +{at + 1} {image} | head -c {size} | md5sum").split()[0],
            wanted,
            f"what the guest has written at {at}",
        )
        equal(
            guest.sh(
                f"dd if=/dev/xvda bs={min(size, 256 << 10)} skip={at} count={size} iflag=direct,skip_bytes,count_bytes"
                " 2>/dev/null | md5sum"
            ).split()[0],
            wanted,
            f"what the guest reads at {at}",
        )
    guest.shutdown()
    sh(f"umount {MOUNT}")
    reads, writes = map(int, daemon.communicate(timeout=20)[0].split())
    log(f"done in part: {reads} reads, {writes} writes")
    check(reads > len(PIECES) and writes > len(PIECES), f"only {reads} reads and {writes} writes were done in part")
