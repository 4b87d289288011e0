"""Storage is slow, has bad blocks, is taken away: only the requests that it does not do fail, and all others go on.

Bad blocks are null_blk's, which come and go while the device is in use; Debian's kernels have no dm-dust.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from lib.basics import check, equal, log, read, sh, wait_for
from lib.env import Env, block_of, md5, write_pattern
from lib.guest import Guest

BACKENDS = ("rs",)
TIMEOUT = 300
ESTIMATE = 45
SIZE = 8 << 20
HOUR = 3_600_000  # in milliseconds: until there is another table
NULLB, MOUNT = Path("/sys/kernel/config/nullb"), Path("/mnt/faults")
# Some blocks one by one, a request each, and more of them at once: several requests, the first of which has all that
# are bad.
BLOCKS, BAD = 6, (1, 4)
ONE_BY_ONE = "for n in $(seq 0 {0}); do dd bs=4k count=1 {1} 2>/dev/null || echo $n; done"
AT_ONCE = "dd if=/dev/{0} of=/tmp/read bs=512k count=1 iflag=direct && md5sum </tmp/read"


def run(env: Env) -> None:
    delayed = env.device(SIZE >> 20)
    sh(
        "modprobe null_blk nr_devices=0; mountpoint -q /sys/kernel/config || mount -t configfs configfs"
        " /sys/kernel/config"
    )
    env.at_end("rmmod null_blk")
    # What XFS needs at least.
    bare, below = null_blk(env, "bare", SIZE >> 20), null_blk(env, "below", 320)
    image = MOUNT / "disk"
    env.at_end(f"umount {MOUNT} || true")
    sh(f"mkfs.xfs -q -f {below}; mkdir -p {MOUNT}; mount -t xfs {below} {MOUNT}")
    for target in (bare, image):
        write_pattern(target, SIZE, str(target))
    guest = env.guest(env.disk(delayed, "xvda"), env.disk(bare, "xvdb"), env.disk(image, "xvdc"))

    slow(env, guest, delayed)
    bad_blocks(guest, "xvdb", bare, lambda block: block)
    bad_blocks(guest, "xvdc", below, lambda block: block_of(image, block))
    taken_away(env, guest, bare, below)
    guest.shutdown()


def null_blk(env: Env, name: str, megabytes: int) -> str:
    settings = {"size": megabytes, "memory_backed": 1, "power": 1}
    sh(
        f"mkdir {NULLB}/{name}; "
        + "".join(f"echo {value} >{NULLB}/{name}/{key}; " for key, value in settings.items())
        + "udevadm settle"
    )
    env.at_end(f"rmdir {NULLB}/{name}")
    return f"/dev/{name}"


def counts(guest: Guest, vdev: str, *names: str) -> dict[str, int]:
    return {name: int(read(f"{guest.statistics(vdev)}/{name}")) for name in names}


def go_on(guest: Guest, vdev: str) -> None:
    """Waits until the guest has got further answers."""
    before = counts(guest, vdev, "rd_req", "wr_req")
    wait_for(
        lambda: all(now > before[name] + 20 for name, now in counts(guest, vdev, *before).items()),
        30,
        f"requests of {vdev} to go on",
    )


def slow(env: Env, guest: Guest, device: str) -> None:
    """Requests of one disk are outstanding while others work, and all are done in the end."""
    quick = sh(f"dmsetup table {device}").strip()
    length, where = quick.split()[1], quick.split("linear ")[1]

    def in_flight() -> int:
        return int(re.findall(r"(\d+) in flight", guest.debug_state("xvda"))[0])

    # Writes alone, as udev reads what is new to it, and is waited for.
    env.reload(device, f"0 {length} delay {where} 0 {where} {HOUR}")
    written = counts(guest, "xvda", "wr_req")
    guest.keep_verifying("xvda")
    wait_for(in_flight, 20, "requests in flight")
    guest.keep_verifying("xvdc")
    go_on(guest, "xvdc")
    equal(counts(guest, "xvda", "wr_req"), written, "writes that were answered")
    check(in_flight(), "nothing is in flight any more")
    log(f"{in_flight()} requests in flight when the storage becomes quick")
    env.reload(device, quick)
    go_on(guest, "xvda")
    for vdev in ("xvda", "xvdc"):
        guest.stop_verifying(vdev)


def bad_blocks(guest: Guest, vdev: str, device: str, where: Callable[[int], int]) -> None:
    """Reads and writes of bad blocks fail, no others do, and when they are good again all is there."""
    bad = NULLB / Path(device).name / "badblocks"
    known = guest.sh(f"{AT_ONCE.format(vdev)}; mv /tmp/read /tmp/good")
    guest.keep_verifying(vdev)
    ranges = [f"{where(block) * 8}-{where(block) * 8 + 7}" for block in BAD]
    sh("".join(f"echo +{each} >{bad}; " for each in ranges))
    none = counts(guest, vdev, "rd_err", "wr_err", "f_err")
    failing = [str(block) for block in BAD]
    reads = guest.sh(ONE_BY_ONE.format(BLOCKS - 1, f"if=/dev/{vdev} of=/dev/null skip=$n iflag=direct"))
    equal(reads.split(), failing, f"{vdev}: blocks that cannot be read")
    writes = guest.sh(
        ONE_BY_ONE.format(BLOCKS - 1, f"if=/tmp/good of=/dev/{vdev} skip=$n seek=$n oflag=direct conv=notrunc")
    )
    equal(writes.split(), failing, f"{vdev}: blocks that cannot be written")
    guest.fails(AT_ONCE.format(vdev))
    after = {"rd_err": none["rd_err"] + len(BAD) + 1, "wr_err": none["wr_err"] + len(BAD), "f_err": none["f_err"]}
    equal(counts(guest, vdev, *none), after, f"{vdev}: errors")
    sh("".join(f"echo -{each} >{bad}; " for each in ranges))
    equal(guest.sh(AT_ONCE.format(vdev)).splitlines()[-1], known.splitlines()[-1], f"{vdev}: what is on it")
    go_on(guest, vdev)
    guest.stop_verifying(vdev)
    equal(counts(guest, vdev, *none), after, f"{vdev}: errors when the blocks are good again")


def taken_away(env: Env, guest: Guest, bare: str, below: str) -> None:
    """A device goes away that is in use, and another that has the file system of a file in use; a new one comes."""
    vdevs = ("xvdb", "xvdc")
    for vdev in ("xvda", *vdevs):
        guest.keep_verifying(vdev)
        go_on(guest, vdev)
    for device in (bare, below):
        sh(f"echo 0 >{NULLB}/{Path(device).name}/power")
    for vdev in vdevs:
        guest.stop_verifying(vdev, failed=True)
        # A device that is gone has no sectors, as the guest sees sooner or later; then it gets nothing, and no error.
        equal(
            guest.sh(f"dd if=/dev/{vdev} bs=4k count=1 iflag=direct 2>/dev/null | wc -c").strip(),
            "0",
            f"{vdev}: bytes read from what is gone",
        )
        guest.fails(f"dd if=/dev/zero of=/dev/{vdev} bs=4k count=1 oflag=direct conv=notrunc")
    check(all(counts(guest, "xvdc", "rd_err", "wr_err").values()), "no errors were counted")
    go_on(guest, "xvda")
    guest.stop_verifying("xvda")
    for vdev in vdevs:
        guest.detach(vdev)
    sh(f"umount {MOUNT}; echo 1 >{NULLB}/{Path(bare).name}/power; udevadm settle")
    write_pattern(bare, SIZE, bare)
    guest.attach(env.disk(bare, "xvdb"))
    equal(guest.sh("md5sum </dev/xvdb").split()[0], md5(bare), "what the guest reads from the new device")
    guest.sh(
        f"dd if=/tmp/good of=/dev/xvdb bs=512k oflag=direct conv=notrunc && {AT_ONCE.format('xvdb')} && cmp /tmp/read"
        " /tmp/good"
    )
