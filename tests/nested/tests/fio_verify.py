"""fio with checksums in every block, 512 bytes to 1 MiB, one and many in flight, on files of all file systems and on a
device."""

from lib.basics import log
from lib.env import FILE_SYSTEMS, Env
from lib.guest import Guest

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 500
ESTIMATE = 80

# Pattern, size of the area, block sizes, depth. Each block carries its own checksum and offset; with verify_fatal fio
# stops at the first that is wrong. The sizes are what emulation does in some seconds.
JOBS = (
    ("randwrite", "1m", "--bsrange=512-3584", 8),  # buffers lie 3584 bytes apart, so at all offsets in a page
    ("randwrite", "1m", "--bsrange=512-64k", 1),
    ("randwrite", "6m", "--bsrange=512-1m", 32),
    ("randrw", "3m", "--bs=4k", 32),
    ("write", "6m", "--bs=1m", 4),
)


def fio(guest: Guest, vdev: str, timeout: float = 150) -> None:
    """All JOBS on one disk, each in its own part of it."""
    offset = 0
    for pattern, size, sizes, depth in JOBS:
        guest.sh(
            f"fio --name=v --filename=/dev/{vdev} --rw={pattern} --offset={offset}m --size={size} {sizes}"
            f" --iodepth={depth} --ioengine=libaio --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1"
            f" --verify_dump=0 --randseed={depth + offset} --thread --minimal >/tmp/fio 2>&1"
            " || { tail -c 1500 /tmp/fio; exit 1; }",
            timeout,
        )
        offset += int(size[:-1])


def run(env: Env) -> None:
    targets = {kind: str(env.file(kind, "disk", 40 << 20)) for kind in FILE_SYSTEMS} | {"device": env.device(64)}
    vdevs = {name: f"xvd{'abcde'[number]}" for number, name in enumerate(targets)}
    guest = env.guest(*(env.disk(targets[name], vdevs[name]) for name in targets), vcpus=2)
    for name, vdev in vdevs.items():
        log(f"--- {name}")
        fio(guest, vdev)
    guest.shutdown()
