"""Errors of the storage reach the guest and are counted by operation; what the storage cannot do is answered so that it
is not tried again."""

from lib.basics import check, equal, read, sh
from lib.env import Env

BACKENDS = ("rs",)
TIMEOUT = 120
ESTIMATE = 25
SIZE = 16  # MiB
MOUNT = "/mnt/vfat"
WAYS = {
    "rd_err": "dd if=/dev/xvda of=/dev/null bs=1M skip=5 count=1 iflag=direct",
    "wr_err": "dd if=/dev/zero of=/dev/xvda bs=1M seek=5 count=1 oflag=direct conv=notrunc",
    "f_err": "dd if=/dev/null of=/dev/xvda conv=notrunc,fsync",
    "ds_err": "blkdiscard -o 5M -l 1M /dev/xvda",
}


def run(env: Env) -> None:
    device = env.device(SIZE)
    good = sh(f"dmsetup table {device}")
    raw = env.raw_device()
    other = env.device(SIZE * 2, 1)
    sh(
        f"busybox mkdosfs {other} && mkdir -p {MOUNT} && mount -t vfat {other} {MOUNT} && truncate -s {SIZE}M"
        f" {MOUNT}/disk"
    )
    env.at_end(f"umount {MOUNT}")
    guest = env.guest(env.disk(device, "xvda"), env.disk(f"{MOUNT}/disk", "xvdb"))
    statistics = guest.statistics("xvda")

    def errors() -> dict[str, int]:
        return {name: int(read(f"{statistics}/{name}")) for name in WAYS}

    def all_work() -> None:
        before = errors()
        for way in WAYS.values():
            guest.sh(way)
        equal(errors(), before, "errors while all is well")

    all_work()
    # Udev looks at many a place, but not at this one.
    bad, end = 5 << 11, 6 << 11
    env.reload(
        device,
        f"0 {bad} linear {raw} 0\n{bad} {end - bad} flakey {raw} {bad} 0 3600\n"
        f"{end} {(SIZE << 11) - end} linear {raw} {end}",
    )
    for name, way in WAYS.items():
        before = errors()
        done = guest.run(way)
        # Linux takes a flush that fails for one that is not supported, and sends no more of them.
        check(done.code != 0 or name == "f_err", f"{way} succeeded, but must not")
        after = errors()
        check(after[name] > before[name], f"{name} is {after[name]} after an error, as before")
        equal({**after, name: 0}, {**before, name: 0}, f"errors of other operations when there was one for {name}")
    env.reload(device, good)
    all_work()

    # This file system cannot make holes, and does not say so before it is asked.
    check(int(guest.sh("cat /sys/block/xvdb/queue/discard_max_bytes")) > 0, "the guest cannot discard before")
    guest.sh(WAYS["ds_err"].replace("xvda", "xvdb"))  # which Linux takes for done
    equal(read(f"{guest.statistics('xvdb')}/ds_err").strip(), "1", "discards that failed")
    equal(
        int(guest.sh("cat /sys/block/xvdb/queue/discard_max_bytes")),
        0,
        "bytes that the guest would still discard at once",
    )
    guest.sh("dd if=/dev/zero of=/dev/xvdb bs=64k count=16 oflag=direct conv=notrunc,fsync")
    guest.shutdown()
