"""What the hostile guest of a scene does, in four parts. `blkif-frontend attack --list` has all attacks."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from . import reports
from .basics import PACE, check, equal, log, read, run, sh, wait_for
from .env import Env, md5
from .guest import Guest, vdev_number
from .hostile import COMPUTING, LARGE, LOAD, PATIENCE, PATIENCE_SHORT, QUEUES, SIZE, SMALL, Scene, begin, end
from .leaks import tasks, used

DELAY = 500  # milliseconds that a request of the slow device takes
HANGS = 600_000  # as long as it is to hang
WATCHED = 5  # seconds
ATTACH = 5  # seconds that it may take longer than usual
DISKS = ("xvda", "xvdb", "xvdc")
READ_ONLY = ("xvdc", "xvdd")
RESERVED = 64  # pages that a guest has mapped beyond its share: a ring's reserve, and what is on its way


def upper_half(path: Path) -> str:
    """The sum of what no request of the attack may reach."""
    sh("sync; echo 1 >/proc/sys/vm/drop_caches")
    with path.open("rb") as file:
        file.seek(SIZE // 2)
        return hashlib.md5(file.read()).hexdigest()


def rings(scene: Scene) -> None:
    """A guest fills rings, segments and grants with what may hurt: only its own requests fail."""
    long = scene.env.long()
    halves = {path: upper_half(path) for path in (scene.image, scene.device)}
    whole = {path: md5(path) for path in scene.protected}
    flips = (("xvda", scene.image, "--queues 2"), ("xvdb", scene.device, "--persistent --abi x86_32 --ring-order 1"))
    for vdev, path, more in flips if long else flips[1:]:
        # It has a thread that does nothing but rewrite.
        scene.attack("flip", seconds=2 * scene.env.count(1), options=f"--vdev {vdev} {more}", honest=COMPUTING)
        equal(upper_half(path), halves[path], f"what is behind the middle of {vdev}")
    if long:
        names: tuple[str, ...] = ("padding", "odd", "indices", "shuffle", "bad", "mix", "own")
        ways: list[tuple[str, tuple[str, ...]]] = [
            (f"--vdev {vdev} {more}", names)
            for vdev in ("xvda", "xvdb")
            for more in ("", "--persistent", "--abi x86_32 --ring-order 2 --queues 2")
        ]
    else:
        ways = [("--vdev xvda --persistent", ("odd", "mix")), ("--vdev xvdb", ("indices", "bad", "own"))]
    for options, names in ways:
        scene.attack(*names, options=options)
    for vdev in READ_ONLY:
        scene.attack("write-protected", *(("odd", "flip") if long else ()), options=f"--vdev {vdev}")
    for path in scene.protected:
        equal(md5(path), whole[path], f"what is on {path}, which is read-only")


def storms(scene: Scene) -> None:
    """A guest sends events, requests and writes to xenstore as fast as it can: other disks come and go meanwhile."""
    if not scene.env.long():
        scene.attack("kick", "refused", "barriers", options="--vdev xvda --queues 2")
        scene.attack("discards", "large", options="--vdev xvda --queues 2")
        begin(scene.hostile, "attack states nodes --vdev xvda --seconds 3")
        attached(scene.env, scene.neighbour)
        code, text = end(scene.hostile)
        scene.demand(code == 0, text.strip())
        return
    for vdev, names, honest in (
        ("xvda", ("kick", "refused", "flushes", "barriers"), SMALL),
        ("xvda", ("discards", "large"), LARGE),
        ("xvdb", ("large",), LARGE),
        ("xvdb", ("states", "nodes"), SMALL),
    ):
        scene.attack(*names, options=f"--vdev {vdev} --queues 2", honest=honest)
    took = []
    for words in (LOAD, "attack states nodes --vdev xvda"):
        begin(scene.hostile, f"{words} --seconds {3 * scene.env.count(1)}")
        took.append(attached(scene.env, scene.neighbour))
        code, text = end(scene.hostile)
        scene.demand(code == 0, f"{words}: {text.strip()}")
    usual, now = took
    log(f"a disk of another guest attached in {now:.1f} s, beside an honest guest in {usual:.1f} s")
    scene.demand(
        now <= 2 * usual + ATTACH * PACE,
        f"a disk of another guest attached in {now:.1f} s, beside an honest guest in {usual:.1f} s",
    )
    begin(scene.hostile, f"attack kick --vdev xvda --queues 2 --seconds {PATIENCE}")
    scene.anew()


def attached(env: Env, guest: Guest) -> float:
    """Seconds that xl block-attach takes; the disk goes again."""
    start = time.monotonic()
    done = guest.try_attach(env.disk(env.file("xfs", "other", 1 << 20), "xvdq"))
    took = time.monotonic() - start
    check(done.returncode == 0, f"xl block-attach: {done.stderr.strip()}")
    run("xl", "block-detach", "--force", guest.name, str(vdev_number("xvdq")))
    wait_for(lambda: not env.store.list(guest.backend("xvdq")), 30, "the disk gone")
    return took


def states(scene: Scene) -> None:
    """A guest connects and disconnects at the wrong moment, with requests in flight and on slow storage, and with rings
    that are none."""
    bad_rings(scene)
    if not scene.env.long():
        scene.attack("reconnect", seconds=PATIENCE, options="--vdev xvda --queues 2 --rounds 10")
        scene.slow.delay(DELAY)
        scene.attack("toggle", "setup", options="--vdev xvdb --queues 2")
        scene.slow.delay(0)
        return
    rounds = 250 * scene.env.count(1)  # on each of two disks: ten thousand in all
    for options in ("--vdev xvda --queues 2", "--vdev xvdb --persistent"):
        scene.attack("reconnect", seconds=PATIENCE, options=f"{options} --rounds {rounds}")
    scene.attack("toggle", "setup", options="--vdev xvda --queues 2")
    scene.slow.delay(DELAY)
    scene.attack("toggle", "setup", options="--vdev xvdb --persistent --ring-order 2")
    begin(scene.hostile, f"attack toggle --seconds {PATIENCE} --queues 2 --vdev xvdb")
    scene.anew()
    scene.slow.delay(0)


def bad_rings(scene: Scene) -> None:
    """Rings that cannot be mapped, of all disks of a guest, are tried less and less often, however often it asks for
    that; one that is set up anew is served at once."""
    env, guest = scene.env, scene.hostile

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
    lines = reports.without_known(env.kernel_log.lines()[before:])
    tried = sum("mapping in shared page" in line for line in lines)
    log(
        f"{asked} times asked to map rings of {len(DISKS)} disks in {WATCHED} s: tried {tried} times, {len(lines)}"
        " lines in dom0's log"
    )
    scene.demand(
        len(DISKS) <= tried <= 5 * len(DISKS),
        f"rings of {len(DISKS)} disks that cannot be mapped were tried {tried} times in {WATCHED} s",
    )
    scene.demand(
        len(lines) <= 5 * len(DISKS) + 10 * (WATCHED / 5 + 2), f"{len(lines)} lines in dom0's log in {WATCHED} s"
    )
    took = probed()
    log(f"set up anew in {took:.1f} s, usually in {usual:.1f} s")
    # The short pause, and the guest's next share of the log.
    scene.demand(
        took < 2 * usual + 6 * PACE,
        f"three disks set up anew were connected after {took:.1f} s, usually after {usual:.1f} s",
    )


def deaths(scene: Scene) -> None:
    """A guest loses its disks by a state that is none, or dies, while its rings are full and storage is slow. To be
    played last."""
    for number in range(scene.env.count(1)):
        if number:
            scene.anew()
            for slow in (scene.slow, scene.slow_protected):
                slow.delay(0)
        for order in (2, 4) if scene.env.long() else (4,):
            hoard(scene, f"attack hoard --queues {QUEUES} --ring-order {order} --vdev xvdd")
        guest = scene.hostile
        for slow in (scene.slow, scene.slow_protected):
            slow.delay(DELAY)
        for vdev, words in (
            ("xvda", "toggle --queues 2"),
            ("xvdb", "garbage --queues 2"),
            ("xvdd", f"hoard --queues {QUEUES} --ring-order 4"),
        ):
            begin(guest, f"attack {words} --seconds {PATIENCE} --vdev {vdev}", name=vdev)
        guest.sh("until grep -q put /tmp/xvdd.out; do usleep 50000; done", 120)
        wait_for(lambda: guest.served_by("xvdb") == "nobody", 60, "xvdb given up")


def hoard(scene: Scene, words: str) -> None:
    """Rings full of the largest requests on a device that hangs: what that costs dom0."""
    env, guest = scene.env, scene.hostile
    vbd = guest.device("xvdd")
    memory, others = used(), len(tasks())
    scene.slow_protected.delay(HANGS)
    # What dom0 pays is looked at meanwhile, which takes its time.
    begin(guest, f"{words} --seconds 1 --timeout {PATIENCE_SHORT}")
    guest.sh("until grep -q put /tmp/x.out; do usleep 50000; done", 120)
    if env.backend == "rs":
        count, most = bounded(vbd)
        log(f"COST {words}: {count} of {most} pages mapped")
    else:
        steady()
    more = used()
    log(f"COST {words}: {more.all - memory.all} KiB, {len(tasks()) - others} tasks more")
    scene.slow_protected.delay(0)
    code, text = end(guest)
    scene.demand(code == 0, f"{words}: {text.strip()}")


def bounded(vbd: str) -> tuple[int, int]:
    """Waits until requests wait for what others of the guest have mapped; how much that is, and how much it may be."""

    def numbers() -> tuple[int, int]:
        return int(read(f"{vbd}/guest_mapped")), int(read(f"{vbd}/guest_mapped_max"))

    def waits() -> bool:
        count, most = numbers()
        check(count <= most + RESERVED, f"{count} pages of the guest are mapped, it may have {most}")
        return int(read(f"{vbd}/statistics/map_waits")) > 0

    wait_for(waits, 120, "requests to wait for the guest's share")
    return numbers()


def steady() -> None:
    """Waits until dom0's memory gets no less."""
    least = [0.0, 0.0]

    def still() -> bool:
        free = int(read("/proc/meminfo").split("MemFree:")[1].split()[0])
        now = time.monotonic()
        if not least[0] or free < least[0] - 512:
            least[:] = [free, now]
        return now > least[1] + 3

    wait_for(still, 300, "dom0's memory to be steady")
