"""A guest's discard gives space back: a hole in the file, whose size and other data stay; on a device what that one
does."""

import os
from pathlib import Path

from lib.basics import check, equal, log, read, sh
from lib.env import Env, pattern, write_pattern
from lib.guest import Guest

BACKENDS = ("rs", "loop")
TIMEOUT = 200
ESTIMATE = 50
SIZE = 8 << 20


def run(env: Env) -> None:
    files = {kind: env.file(kind, "disk", SIZE, fill=kind) for kind in ("ext4", "xfs", "tmpfs")}
    vdevs = dict(zip(files, ("xvda", "xvdb", "xvdc")))
    fixed, fixed_too = (env.file("ext4", name, 1 << 20, fill=name) for name in ("fixed", "fixed_too"))
    guest = env.guest(
        *(env.disk(files[kind], vdevs[kind]) for kind in files),
        env.disk(fixed, "xvdd", access="r"),
        "no-discard," + env.disk(fixed_too, "xvde"),
    )
    for vdev, why in (("xvdd", "on a read-only disk"), ("xvde", "which the administrator has forbidden")):
        equal(int(guest.sh(f"cat /sys/block/{vdev}/queue/discard_max_bytes")), 0, f"bytes to discard at once {why}")
    for kind, vdev in vdevs.items():
        blocks = files[kind].stat().st_blocks
        guest.sh(f"blkdiscard -o {2 << 20} -l {4 << 20} /dev/{vdev}")
        now = files[kind].stat()
        log(f"{kind}: {blocks} -> {now.st_blocks} blocks")
        equal(now.st_size, SIZE, f"{kind}: size of the file")
        check(now.st_blocks <= blocks - (4 << 20) // 512, f"{kind}: {blocks} blocks before, {now.st_blocks} after")
        with files[kind].open("rb") as file:
            for at, want in (
                (0, True),
                ((2 << 20) - 65536, True),
                (2 << 20, False),
                ((6 << 20) - 65536, False),
                (6 << 20, True),
            ):
                file.seek(at)
                equal(file.read(65536), pattern(kind, at, 65536) if want else bytes(65536), f"{kind}: content at {at}")
        equal(
            guest.sh(f"dd if=/dev/{vdev} bs=64k skip=32 count=64 iflag=direct 2>/dev/null | md5sum").split()[0],
            guest.sh("dd if=/dev/zero bs=64k count=64 2>/dev/null | md5sum").split()[0],
            f"{kind}: what the guest reads of the hole",
        )
    on_device(env, guest)
    guest.shutdown()


def on_device(env: Env, guest: Guest) -> None:
    """The device gets the discard, all of it and no more. One that cannot discard is not asked to."""
    device = env.device(SIZE >> 20)
    write_pattern(device, SIZE, "device")
    guest.attach(env.disk(device, "xvdf"))
    number = os.stat(device).st_rdev
    queue = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")

    def discards() -> list[int]:
        """Requests and sectors, as in Documentation/admin-guide/iostats.rst."""
        fields = [int(field) for field in read(queue / "stat").split()]
        return [fields[11], fields[13]]

    node = {
        name: env.store.read(f"{guest.backend('xvdf')}/{name}")
        for name in ("feature-discard", "discard-granularity", "discard-alignment", "discard-secure")
    }
    equal(
        node,
        {
            "feature-discard": "1",
            "discard-granularity": read(queue / "queue/discard_granularity").strip(),
            "discard-alignment": read(queue / "discard_alignment").strip(),
            "discard-secure": "0",
        },
        "nodes about discard",
    )
    requests, sectors = discards()
    guest.sh(f"blkdiscard -o {2 << 20} -l {4 << 20} /dev/xvdf")
    now = discards()
    check(now[0] > requests, "the device got no discard")
    equal(now[1] - sectors, (4 << 20) // 512, "sectors that the device was told to discard")
    data = sh(f"dd if={device} bs=64k iflag=direct of=/tmp/data 2>/dev/null") or Path("/tmp/data").read_bytes()
    for at in (0, (2 << 20) - 65536, 6 << 20, SIZE - 65536):
        equal(data[at : at + 65536], pattern("device", at, 65536), f"content of the device at {at}")

    sh("modprobe null_blk nr_devices=1 gb=1 && udevadm settle")
    env.at_end("rmmod null_blk")
    guest.attach(env.disk("/dev/nullb0", "xvdg"))
    equal(
        env.store.read(f"{guest.backend('xvdg')}/feature-discard"), "0", "feature-discard of a device that cannot do it"
    )
    equal(
        int(guest.sh("cat /sys/block/xvdg/queue/discard_max_bytes")),
        0,
        "bytes to discard at once on a device that cannot do it",
    )
