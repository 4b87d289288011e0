"""A guest sends events, requests and writes to xenstore as fast as it can: its neighbour keeps its share, and other disks come and go."""

import time

from lib.basics import check, log, run as command, wait_for
from lib.env import Env
from lib.guest import Guest, vdev_number
from lib.hostile import LARGE, SMALL, Scene, begin, end

BACKENDS = ("rs", "loop")
TIMEOUT = 1800
ESTIMATE = 100
ONLY_LONG = True
LONG = 20  # and pvh guests, too
ATTACH = 5  # seconds that it may take longer than usual


def run(env: Env) -> None:
    env.parameter("max_queues", 2)
    for kind in ("pv", "pvh") if env.long() else ("pv",):
        storms(env, kind)


def storms(env: Env, kind: str) -> None:
    scene = Scene(env)
    seconds = env.count(1)
    hostile = env.guest(env.disk(env.file("ext4", "disk", 32 << 20, fill="disk"), "xvda"), env.disk(env.device(32), "xvdb"), frontend=True,
                        vcpus=2, kind=kind)
    for vdev, names, honest in (("xvda", ("kick", "refused"), ""), ("xvda", ("flushes", "barriers"), ""), ("xvda", ("discards", "large"), LARGE),
                                ("xvdb", ("large",), LARGE), ("xvdb", ("states", "nodes"), "")):
        more = {"honest": honest} if honest else {}
        scene.attack(hostile, *names, seconds=seconds, options=f"--vdev {vdev} --queues 2", **more)
    took = {}
    for words in (SMALL, "attack states nodes --vdev xvda"):
        begin(hostile, f"{words} --seconds {3 * seconds}")
        took[words] = attached(env, scene.neighbour)
        code, text = end(hostile)
        scene.demand(code == 0, f"{words}: {text.strip()}")
    log(f"seconds until a disk of another guest is attached beside: {took}")
    usual, now = took.values()
    scene.demand(now <= 2 * usual + ATTACH, f"a disk of another guest attached in {now:.1f} s, beside an honest guest in {usual:.1f} s")
    begin(hostile, "attack kick --vdev xvda --queues 2 --seconds 1000")
    scene.end(hostile)


def attached(env: Env, guest: Guest) -> float:
    """Seconds that xl block-attach takes; the disk goes again."""
    start = time.monotonic()
    done = guest.try_attach(env.disk(env.file("xfs", "other", 1 << 20), "xvdq"))
    took = time.monotonic() - start
    check(done.returncode == 0, f"xl block-attach: {done.stderr.strip()}")
    command("xl", "block-detach", "--force", guest.name, str(vdev_number("xvdq")))
    wait_for(lambda: not env.store.list(guest.backend("xvdq")), 30, "the disk gone")
    return took
