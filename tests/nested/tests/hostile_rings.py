"""A guest fills rings, segments and grants with what may hurt: only its own requests fail, its neighbour's data are right."""

import hashlib
from pathlib import Path

from lib.basics import equal, sh
from lib.env import Env, md5
from lib.hostile import Scene

BACKENDS = ("rs", "loop")
TIMEOUT = 1800
ESTIMATE = 90
ONLY_LONG = True
LONG = 20  # and pvh guests, too
SIZE = 32 << 20
ATTACKS = ("padding", "odd", "indices", "shuffle", "bad", "mix", "own")


def upper_half(path: Path) -> str:
    """The sum of what no request of the attack may reach."""
    sh("sync; echo 1 >/proc/sys/vm/drop_caches")
    with path.open("rb") as file:
        file.seek(SIZE // 2)
        return hashlib.md5(file.read()).hexdigest()


def run(env: Env) -> None:
    env.parameter("max_queues", 2)
    for kind in ("pv", "pvh") if env.long() else ("pv",):
        rings(env, kind)


def rings(env: Env, kind: str) -> None:
    scene = Scene(env)
    seconds = env.count(1)
    image = env.file("ext4", "disk", SIZE, fill="disk")
    device = Path(env.device(SIZE >> 20))
    protected = env.file("ext4", "protected", 8 << 20, fill="protected")
    sh(f"dd if={image} of={device} bs=1M conv=fsync 2>/dev/null")
    halves = {path: upper_half(path) for path in (image, device)}
    whole = md5(protected)
    hostile = env.guest(env.disk(image, "xvda"), env.disk(device, "xvdb"), env.disk(protected, "xvdc", access="r"), frontend=True,
                        vcpus=2, kind=kind)
    for vdev, path in (("xvda", image), ("xvdb", device)):
        for more in ("--queues 2", "--persistent --abi x86_32 --ring-order 1"):
            scene.attack(hostile, "flip", seconds=2 * seconds, options=f"--vdev {vdev} {more}")
            equal(upper_half(path), halves[path], f"what is behind the middle of {vdev}")
    if env.long():
        ways = [(vdev, more) for vdev in ("xvda", "xvdb") for more in ("", "--persistent", "--abi x86_32 --ring-order 2 --queues 2")]
    else:
        ways = [("xvda", "--persistent"), ("xvdb", "")]
    for vdev, more in ways:
        scene.attack(hostile, *ATTACKS, seconds=seconds, options=f"--vdev {vdev} {more}")
    scene.attack(hostile, "write-protected", "odd", "flip", seconds=seconds, options="--vdev xvdc")
    equal(md5(protected), whole, "what is on the read-only disk")
    scene.end(hostile)
