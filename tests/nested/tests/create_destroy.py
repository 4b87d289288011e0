"""Guests are created and destroyed again and again in the middle of their I/O, on a file and on a device."""

from lib.basics import log, wait_for
from lib.env import Env

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 420
ESTIMATE = 110
CYCLES = 10


def run(env: Env) -> None:
    image, device = env.file("ext4", "disk", 24 << 20), env.device(24)
    for cycle in range(env.count(CYCLES)):
        guest = env.guest(env.disk(image, "xvda"), env.disk(device, "xvdb"), vcpus=1 + cycle % 2)
        for vdev in ("xvda", "xvdb"):
            guest.sh(f"fio --name=io --filename=/dev/{vdev} --rw=randrw --bsrange=4k-128k --size=24m --iodepth=16 --thread"
                     " --ioengine=libaio --direct=1 --time_based --runtime=600 >/dev/null 2>&1 &")
        wait_for(lambda: all(int(guest.sh(f"cat /sys/block/{vdev}/stat").split()[4]) > 4 for vdev in ("xvda", "xvdb")), 40,
                 "both disks written by the guest")
        guest.destroy()
        wait_for(lambda: not env.backends(), 20, "the backend's nodes gone")
        log(f"cycle {cycle} done")
