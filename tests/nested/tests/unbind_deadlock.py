"""A disk is unbound while its storage hangs, and the toolstack removes its directory meanwhile: neither waits for the
other for ever."""

import subprocess

from lib.basics import check, pause, sh, wait_for
from lib.env import DRIVERS, Env

BACKENDS = ("rs", "loop")
TIMEOUT = 200
ESTIMATE = 50


def run(env: Env) -> None:
    device = env.device()
    env.at_end(f"dmsetup resume {device} || true")
    guest, other = env.guest(env.disk(device)), env.guest()
    spare = env.file("ext4", "spare", 4 << 20, fill="spare")
    node = guest.backend("xvda")
    name = guest.bus_name("xvda")
    before = guest.env.kernel_log.lines()[-1:]
    sh(f"dmsetup suspend --noflush {device}")
    guest.sh("(dd if=/dev/zero of=/dev/xvda bs=4k count=1 oflag=direct) >/dev/null 2>&1 &")
    pause(2)  # the request is in flight, which nothing tells on all backends
    unbind = subprocess.Popen(["sh", "-c", f"echo {name} >{DRIVERS[env.backend]}/unbind"])
    pause(2)  # it waits for the request, or has ended
    sh(f"xenstore-rm {node}")
    pause(2)  # xenwatch has seen it
    sh(f"dmsetup resume {device}")
    wait_for(lambda: unbind.poll() is not None, 20, f"unbind to end ({before})")
    done = other.try_attach(env.disk(spare, "xvdb"))
    check(done.returncode == 0, f"another guest's disk does not come: {done.stderr.strip()}")
    other.destroy()
    guest.destroy()
