"""A guest connects and disconnects at the wrong moment, with requests in flight and on slow storage, and with rings that are none."""

import time

from lib.basics import log
from lib.env import Env
from lib.guest import Guest
from lib.hostile import PATIENCE, Scene, Slow, begin

BACKENDS = ("rs", "loop")
TIMEOUT = 1800
ESTIMATE = 130
ONLY_LONG = True
LONG = 20  # and pvh guests, too
DELAY = 500  # milliseconds that a request of the slow device takes
RECONNECTIONS = 10  # on two disks; ten thousand in the long form
WATCHED = 8  # seconds
DISKS = ("xvda", "xvdb", "xvdc")


def run(env: Env) -> None:
    env.parameter("max_queues", 2)
    for kind in ("pv", "pvh") if env.long() else ("pv",):
        states(env, kind)


def states(env: Env, kind: str) -> None:
    scene = Scene(env)
    slow = Slow(env, 32, 1)
    disks = [env.disk(env.file("ext4", "disk", 32 << 20, fill="disk"), "xvda"), env.disk(env.device(32), "xvdb"), env.disk(slow.path, "xvdc")]
    hostile = env.guest(*disks, frontend=True, vcpus=2, kind=kind)
    slow.delay(DELAY)
    seconds = env.count(1)
    rounds = RECONNECTIONS * (1000 if env.long() else 1) // 2
    for options in ("--vdev xvda --queues 2", "--vdev xvdb --persistent"):
        scene.attack(hostile, "reconnect", seconds=PATIENCE, options=f"{options} --rounds {rounds}")
    scene.attack(hostile, "toggle", "setup", seconds=seconds, options="--vdev xvda --queues 2")
    scene.attack(hostile, "toggle", "setup", seconds=seconds, options="--vdev xvdb --persistent --ring-order 2")
    scene.attack(hostile, "toggle", "hoard", seconds=seconds, options="--vdev xvdc --queues 2 --ring-order 2")
    bad_rings(env, scene, hostile)
    begin(hostile, f"attack toggle --seconds {PATIENCE} --queues 2 --vdev xvda")
    scene.end(hostile)
    slow.remove()


def bad_rings(env: Env, scene: Scene, guest: Guest) -> None:
    """Rings that cannot be mapped, of all disks of a guest, are tried less and less often, however often it asks for that;
    one that is set up anew is served at once."""
    def probed() -> float:
        start = time.monotonic()
        for vdev in DISKS:
            guest.sh(f"blkif-frontend probe --vdev {vdev} 2>&1")
        return time.monotonic() - start

    usual = probed()
    fronts = [env.store.read(f"{guest.backend(vdev)}/frontend") for vdev in DISKS]
    for front in fronts:
        env.store.write(f"{front}/ring-ref", "8")
        env.store.write(f"{front}/event-channel", "1")
    before, asked, start = len(env.kernel_log.lines()), 0, time.monotonic()
    while time.monotonic() < start + WATCHED:
        for front in fronts:
            env.store.write(f"{front}/state", "3")
        asked += 1
    lines = env.kernel_log.lines()[before:]
    tried = sum("mapping in shared page" in line for line in lines)
    log(f"{asked} times asked to map rings of {len(DISKS)} disks in {WATCHED} s: tried {tried} times, {len(lines)} lines in dom0's log")
    scene.demand(len(DISKS) <= tried <= 5 * len(DISKS), f"rings of {len(DISKS)} disks that cannot be mapped were tried {tried} times in {WATCHED} s")
    scene.demand(len(lines) <= 5 * len(DISKS) + 10 * (WATCHED / 5 + 2), f"{len(lines)} lines in dom0's log in {WATCHED} s")
    took = probed()
    log(f"set up anew in {took:.1f} s, usually in {usual:.1f} s")
    # The short pause, and the guest's next share of the log.
    scene.demand(took < 2 * usual + 6, f"three disks set up anew were connected after {took:.1f} s, usually after {usual:.1f} s")
