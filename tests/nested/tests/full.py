"""A file system that runs full under a sparse file: the write that finds no room fails, and works when there is room
again."""

from lib.basics import check, log, sh
from lib.env import Env

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 200
ESTIMATE = 45
SIZE = 64 << 20
KINDS = ("ext4", "xfs")
# One write that must reach the file, at an offset in MiB; prints what went wrong.
WRITE = "dd if=/dev/urandom of=/dev/{0} bs=1M seek={1} count={2} oflag=direct conv=notrunc,fsync 2>&1"


def run(env: Env) -> None:
    vdevs = dict(zip(KINDS, ("xvda", "xvdb")))
    images = {kind: env.file(kind, "disk", SIZE) for kind in KINDS}
    guest = env.guest(*(env.disk(images[kind], vdevs[kind]) for kind in KINDS))
    for kind, vdev in vdevs.items():
        guest.sh(WRITE.format(vdev, 0, 2))
        filler = images[kind].parent / "filler"
        # All the room there is but 4 MiB.
        sh(f"dd if=/dev/zero of={filler} bs=1M 2>/dev/null || true; sync; truncate -s -4M {filler}; sync")
        text = guest.fails(WRITE.format(vdev, 8, 32), timeout=90)
        log(f"{kind}: {text.strip().splitlines()[0]}")
        check("rror" in text or "space" in text.lower(), f"{kind}: what the guest saw: {text}")
        guest.sh(f"dd if=/dev/{vdev} of=/dev/null bs=1M count=2 iflag=direct")
        filler.unlink()
        sh("sync")
        guest.sh(WRITE.format(vdev, 8, 32), timeout=90)
    guest.shutdown()
