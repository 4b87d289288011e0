"""Files whose size is no multiple of 4 KiB or of a sector, and files with holes: every sector, and none beyond."""

import hashlib
from pathlib import Path

from lib.basics import check, equal
from lib.env import Env, pattern

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 200
ESTIMATE = 30
MIB = 1 << 20
SIZES = {"xvda": 2 * MIB + 3 * 512, "xvdb": MIB + 4096 + 100, "xvdc": 512, "xvdd": 24 * MIB}


def run(env: Env) -> None:
    files = {vdev: env.file("ext4", vdev, size, fill=vdev if vdev != "xvdd" else None) for vdev, size in SIZES.items()}
    islands = (0, 3 * MIB + 512, 24 * MIB - 4096)  # data of the sparse file; all else are holes
    with files["xvdd"].open("r+b") as file:
        for place in islands:
            file.seek(place)
            file.write(pattern("island", place, 4096))
    used = files["xvdd"].stat().st_blocks
    guest = env.guest(*(env.disk(path, vdev) for vdev, path in files.items()))
    for vdev, size in SIZES.items():
        whole = size // 512 * 512
        got = int(guest.sh(f"blockdev --getsize64 /dev/{vdev}"))
        if env.backend == "qdisk" and size % 512:
            whole = got  # it rounds up
        equal(got, whole, f"size of {vdev}")
        if whole <= size:
            want = md5_of_start(files[vdev], whole)
            equal(guest.sh(f"md5sum </dev/{vdev}").split()[0], want, f"{vdev} as the guest reads it")
        sector = whole // 512 - 1
        guest.fails(f"dd if=/dev/zero of=/dev/{vdev} bs=512 seek={sector + 1} count=1 oflag=direct")
        equal(
            guest.sh(f"dd if=/dev/{vdev} bs=512 skip={sector + 1} iflag=direct 2>/dev/null | wc -c").strip(),
            "0",
            "data beyond",
        )
        guest.sh(f"yes {vdev} | dd of=/dev/{vdev} bs=512 seek={sector} count=1 oflag=direct iflag=fullblock")
    check(files["xvdd"].stat().st_blocks <= used + 64, "reading holes filled them")
    guest.shutdown()
    for vdev, size in SIZES.items():
        if env.backend == "qdisk" and size % 512:
            continue
        equal(files[vdev].stat().st_size, size, f"size of the file of {vdev} afterwards")
        data = files[vdev].read_bytes()
        last = size // 512 * 512 - 512
        equal(data[last : last + 512], (f"{vdev}\n" * 200).encode()[:512], f"last sector of {vdev}")
        if vdev != "xvdd":
            check(data[:last] == expected(vdev, size)[:last], f"{vdev}: a sector that was not written has changed")
            check(
                data[last + 512 :] == expected(vdev, size)[last + 512 :],
                f"{vdev}: the bytes after the last sector have changed",
            )


def expected(seed: str, size: int) -> bytes:
    block = 1 << 16
    return b"".join(pattern(seed, at, min(block, size - at)) for at in range(0, size, block))


def md5_of_start(path: Path, size: int) -> str:
    return hashlib.md5(path.read_bytes()[:size]).hexdigest()
