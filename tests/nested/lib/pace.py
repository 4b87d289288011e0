"""How much slower the machine is than an idle host with two processors: time limits are stretched so many times.

Every limit in a test is for such a host; basics.py, guest.py and the guest's init stretch it. XB_PACE has the factor.
"""

from __future__ import annotations

import os
import subprocess
import time

# Programs that are started, one after the other, and the seconds that this takes on an idle host. It is what tests do
# most, uses the emulator in all its parts, and needs nothing from a disk: the program has been read when the first one
# has ended. Not fewer: what else the host does comes in bursts.
PROGRAMS = 30
USUAL = 0.63
MOST = 8.0  # what cannot be done so slowly is not to be waited for

HUNG_TASK_SECONDS = 60  # a real hang is found sooner or later; a stalled emulator is no hang


def measure() -> float:
    """The pace now, 1 to MOST."""
    argv = ["/bin/true"]
    subprocess.run(argv, check=True)
    start = time.monotonic()
    for _ in range(PROGRAMS):
        subprocess.run(argv, check=True)
    return round(min(max((time.monotonic() - start) / USUAL, 1.0), MOST), 2)


def preset() -> float:
    """What was measured before, or was asked for."""
    return max(float(os.environ.get("XB_PACE") or 1), 1.0)


def watch_tasks(pace: float) -> None:
    """Has dom0's kernel report tasks that hang for longer than this pace explains."""
    with open("/proc/sys/kernel/hung_task_timeout_secs", "w") as file:
        file.write(str(round(HUNG_TASK_SECONDS * pace)))
