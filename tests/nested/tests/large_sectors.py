"""Files on storage with sectors of 4096 bytes, used in smaller pieces, too: data are right, flushes work, whoever else
reads the file."""

import os

from lib.basics import check, equal, log, read, sh
from lib.env import Env

BACKENDS = ("rs",)
TIMEOUT = 300
ESTIMATE = 70
CONFIG = "/sys/kernel/config/nullb/coarse"
MOUNT = "/mnt/coarse"
ROUNDS = 2
LONG = 20
# Neighbours in a piece of the page cache are written in different ways at the same time.
FIO = (
    "fio --name=v --filename=/dev/xvda --rw=randrw --size=2m --bssplit=512/40:4k/40:64k/20 --iodepth=32"
    " --ioengine=libaio --direct=1 --fsync=16 --verify=crc32c --do_verify=1 --verify_fatal=1 --verify_dump=0"
    " --randseed={0} --minimal >/tmp/fio 2>&1 || {{ tail -c 1500 /tmp/fio; exit 1; }}"
)


def run(env: Env) -> None:
    settings = {"size": 400, "memory_backed": 1, "blocksize": 4096}
    sh(
        "modprobe null_blk nr_devices=0; mountpoint -q /sys/kernel/config || mount -t configfs configfs"
        f" /sys/kernel/config; mkdir {CONFIG}; "
        + "".join(f"echo {value} >{CONFIG}/{name}; " for name, value in settings.items())
        + f"echo 1 >{CONFIG}/power; udevadm settle; "
        f"mkfs.xfs -q -f /dev/coarse; mkdir -p {MOUNT}; mount -t xfs /dev/coarse {MOUNT}",
        120,
    )
    env.at_end(f"umount {MOUNT}; echo 0 >{CONFIG}/power; rmdir {CONFIG}; rmmod null_blk")
    image = f"{MOUNT}/disk"
    sh(f"dd if=/dev/urandom of={image} bs=1M count=8 conv=fsync 2>/dev/null")
    guest = env.guest(env.disk(image, "xvda"), vcpus=2)
    files = os.path.dirname(guest.statistics("xvda"))

    def buffered() -> int:
        return int(read(f"{files}/statistics/buffered_req"))

    # What is read in small pieces changes nothing about the rest.
    # Not with dd, whose small buffers are not aligned: it would read through the guest's page cache.
    guest.sh(
        "fio --name=small --filename=/dev/xvda --rw=read --bs=512 --size=4608 --ioengine=libaio --direct=1 --minimal"
        " >/dev/null"
    )
    before = buffered()
    check(before >= 9, f"{before} requests were buffered, of nine with less than a sector")
    guest.sh(
        "dd if=/dev/zero of=/dev/xvda bs=64k count=16 seek=16 oflag=direct conv=notrunc,fsync; dd if=/dev/xvda"
        " of=/dev/null bs=64k count=16 iflag=direct"
    )
    equal(buffered(), before, "buffered requests after such that direct I/O can do")
    # dom0 reads the file meanwhile, ahead and in large pieces, as a backup does.
    sh(f"(while ! [ -e /tmp/stop ]; do dd if={image} of=/dev/null bs=1M; done) >/dev/null 2>&1 & rm -f /tmp/stop")
    env.at_end("touch /tmp/stop")
    for number in range(env.count(ROUNDS)):
        guest.sh(FIO.format(number + 1), timeout=120)
    sh("touch /tmp/stop")
    log(guest.debug_state("xvda"))
    check("all buffered" in guest.debug_state("xvda"), "state does not say that everything is buffered")
    before = buffered()
    guest.sh("dd if=/dev/zero of=/dev/xvda bs=64k count=16 seek=16 oflag=direct conv=notrunc,fsync")
    check(buffered() >= before + 16, "large requests go another way than small ones")
    bad = [line for line in env.kernel_log.lines() if "invalidation failure" in line]
    check(not bad, f"{bad}")
    guest.shutdown()
