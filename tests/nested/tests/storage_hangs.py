"""One disk's storage hangs and its guest is destroyed: disks of other guests come and go meanwhile."""

import subprocess
import time

from lib.basics import PACE, check, log, pause, sh
from lib.env import Env

BACKENDS = ("rs", "loop")
TIMEOUT = 240
ESTIMATE = 57


def run(env: Env) -> None:
    device = env.device()
    env.at_end(f"dmsetup resume {device} || true")
    guest, other = env.guest(env.disk(device)), env.guest()
    spare = env.file("ext4", "spare", 4 << 20, fill="spare")
    node = guest.backend("xvda")
    sh(f"dmsetup suspend --noflush {device}")
    guest.sh("(dd if=/dev/zero of=/dev/xvda bs=4k count=1 oflag=direct) >/dev/null 2>&1 &")
    pause(2)  # the request is in flight, which nothing tells on all backends
    start = time.monotonic()
    destroy = subprocess.Popen(["xl", "destroy", guest.name])
    try:
        destroy.wait(60 * PACE)
    except subprocess.TimeoutExpired:
        log("xl destroy did not end")
    log(f"xl destroy: {destroy.poll()} after {time.monotonic() - start:.1f} s")
    sh(f"xenstore-rm {node} 2>/dev/null || true")
    pause(2)  # xenwatch has seen it
    start = time.monotonic()
    attach = subprocess.Popen(["xl", "block-attach", other.name, env.disk(spare, "xvdb")])
    try:
        attach.wait(20 * PACE)
    except subprocess.TimeoutExpired:
        pass
    took, code = time.monotonic() - start, attach.poll()
    log(
        f"attach to another guest: {code} after {took:.1f} s; xenwatch: "
        + sh("cat /proc/$(pgrep -x xenwatch | head -n 1)/stack")
    )
    sh(f"dmsetup resume {device}")
    check(code == 0, f"another guest's disk did not come while this one's storage hung ({code} after {took:.1f} s)")
    other.destroy()
