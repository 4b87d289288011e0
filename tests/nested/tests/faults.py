"""Whatever can fail does so, one call after the other and at random: there is a reason or no harm, each request ends
once, the disk works after.

fail-calls.ko has calls of the module fail: allocations, mappings, xenstore, files, submissions. First one call at a
time, of each function in turn, while a disk is attached, used and detached, while the driver is bound to one that is in
use, and while the module is loaded; then some of all calls under load. The short form takes one call of each function,
the long one all of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from lib.basics import Failure, check, equal, log, read, run as command, sh, wait_for
from lib.env import DRIVERS, Env
from lib.faults import Faults
from lib.guest import Guest
from lib.leaks import handles, mapped, no_more, no_more_handles, used
from lib.toolstack import Directories

BACKENDS = ("rs",)
TIMEOUT = 400
ESTIMATE = 65
LONG = 10
DRIVER = DRIVERS["rs"]
LAYOUTS = {"xvda": "--queues 2 --persistent", "xvdb": "--abi x86_32 --ring-order 1"}
# Calls that there is a way around: requests wait, or take another way. No guest ever hears of them.
HARMLESS = (
    "__kmalloc_noprof",
    "alloc_pages_noprof",
    "gnttab_alloc_pages",
    "gnttab_map_refs:no_room",
    "vfs_iocb_iter_read:not_direct",
    "vfs_iocb_iter_write:not_direct",
)
# Each that fails is an error of one request, or, of what does several at a time, of some.
HARMFUL = {
    "submit_bio": 1,
    "blkdev_issue_discard": 1,
    "vfs_iocb_iter_read": 1,
    "vfs_iocb_iter_write": 1,
    "rw_verify_area": 1,
    "vfs_fsync": 1,
    "vfs_fallocate": 1,
    "gnttab_map_refs": 64,
    "gnttab_batch_copy": 64,
}
STATES = ("2", "5", "6")  # of a backend that has looked at its disk: InitWait, Closing, Closed
UNDER_LOAD = {*HARMLESS, *HARMFUL} - {"gnttab_alloc_pages"}  # often enough
# By the short form; the stock script is asked after the latter, and makes a loop device.
LEFT_OUT = {*UNDER_LOAD, "kern_path"}
MANY_CALLS = 10  # of a function, of which the short form has one fail each time
PLACES = (0, 1, 0.35, 0.65)  # of the one among them, 0 being the first and 1 the last
FAILURES = 2  # of each function under load
MANY = 1 << 40


class Disk(Directories):
    """A disk that is attached without the toolstack, which would wait too long for one that does not come."""

    def __init__(self, env: Env, guest: Guest, target: str | Path, vdev: str) -> None:
        super().__init__(env, guest, target, vdev)
        self.env, self.guest = env, guest
        self.name = guest.bus_name(vdev)
        self.relative = self.back.removeprefix("/local/domain/0/")
        self.by_script = False

    def state(self) -> str | None:
        return self.store.read(f"{self.back}/state")

    def error(self) -> str | None:
        return self.store.read(f"/local/domain/0/error/{self.relative}/error")

    def said(self) -> str | None:
        """Why it does not work, where the administrator finds it."""
        return self.error() or self.refused()

    def refused(self) -> str | None:
        """What the script would have the toolstack say."""
        return self.store.read(f"{self.back}/hotplug-error")

    def forget(self) -> None:
        for path in (f"/local/domain/0/error/{self.relative}", f"{self.back}/hotplug-error"):
            self.store.remove(path)

    def attach(self) -> str | None:
        """Until it waits for the frontend; or why it does not."""
        self.forget()
        self.add()
        wait_for(
            lambda: self.state() in STATES or "probe" in (self.error() or ""),
            20,
            f"{self.vdev} in InitWait, or a reason",
        )
        if self.state() != "2" or self.refused():
            return self.because()
        script = self.store.read(f"{self.back}/script") or ""
        # A file may be left to the stock script.
        self.by_script = not script.endswith("-rs") and not self.target.startswith("/dev/")
        if self.by_script:
            sh(f"script={script} XENBUS_PATH={self.relative} {script} add")
        else:
            self.ready()
        wait_for(
            lambda: self.state() != "2" or "medium: waits" not in self.guest.debug_state(self.vdev),
            20,
            f"{self.vdev} opened, or a reason",
        )
        return None if self.state() == "2" else self.because()

    def because(self) -> str:
        """As said(), where there must be a reason."""
        why = self.said()
        check(why, f"{self.vdev} is in the state {self.state()}, and nothing says why")
        return why or ""

    def probe(self) -> str | None:
        """Connects, reads, disconnects; or why that does not work."""
        probe = f"blkif-frontend probe --vdev {self.vdev} --timeout 10"
        # 3: not offered, since what is offered could not be written.
        done = self.guest.run(f"{probe} {LAYOUTS[self.vdev]} 2>&1 || {{ e=$?; [ $e = 3 ] || exit $e; {probe} 2>&1; }}")
        if not done.code:
            return None
        text = done.output.strip().splitlines()[-1]
        check("does not answer" not in text, f"{self.vdev}: the guest waits in vain: {text}")
        return text if done.code == 1 else self.because()

    def detach(self) -> None:
        """Whatever has become of it."""
        self.close()
        self.store.write(f"{self.front}/state", "6")
        wait_for(lambda: self.state() == "6" or self.said(), 20, f"{self.vdev} closed, or a reason")
        if self.by_script:
            sh(
                f"script={self.store.read(f'{self.back}/script')} XENBUS_PATH={self.relative} /etc/xen/scripts/block"
                " remove"
            )
            self.by_script = False
        self.remove()
        wait_for(lambda: not os.path.exists(f"/sys/bus/xen-backend/devices/{self.name}"), 20, f"{self.name} gone")

    def works(self) -> None:
        """Attached anew it does all that it should."""
        equal(self.attach(), None, f"why {self.vdev} cannot be attached")
        self.verify()
        self.detach()
        equal(self.said(), None, f"what is said about {self.vdev}")

    def verify(self) -> None:
        self.guest.sh(f"blkif-frontend verify --vdev {self.vdev} --requests 60 --area 1 {LAYOUTS[self.vdev]} 2>&1")


def in_turn(
    env: Env,
    faults: Faults,
    what: str,
    action: Callable[[], str | None],
    failed_before: dict[str, int],
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Each call fails that ACTION needs; in the short form only one of each function, unless it has failed before and
    is called but a few times."""
    prepare()
    before = faults.calls()
    equal(action(), None, f"{what} without a fault")
    needed = {name: calls - before[name] for name, calls in faults.calls().items() if calls > before[name]}
    log(f"{what}: calls {needed}")
    for name, calls in needed.items():
        times = failed_before[name] = failed_before.get(name, -1) + 1
        if not env.long() and (name in LEFT_OUT or (times and calls < MANY_CALLS)):
            continue
        for nth in (
            range(1, calls + 1) if env.long() and name not in UNDER_LOAD else [1 + round((calls - 1) * PLACES[times])]
        ):
            prepare()
            with faults.one([name], nth) as failed:
                why = action()
            log(f"{what}: {name} {nth} of {calls}: {failed or 'not called'}: {why or 'works'}")


