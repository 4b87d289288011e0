"""Dom0 is suspended: nothing is taken from a guest meanwhile, and everything goes on afterwards."""

import itertools
import re

from lib import tracing
from lib.basics import check, log, read, sh
from lib.env import Env

BACKENDS = ("rs",)
TIMEOUT = 150
ESTIMATE = 30
DELAY = 2  # seconds that a trial of suspending waits when all tasks are frozen


def run(env: Env) -> None:
    guest = env.guest(env.disk(env.file("ext4", "disk", 8 << 20), "xvda"), env.disk(env.device(8), "xvdb"))
    for vdev in ("xvda", "xvdb"):
        guest.keep_reading(vdev)
    # Only as far as the freezing of tasks.
    delay = "/sys/module/suspend/parameters/pm_test_delay"
    env.at_end(f"echo none >/sys/power/pm_test; echo {read(delay)} >{delay}")
    sh(f"echo {DELAY} >{delay}; echo freezer >/sys/power/pm_test")
    with tracing.traced(tracing.OURS) as trace:
        sh("echo freeze >/sys/power/state; sleep 1")
    for device in (51712, 51728):
        times = [
            float(time)
            for time in re.findall(rf"(\d+\.\d+): xen_blkback_rs_start: backend/vbd/\d+/{device} ", trace.text)
        ]
        check(len(times) > 10, f"no requests traced: {trace.text[-1000:]}")
        pause = max(after - before for before, after in itertools.pairwise(times))
        log(f"{device}: {len(times)} requests, the longest pause is {pause:.2f} s")
        check(
            pause > DELAY * 0.9,
            f"requests were taken while dom0's tasks were frozen: the longest pause is {pause:.2f} s",
        )
    guest.sh("for d in xvda xvdb; do dd if=/dev/zero of=/dev/$d bs=64k count=8 oflag=direct conv=notrunc,fsync; done")
    guest.shutdown()
