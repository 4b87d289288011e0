"""What a guest has flushed is there after a power cut of the host: sparse files on ext4, XFS and btrfs, and a device.

The file systems of dom0 write their journals only every five minutes here, so that data in a sparse file can be
reached after the cut only if the guest's flush has gone all the way through the file's fsync. The device's own
counter shows the flush there.
"""

from pathlib import Path
from typing import Any

from lib.basics import check, equal, log, read, sh
from lib.env import Env, drive

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 240
ESTIMATE = 60
OPTIONS = {"ext4": "commit=300", "xfs": "", "btrfs": "commit=300"}
SIZE = 32 << 20
PLACES = (0, 1 << 20, (7 << 20) + 4096, (31 << 20) + 512)  # far apart: each needs an allocation of its own


def text(kind: str, place: int) -> str:
    return f"{kind} at {place}: flushed before the cut"


def run(env: Env) -> None:
    sh("modprobe xfs; echo 300000 >/proc/sys/fs/xfs/xfssyncd_centisecs")
    images = {kind: env.fs(kind, options=OPTIONS[kind] or "defaults") / "flushed" for kind in OPTIONS}
    for image in images.values():
        with image.open("wb") as file:
            file.truncate(SIZE)
    sh("sync")
    device = drive("xb-bdev")
    vdevs = dict(zip(images, ("xvda", "xvdb", "xvdc")))
    guest = env.guest(*(env.disk(images[kind], vdevs[kind]) for kind in images), env.disk(device, "xvdd"))
    before = flushes(device)
    for kind, vdev in [*vdevs.items(), ("device", "xvdd")]:
        writes = "; ".join(
            f"echo '{text(kind, place)}' | dd of=/dev/{vdev} bs=512 seek={place // 512} conv=sync oflag=direct"
            " iflag=fullblock"
            for place in PLACES
        )
        guest.sh(f"set -e; {writes}; dd if=/dev/null of=/dev/{vdev} conv=notrunc,fsync")
    after = flushes(device)
    log(f"flushes that reached the drive: {before} -> {after}")
    check(after > before, "no flush of the guest reached the drive below its disk")
    env.power_cut(backend=env.backend)


def flushes(device: str) -> int:
    """How many flush requests the kernel has sent to a drive (Documentation/block/stat.rst, field 16)."""
    return int(read(f"/sys/block/{Path(device).name}/stat").split()[15])


def after_power_cut(env: Env, state: dict[str, Any]) -> None:
    targets: dict[str, str | Path] = {kind: env.fs(kind, fresh=False) / "flushed" for kind in OPTIONS}
    targets["device"] = drive("xb-bdev")
    for kind, target in targets.items():
        with open(target, "rb") as file:
            for place in PLACES:
                file.seek(place)
                equal(
                    file.read(512).rstrip(b"\0").decode(errors="replace").strip(),
                    text(kind, place),
                    f"{kind}: what the guest flushed at {place}",
                )
    for kind in OPTIONS:
        env.unmount(kind)
