"""Grants stay mapped for a frontend that uses them again: not too many, and not for ever."""

import os

from lib.basics import check, equal, log, read, sh, wait_for
from lib.env import DRIVERS, Env
from lib.guest import Guest
from lib.leaks import mapped

BACKENDS = ("rs", "loop")
TIMEOUT = 240
ESTIMATE = 60
MOST = 64
LOAD = (
    "fio --name=l --filename=/dev/xvda --rw=randrw --bs=64k --iodepth=16 --ioengine=libaio --direct=1 --size=16m"
    " --verify=crc32c --minimal >/tmp/fio"
)
TIMES = 15  # that memory is short
FEW = 12  # ring, console, xenstore and what else there is


def in_use(env: Env, guest: Guest) -> None:
    """Memory is short again and again while grants are in use: they stay, since they would have to be mapped anew at
    once."""
    statistics = guest.statistics("xvda")
    guest.sh(
        "(while ! [ -e /tmp/stop ]; do dd if=/dev/xvda of=/dev/null bs=64k count=64 iflag=direct; done) >/dev/null"
        " 2>&1 &"
    )

    def count(name: str) -> int:
        return int(read(f"{statistics}/{name}"))

    used = count("pages_persistent")
    wait_for(lambda: count("pages_persistent") > used + 1000, 30, "grants to be used")
    before, used = count("pages_mapped"), count("pages_persistent")
    for _ in range(TIMES):
        sh("echo 2 >/proc/sys/vm/drop_caches")
    more, used = count("pages_mapped") - before, count("pages_persistent") - used
    log(f"memory short {TIMES} times: {more} pages mapped anew, {used} were mapped already")
    # 16 pages are in use at a time. On a slow host the guest may stand still for a second now and then, and its grants
    # with it.
    check(more < TIMES * 16 // 2 and used > more, f"{more} pages were mapped anew, {used} were mapped already")
    guest.sh("touch /tmp/stop; while pidof dd; do sleep 0.1; done; rm /tmp/stop")


def run(env: Env) -> None:
    env.parameter("max_persistent_grants", MOST)
    env.parameter("persistent_grant_unused_seconds", 3600)
    guest = env.guest(env.disk(env.file("ext4", "disk", 32 << 20), "xvda"), vcpus=2)
    equal(env.store.read(f"{guest.backend('xvda')}/feature-persistent"), "1", "feature-persistent")
    frontend = env.store.read(f"{guest.backend('xvda')}/frontend")
    queues = int(env.store.read(f"{frontend}/multi-queue-num-queues") or 1)
    equal(queues, os.cpu_count(), "queues of a guest with two processors")
    most = queues * MOST + FEW  # the limit is one of each ring

    def kept() -> int:
        return mapped(guest.domid)

    def pressed() -> int:
        sh("echo 2 >/proc/sys/vm/drop_caches")  # asks all shrinkers
        return kept()

    guest.sh(LOAD, timeout=90)
    at_first = kept()
    log(f"with at most {MOST} for each of {queues} rings: {at_first} grants of the guest are mapped")
    check(MOST // 2 <= at_first <= most, f"{at_first} grants are mapped, allowed are {queues} times {MOST}")

    env.parameter("max_persistent_grants", 1000)
    guest.sh(LOAD, timeout=90)
    more = kept()
    log(f"with at most 1000: {more}")
    check(more > most, f"only {more} grants are mapped, allowed are 1000")

    if env.backend == "rs":
        in_use(env, guest)
    if env.backend == "rs":  # the in-tree driver gives only its free pages back
        # What was used within the last second stays, so memory has to be short for longer than that.
        wait_for(lambda: pressed() <= FEW, 20, "persistent grants to be returned under memory pressure")
        log(f"under memory pressure: {kept()}")
    guest.sh(LOAD, timeout=90)
    if env.backend == "rs":  # the in-tree driver looks at the time only when there are requests
        check(kept() > FEW, "no grant is kept any more")
        env.parameter("persistent_grant_unused_seconds", 1)
        sh("echo 2 >/proc/sys/vm/drop_caches")
        wait_for(lambda: kept() <= FEW, 20, "the grants to be returned")
        guest.sh(LOAD, timeout=90)
        wait_for(lambda: kept() <= FEW, 20, "grants that nobody uses to be returned")
    guest.sh("dd if=/dev/xvda of=/dev/null bs=1M count=4 iflag=direct")
    guest.detach("xvda")
    check(mapped(guest.domid) <= FEW, "grants are mapped after the disk is gone")

    env.parameter("feature_persistent", 0)
    env.parameter("max_queues", 2)
    guest.attach(env.disk(env.file("ext4", "other", 32 << 20), "xvda"))
    equal(
        env.store.read(f"{guest.backend('xvda')}/feature-persistent"), "0", "feature-persistent where it is turned off"
    )
    guest.sh(LOAD, timeout=90)
    check(mapped(guest.domid) <= FEW, "grants are kept though persistent ones are turned off")

    if env.backend == "rs":
        # The frontend goes by what it was offered: it keeps its queues, and gives up a disk where an unexpected grant
        # stays mapped.
        env.parameter("feature_persistent", 1)
        env.parameter("max_queues", 1)
        for act in ("unbind", "bind"):
            sh(f"echo {guest.bus_name('xvda')} >{DRIVERS['rs']}/{act}")
        guest.sh(LOAD, timeout=90)
        check(mapped(guest.domid) <= FEW, "grants are kept though the frontend was not offered persistent ones")
    guest.shutdown()
