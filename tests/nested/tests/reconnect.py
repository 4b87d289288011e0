"""A frontend that dies with requests in flight, as a kernel does that another one replaces, comes back in another
layout."""

from lib.basics import check, log, sh, wait_for
from lib.env import Env
from lib.guest import Guest

BACKENDS = ("rs", "loop")
TIMEOUT = 240
ESTIMATE = 60
PROCESSORS = (1, 2)
DELAY = 100  # milliseconds that a request of the slow device takes: some are always in flight
LAYOUTS = (
    "--abi native",
    "--abi x86_32 --ring-order 2",
    "--abi native --queues 2 --persistent",
    "--abi native --ring-order 4 --persistent --indirect 32",
    "--abi x86_32 --queues 2 --ring-order 1",
    "--abi native --persistent",
)


def run(env: Env) -> None:
    env.parameter("max_queues", 2)
    base = env.device(32)
    slow = "/dev/mapper/xb9"
    sh(f'dmsetup create xb9 --table "0 $(blockdev --getsz {base}) delay {base} 0 {DELAY}" && udevadm settle')
    env.at_end("dmsetup remove --retry xb9")
    guest = env.guest(env.disk(env.file("ext4", "disk", 32 << 20), "xvda"), env.disk(slow, "xvdb"), frontend=True)
    for first, then in zip(LAYOUTS, LAYOUTS[1:] + LAYOUTS[:1]):
        for vdev in ("xvda", "xvdb"):
            die(guest, vdev, first.replace(" --indirect 32", ""))
        for vdev, count in (("xvda", 300), ("xvdb", 20)):
            text = guest.sh(f"blkif-frontend verify --vdev {vdev} --requests {count} --area 1 {then} 2>&1", timeout=120)
            log(f"    {vdev} {then}: {text.strip().splitlines()[-1]}")
    guest.shutdown()


def die(guest: Guest, vdev: str, layout: str) -> None:
    """Loads a disk, and kills the frontend when it does so."""
    store, backend = guest.env.store, guest.backend(vdev)
    check(store.read(f"{backend}/state") != "4", f"{vdev} is connected already")
    guest.sh(
        f"blkif-frontend load --vdev {vdev} --depth 16 --reads 50 --area 4 --seconds 1000 {layout} >/tmp/load 2>&1 &"
        " echo $! >/tmp/pid"
    )
    wait_for(lambda: store.read(f"{backend}/state") == "4", 30, f"{vdev} connected with {layout}")
    text = guest.sh("kill -9 $(cat /tmp/pid); cat /tmp/load")
    check(not text.strip(), f"{vdev} {layout}: the frontend ended by itself: {text}")
