"""A guest's discard gives space back: a hole in the file, whose size and other data stay."""

from lib.basics import check, equal, log
from lib.env import Env, pattern

BACKENDS = ("rs", "loop")
TIMEOUT = 200
ESTIMATE = 45
SIZE = 8 << 20


def run(env: Env) -> None:
    files = {kind: env.file(kind, "disk", SIZE, fill=kind) for kind in ("ext4", "xfs", "tmpfs")}
    vdevs = dict(zip(files, ("xvda", "xvdb", "xvdc")))
    fixed, fixed_too = (env.file("ext4", name, 1 << 20, fill=name) for name in ("fixed", "fixed_too"))
    guest = env.guest(*(env.disk(files[kind], vdevs[kind]) for kind in files), env.disk(fixed, "xvdd", access="r"),
                      "no-discard," + env.disk(fixed_too, "xvde"))
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
            for at, want in ((0, True), ((2 << 20) - 65536, True), (2 << 20, False), ((6 << 20) - 65536, False), (6 << 20, True)):
                file.seek(at)
                equal(file.read(65536), pattern(kind, at, 65536) if want else bytes(65536), f"{kind}: content at {at}")
        equal(guest.sh(f"dd if=/dev/{vdev} bs=64k skip=32 count=64 iflag=direct 2>/dev/null | md5sum").split()[0],
              guest.sh("dd if=/dev/zero bs=64k count=64 2>/dev/null | md5sum").split()[0], f"{kind}: what the guest reads of the hole")
    guest.shutdown()