def attach(disk: Disk) -> str | None:
    why = disk.attach() or disk.probe()
    disk.detach()
    return why or disk.said()


def loads() -> str | None:
    sh("rmmod xen_blkback_rs")
    done = command("modprobe", "xen_blkback_rs", "max_queues=2")
    if not done.returncode:
        return None
    check("xen_blkback_rs" not in read("/proc/modules"), "the module is there though loading has failed")
    sh("modprobe xen_blkback_rs max_queues=2")
    return done.stderr.strip()


def statistics(disk: Disk, names: tuple[str, ...]) -> int:
    return sum(int(read(f"/sys/bus/xen-backend/devices/{disk.name}/statistics/{name}", "0")) for name in names)


class Bound:
    """A disk that is in use while its driver is unbound and bound again."""

    def __init__(self, disk: Disk) -> None:
        self.disk, self.works = disk, False
        equal(disk.attach(), None, f"why {disk.vdev} cannot be attached")

    def served(self) -> bool:
        return statistics(self.disk, ("rd_req", "wr_req")) > 0

    def prepare(self) -> None:
        """Has the guest use the disk, which may have been taken from it."""
        disk = self.disk
        if not self.works:
            sh(f"[ ! -e {DRIVER}/{disk.name} ] || echo {disk.name} >{DRIVER}/unbind; echo {disk.name} >{DRIVER}/bind")
            start(disk, f"--depth 4 --errors {MANY}")
            try:
                wait_for(self.served, 30, f"requests of {disk.vdev}")
            except Failure:
                log(disk.guest.run(f"cat /tmp/{disk.vdev}.*; pidof blkif-frontend").output)
                log(f"{disk.vdev}: state {disk.state()}, {disk.guest.debug_state(disk.vdev)}")
                raise
        self.works = True
        disk.forget()

    def bind(self) -> str | None:
        disk = self.disk
        done = command("bash", "-c", f"echo {disk.name} >{DRIVER}/unbind")
        if done.returncode:  # and the disk goes on
            return done.stderr.strip()
        if not command("bash", "-c", f"echo {disk.name} >{DRIVER}/bind").returncode:
            wait_for(lambda: self.served() or disk.said(), 20, f"requests of {disk.vdev} to go on, or a reason")
        why = disk.said()
        if why:
            self.works = False
            disk.guest.sh(f"killall -9 blkif-frontend; until [ -e /tmp/{disk.vdev}.end ]; do usleep 20000; done")
        return why

    def end(self) -> None:
        self.prepare()
        stop(self.disk)
        self.disk.detach()


