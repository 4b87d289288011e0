"""Parameters of the module: those of the in-tree driver have its names and defaults, and they do what they say."""

import json
import os
from itertools import cycle

from lib.basics import check, equal, log, read, sh, wait_for
from lib.env import Env
from lib.guest import Guest

BACKENDS = ("rs",)
TIMEOUT = 120
ESTIMATE = 25
IN_TREE = (
    "feature_persistent",
    "max_buffer_pages",
    "max_persistent_grants",
    "max_queues",
    "max_ring_page_order",
    "persistent_grant_unused_seconds",
)
NODES = {"max_queues": "multi-queue-max-queues", "max_ring_page_order": "max-ring-page-order"}


def values(driver: str) -> dict[str, str]:
    directory = f"/sys/module/{driver}/parameters"
    return {name: read(f"{directory}/{name}").strip() for name in os.listdir(directory)}


def moderation(env: Env, guest: Guest) -> None:
    """A frontend that has many requests to work on, and is what limits the rate, is asked for an event with a later
    request than the next, unless that is turned off. How long it must work on each to be slower than the backend
    depends on the host."""
    sh("modprobe null_blk nr_devices=1 gb=1 && udevadm settle")
    guest.attach(env.disk("/dev/nullb0", "xvda"), wait=False)
    microseconds = cycle((50, 100, 200))
    asked = []

    def asked_ahead(think: int) -> int:
        log(guest.sh(f"blkif-frontend load --vdev xvda --depth 32 --think {think} --seconds 1 --json /tmp/report"))
        asked.append(think)
        return json.loads(guest.sh("cat /tmp/report"))["asked_ahead"]

    wait_for(lambda: asked_ahead(next(microseconds)) > 1, 60, "the backend to ask for an event with a later request")
    env.parameter("moderate_events", "N")
    equal(
        [asked_ahead(asked[-1]) for _ in range(3)],
        [1, 1, 1],
        "requests ahead with which the backend asks for an event without moderation",
    )
    guest.detach("xvda")
    sh("rmmod null_blk")


def run(env: Env) -> None:
    sh("modprobe -i xen_blkback && modprobe xen_blkback_rs")
    ours, theirs = values("xen_blkback_rs"), values("xen_blkback")
    sh("rmmod xen_blkback")
    log(f"ours {ours}, in-tree {theirs}")
    equal(ours["max_queues"], "0", "max_queues, which stands for the number of processors")
    ours["max_queues"] = str(os.cpu_count())
    equal(
        {name: ours.get(name) for name in IN_TREE},
        {name: theirs[name] for name in IN_TREE},
        "values of the in-tree driver's parameters",
    )

    guest = env.guest(frontend=True)
    image = env.file("ext4", "disk", 8 << 20)

    def nodes() -> dict[str, str | None]:
        guest.attach(env.disk(image, "xvda"), wait=False)
        found = {name: env.store.read(f"{guest.backend('xvda')}/{node}") for name, node in NODES.items()}
        guest.sh("blkif-frontend probe --vdev xvda")
        guest.detach("xvda")
        return found

    equal(nodes(), {name: theirs[name] for name in NODES}, "what a frontend is offered by default")
    moderation(env, guest)
    sh("rmmod xen_blkback_rs && modprobe xen_blkback_rs max_ring_page_order=1 max_queues=3")
    env.at_end("rmmod xen_blkback_rs; modprobe xen_blkback_rs")
    equal(nodes(), {"max_queues": "3", "max_ring_page_order": "1"}, "what a frontend is offered then")
    for wrong in ("max_ring_page_order=x", "max_queues=-1"):
        sh("rmmod xen_blkback_rs")
        check(sh(f"! modprobe xen_blkback_rs {wrong} 2>&1"), f"no word about {wrong}")
        sh("modprobe xen_blkback_rs")
    guest.shutdown()
