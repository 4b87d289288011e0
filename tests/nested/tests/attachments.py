"""Disks come and go thousands of times as fast as their nodes can be written, without a toolstack between; dom0 has what it had."""

import os

from lib.basics import check, equal, log, wait_for
from lib.env import Env
from lib.guest import Guest, vdev_number
from lib.leaks import handles, no_more, used

BACKENDS = ("rs", "loop")
TIMEOUT = 600
ESTIMATE = 30
ONLY_LONG = True
LONG = 1000  # ten thousand attachments
CYCLES = 10
WARM_UP = 10


def run(env: Env) -> None:
    device = env.device(8)
    file = env.file("ext4", "disk", 8 << 20)
    # Another backend leaves a file to the stock script.
    targets = [str(file), device] if env.backend == "rs" else [device]
    guest = env.guest(env.disk(env.file("ext4", "busy", 8 << 20)))
    guest.keep_reading("xvda")

    def cycles(count: int) -> None:
        for number in range(count):
            cycle(env, guest, targets[number % len(targets)], f"xvd{'bcdefghi'[number % 8]}")

    cycles(WARM_UP)
    memory, before = used(), handles()
    count = env.count(CYCLES)
    cycles(count)
    memory_after, after = used(), handles()
    log(f"{before} before, {after} after {count} attachments")
    if env.backend == "rs":  # what a peer keeps is not ours to judge
        for name in before:
            check(after[name] <= before[name] + (8 if name == "open files" else 0), f"{name}: {before[name]} before, {after[name]} after")
        no_more(memory, memory_after, f"{count} attachments")
    guest.destroy()


def cycle(env: Env, guest: Guest, target: str, vdev: str) -> None:
    """What libxl does for a disk, and its script."""
    store, number = env.store, vdev_number(vdev)
    back, front = guest.backend(vdev), f"/local/domain/{guest.domid}/device/vbd/{number}"
    for path, owner, reader in ((front, guest.domid, 0), (back, 0, guest.domid)):
        store.write(path, "")
        store.permit(path, f"n{owner}", f"r{reader}")
    for name, value in (("backend", back), ("backend-id", "0"), ("virtual-device", number), ("device-type", "disk")):
        store.write(f"{front}/{name}", str(value))
    # Neither end is probed before it has a state.
    for name, value in (("frontend", front), ("frontend-id", guest.domid), ("online", 1), ("removable", 0), ("bootable", 1), ("dev", vdev),
                        ("type", "phy"), ("mode", "w"), ("device-type", "disk"), ("discard-enable", 1), ("params", target),
                        ("script", "/etc/xen/scripts/block"), ("state", 1)):
        store.write(f"{back}/{name}", str(value))
    store.write(f"{front}/state", "1")
    wait_for(lambda: store.read(f"{back}/state") == "2", 20, f"{vdev} in InitWait")
    if target.startswith("/dev/"):
        numbers = os.stat(target).st_rdev
        store.write(f"{back}/physical-device", f"{os.major(numbers):x}:{os.minor(numbers):x}")
    store.write(f"{back}/hotplug-status", "connected")
    wait_for(lambda: store.read(f"{front}/state") == "4", 20, f"{vdev} connected")
    store.write(f"{back}/online", "0")
    store.write(f"{back}/state", "5")
    wait_for(lambda: store.read(f"{back}/state") == "6", 20, f"{vdev} closed")
    for path in (back, front):
        store.remove(path)
    wait_for(lambda: guest.served_by(vdev) == "nobody", 20, f"{vdev} gone")
    equal(store.list(back), [], "what is left of its directory")
