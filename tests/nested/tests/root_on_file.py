"""A guest boots with its root file system on a raw file, writes to it, reboots, and dom0 finds the change in the
file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.basics import check, equal, sh
from lib.env import Env
from lib.guest import Guest

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 180
ESTIMATE = 20
TEMPLATE = "/opt/guest/guest-root.img"


def boot_from(
    env: Env, target: str | Path, meanwhile: Callable[[Guest], None] = lambda guest: None, **config: Any
) -> None:
    """Copies the template root to TARGET, boots a guest from it, and does something MEANWHILE; for all kinds of
    guests."""
    sh(f"dd if={TEMPLATE} of={target} bs=1M conv=fsync status=none")
    guest = env.guest(env.disk(target), extra="root=/dev/xvda", **config)
    check("/dev/xvda / ext4 rw" in guest.sh("cat /proc/mounts"), "the guest's root is not on its disk")
    guest.sh("dd if=/dev/urandom of=/file bs=64k count=32; sync; echo 3 >/proc/sys/vm/drop_caches")
    want = guest.sh("md5sum </file").split()[0]
    meanwhile(guest)
    equal(guest.sh("md5sum </file").split()[0], want, "checksum of the guest's file")
    guest.sh("mount -o remount,ro /")
    guest.shutdown()
    equal(
        sh(f"fsck.ext4 -fn {target} >/dev/null && debugfs -R 'cat /file' {target} 2>/dev/null | md5sum").split()[0],
        want,
        "checksum of the guest's file, read from dom0",
    )


def reboot(guest: Guest) -> None:
    guest.keep_reading("xvda")
    guest.reboot()
    guest.check_served("xvda")


def run(env: Env) -> None:
    boot_from(env, env.file("ext4", "root", 64 << 20), reboot, on_reboot="restart")
