"""The toolstack removes a disk's directory at any moment of the disk's beginning: nothing of it comes back."""

import random
import time

from lib.basics import PACE, check, pause
from lib.env import Env

BACKENDS = ("rs", "loop")
TIMEOUT = 240
ESTIMATE = 50
ROUNDS = 56


def run(env: Env) -> None:
    rng = random.Random(5)
    image = env.file("ext4", "image", 1 << 20)
    guest = env.guest(env.disk(env.file("ext4", "root", 1 << 20)))
    store, stale = env.store, []
    for number in range(ROUNDS):
        vdev = 51728 + 16 * (number % 14)
        back, front = (
            f"/local/domain/0/backend/vbd/{guest.domid}/{vdev}",
            f"/local/domain/{guest.domid}/device/vbd/{vdev}",
        )
        for node, value in (("backend", back), ("backend-id", "0"), ("state", "1")):
            store.write(f"{front}/{node}", value)
        for node, value in (
            ("frontend", front),
            ("frontend-id", str(guest.domid)),
            ("online", "1"),
            ("params", str(image)),
            ("type", "phy"),
            ("mode", "w"),
            ("script", "/etc/xen/scripts/block"),
            ("dev", "xvdb"),
            ("device-type", "disk"),
            ("state", "1"),
        ):
            store.write(f"{back}/{node}", value)
        time.sleep(rng.uniform(0, 0.06 * PACE))
        store.remove(back)
        store.remove(front)
        if number % 14 == 13:
            pause(1.5)  # whatever comes back, comes back by then
            for name in store.list(f"/local/domain/0/backend/vbd/{guest.domid}"):
                if name != "51712":
                    stale.append(store.values(f"/local/domain/0/backend/vbd/{guest.domid}/{name}"))
                    store.remove(f"/local/domain/0/backend/vbd/{guest.domid}/{name}")
    check(not stale, f"{len(stale)} directories in {ROUNDS} rounds came back, for instance {stale[:2]}")
    guest.destroy()