def start(disk: Disk, options: str) -> None:
    """Has a program in the guest work on a disk, and check what it reads."""
    disk.guest.sh(
        f"rm -f /tmp/stop /tmp/{disk.vdev}.*; {{ blkif-frontend verify --vdev {disk.vdev} --requests {MANY} --until"
        f" /tmp/stop --area 2 --json /tmp/{disk.vdev}.json {LAYOUTS[disk.vdev]} {options} >/tmp/{disk.vdev}.out 2>&1;"
        f" echo $? >/tmp/{disk.vdev}.end; }} &"
    )


def stop(disk: Disk) -> int:
    """Ends it: all requests have been answered once, and all data were right. How many requests failed."""
    guest, vdev = disk.guest, disk.vdev
    guest.sh(f"touch /tmp/stop; until [ -s /tmp/{vdev}.end ]; do usleep 20000; done", 90)
    text = guest.sh(f"cat /tmp/{vdev}.out /tmp/{vdev}.end").strip().splitlines()
    log(f"{vdev}: {text[-2]}")
    equal(text[-1], "0", f"verify of {vdev}: {text}")
    return int(json.loads(guest.sh(f"cat /tmp/{vdev}.json"))["failed"])


def under_load(env: Env, faults: Faults, disks: list[Disk], seed: int) -> None:
    """Some of all calls fail while the guest works on its disks."""
    errors = ("rd_err", "wr_err", "f_err", "ds_err")
    # Nothing is kept for long that could be asked for anew.
    for name, value in (("max_buffer_pages", 0), ("max_persistent_grants", 32), ("persistent_grant_unused_seconds", 1)):
        env.parameter(name, value)
    for disk in disks:
        equal(disk.attach(), None, f"why {disk.vdev} cannot be attached")

    def verify(names: Iterable[str], permille: int) -> tuple[int, dict[str, int]]:
        """How many requests failed, and calls by function."""
        before, wanted = faults.failures(), FAILURES

        def failed() -> dict[str, int]:
            now = faults.failures()
            return {name: now[name] - before[name] for name in names}

        for disk in disks:
            start(disk, f"--indirect 32 --errors {MANY} --seed {seed}")
        for disk in disks:
            wait_for(lambda: disk.state() == "4", 30, f"{disk.vdev} connected")
        with faults.some(names, permille, seed):
            try:
                wait_for(lambda: min(failed().values()) >= wanted, 60, f"{wanted} calls of each failed")
            finally:
                log(f"calls failed: {failed()}")
        return sum(stop(disk) for disk in disks), failed()

    equal(verify(HARMLESS, 300)[0], 0, "requests that failed though there was a way around")
    before = sum(statistics(disk, errors) for disk in disks)
    requests, calls = verify(HARMFUL, 200)
    equal(
        sum(statistics(disk, errors) for disk in disks) - before,
        requests,
        "requests that failed, as dom0 and as the guest has counted them",
    )
    check(
        0 < requests <= sum(HARMFUL[name] * number for name, number in calls.items()),
        f"{requests} requests failed for {calls}",
    )
    for disk in disks:
        disk.verify()
        disk.detach()


def at_random(env: Env, faults: Faults, disks: list[Disk]) -> None:
    """Disks come and go while calls of all kinds fail."""
    for number in range(env.count(2)):
        for disk in disks:
            with faults.some(faults.names, 10, number):
                why = attach(disk)
            log(f"attach {disk.vdev} at random: {why or 'works'}")


def run(env: Env) -> None:
    faults = Faults(env)
    env.parameter("max_queues", 2)
    guest = env.guest(frontend=True)
    disks = [Disk(env, guest, env.file("ext4", "disk", 8 << 20), "xvda"), Disk(env, guest, env.device(8), "xvdb")]
    in_turn(env, faults, "load", loads, {})
    # The kernel keeps the threads that its workqueues need for this, and the stock script's loop devices, which
    # at_random may have.
    under_load(env, faults, disks, 0)
    sh(f"losetup -d $(losetup -f --show {disks[0].target}); udevadm settle")
    memory, before = used(), handles() | {"mapped grants": mapped(guest.domid)}
    for seed in range(1, env.count(1)):
        under_load(env, faults, disks, seed)
    failed: dict[str, int] = {}
    for disk in disks:
        in_turn(env, faults, f"attach {disk.vdev}", lambda: attach(disk), failed)
    for disk in disks if env.long() else disks[:1]:
        bound = Bound(disk)
        in_turn(env, faults, f"bind {disk.vdev}", bound.bind, failed, bound.prepare)
        bound.end()
    at_random(env, faults, disks)
    for disk in disks:
        disk.works()
    after = handles() | {"mapped grants": mapped(guest.domid)}
    log(f"{before} before, {after} after")
    equal(no_more_handles(before, after), [], "what is more after all that has failed")
    no_more(memory, used(), "all that has failed")
    guest.shutdown()
