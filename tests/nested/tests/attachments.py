"""Disks come and go thousands of times as fast as their nodes can be written, without a toolstack between; dom0 has
what it had."""

from lib.basics import equal, log, wait_for
from lib.env import Env
from lib.guest import Guest
from lib.leaks import handles, no_more, no_more_handles, used
from lib.toolstack import Directories

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
        equal(no_more_handles(before, after), [], f"what is more after {count} attachments")
        no_more(memory, memory_after, f"{count} attachments")
    guest.destroy()


def cycle(env: Env, guest: Guest, target: str, vdev: str) -> None:
    store, disk = env.store, Directories(env, guest, target, vdev)
    disk.add()
    wait_for(lambda: store.read(f"{disk.back}/state") == "2", 20, f"{vdev} in InitWait")
    disk.ready()
    wait_for(lambda: store.read(f"{disk.front}/state") == "4", 20, f"{vdev} connected")
    disk.close()
    wait_for(lambda: store.read(f"{disk.back}/state") == "6", 20, f"{vdev} closed")
    disk.remove()
    wait_for(lambda: guest.served_by(vdev) == "nobody", 20, f"{vdev} gone")
    equal(store.list(disk.back), [], "what is left of its directory")
