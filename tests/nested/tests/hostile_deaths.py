"""A guest loses its disks by a state that is none, or dies, while its rings are full and storage is slow: nothing is left of it."""

from lib.basics import wait_for
from lib.env import Env
from lib.hostile import PATIENCE, Scene, Slow, begin, destroyed

BACKENDS = ("rs", "loop")
TIMEOUT = 1800
ESTIMATE = 60
ONLY_LONG = True
LONG = 20  # and pvh guests, too
DELAY = 500  # milliseconds that a request of the slow device takes
DISKS = ("xvda", "xvdb", "xvdc")


def run(env: Env) -> None:
    env.parameter("max_queues", 2)
    for kind in ("pv", "pvh") if env.long() else ("pv",):
        for _ in range(env.count(1)):
            deaths(env, kind)


def deaths(env: Env, kind: str) -> None:
    scene = Scene(env)
    slow = Slow(env, 32, 1)
    disks = [env.disk(env.file("ext4", "disk", 32 << 20, fill="disk"), "xvda"), env.disk(env.device(32), "xvdb"), env.disk(slow.path, "xvdc")]
    hostile = env.guest(*disks, frontend=True, vcpus=2, kind=kind)
    slow.delay(DELAY)
    for vdev in DISKS:
        scene.beside(hostile, f"attack garbage --seconds 1 --vdev {vdev}")
        wait_for(lambda vdev=vdev: hostile.served_by(vdev) == "nobody", 60, f"{vdev} given up")
    took = destroyed(hostile)
    slow.delay(0)
    dying = env.guest(*disks, frontend=True, vcpus=2, kind=kind)
    slow.delay(DELAY)
    for number, vdev in enumerate(DISKS):
        begin(dying, f"attack hoard --seconds {PATIENCE} --queues 2 --ring-order {number} --vdev {vdev}", name=vdev)
        dying.sh(f"until grep -q put /tmp/{vdev}.out; do usleep 50000; done", 120)
    scene.end(dying, took)
    slow.remove()
