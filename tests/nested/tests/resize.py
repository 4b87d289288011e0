"""A disk grows and shrinks under a running guest; what is gone gives errors, and the rest goes on."""

import os

from lib.basics import check, equal, log, sh, wait_for
from lib.env import Env
from lib.guest import Guest

BACKENDS = ("rs", "loop")
TIMEOUT = 240
ESTIMATE = 40
SMALL, LARGE = 16, 48  # MiB


def seen(guest: Guest, vdev: str, megabytes: int) -> None:
    """The guest has to see the size by itself; the test gives a slow machine more than the second it should take."""
    log(f"{guest.name} sees {megabytes} MiB on {vdev} after {guest.wait_size(vdev, megabytes << 11):.2f} s")


def run(env: Env) -> None:
    image = env.file("ext4", "disk", SMALL << 20)
    device = env.device(SMALL)
    raw = env.raw_device()
    guest = env.guest(env.disk(image, "xvda"), env.disk(device, "xvdb"))

    def resize(megabytes: int) -> None:
        sh(f"truncate -s {megabytes}M {image}")
        env.reload(device, f"0 {megabytes << 11} linear {raw} 0")
        if env.backend == "loop":
            sh("losetup -c $(losetup -n -O NAME)")
        for vdev in ("xvda", "xvdb"):
            seen(guest, vdev, megabytes)

    resize(LARGE)
    for vdev, target in (("xvda", image), ("xvdb", device)):
        guest.sh(
            f"yes new | dd of=/dev/{vdev} bs=1M count=4 seek={LARGE - 4} iflag=fullblock oflag=direct"
            " conv=notrunc,fsync"
        )
        equal(
            sh(f"dd if={target} bs=1M count=4 skip={LARGE - 4} iflag=direct 2>/dev/null | md5sum"),
            sh(f"yes new | head -c {4 << 20} | md5sum"),
            f"what was written to the new end of {vdev}",
        )

    resize(SMALL)
    for vdev in ("xvda", "xvdb"):
        guest.fails(f"dd if=/dev/zero of=/dev/{vdev} bs=1M count=1 seek={SMALL} oflag=direct conv=notrunc")
        guest.sh(f"dd if=/dev/zero of=/dev/{vdev} bs=1M count={SMALL} oflag=direct conv=notrunc,fsync")
    equal(os.stat(image).st_size, SMALL << 20, "the file's size after a write behind its end")

    # The file's name goes, its contents stay until the guest lets go; the device's contents go.
    if env.backend == "rs":
        image.unlink()  # a loop device would stay behind
    env.reload(device, f"0 {SMALL << 11} error")
    guest.sh(
        "dd if=/dev/xvda of=/dev/null bs=1M iflag=direct && dd if=/dev/zero of=/dev/xvda bs=1M count=1 oflag=direct"
        " conv=notrunc"
    )
    guest.fails("dd if=/dev/xvdb of=/dev/null bs=1M iflag=direct")
    if env.backend == "rs":
        errors = sh(f"cat {guest.statistics('xvdb')}/rd_err")
        check(int(errors) > 0, "no read error was counted")
    env.reload(device, f"0 {SMALL << 11} linear {raw} 0")
    guest.sh("dd if=/dev/xvdb of=/dev/null bs=1M iflag=direct")
    check(guest.exists(), "the guest is gone")
    guest.shutdown()
    wait_for(lambda: not env.backends(), 30, "the disks gone")
