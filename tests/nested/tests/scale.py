"""Many disks: attached to several guests at once, idle in one guest, and the first one of a new guest; beside the
peers."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from lib.basics import check, log, sh, wait_for
from lib.env import DRIVER, Env
from lib.guest import without_complaint
from lib.leaks import used

BACKENDS = ("rs",)
TIMEOUT = 400
ESTIMATE = 90
LONG = 8
PARALLEL = 8  # disks attached in parallel, to several guests
AT_ONCE = (
    16  # of them: an xl waits ten seconds for the backend, and more of them starve each other on one emulated processor
)
IDLE = {"rs": 8, "loop": 2}  # disks of one guest
MOST_KIB = 100  # of dom0's memory for an idle disk that is connected
ROUNDS = 2


def disk_name(number: int) -> str:
    return f"xvd{chr(ord('b') + number)}" if number < 25 else f"xvda{chr(ord('a') + number - 25)}"


def backend(env: Env, name: str) -> None:
    """Has another backend serve the disks to come."""
    for driver in {"rs": ["xen_blkback"], "loop": ["xen_blkback_rs"], "qdisk": ["xen_blkback", "xen_blkback_rs"]}[name]:
        sh(f"rmmod {driver} 2>/dev/null || true")
    env.backend, env.driver = name, DRIVER[name]
    if name != "qdisk":
        sh(f"modprobe -i {env.driver}")


def run(env: Env) -> None:
    env.at_end("rmmod xen_blkback 2>/dev/null || true")
    long = env.long()
    if long:
        parallel(env)
    each = {name: idle(env, name) for name in (("rs", "loop") if long else ("rs",))}
    if long:
        each["qdisk"] = idle_qdisk(env)
    log(f"KiB of dom0's memory for an idle disk: { {name: round(kib) for name, kib in each.items()} }")
    check(each["rs"] < MOST_KIB and each["rs"] == min(each.values()), f"KiB of dom0's memory for an idle disk: {each}")
    startup(env, ("none", "rs", "loop", "qdisk") if long else ("rs", "loop"))
    backend(env, "rs")


def parallel(env: Env) -> None:
    """The time grows with the number of disks, not faster."""
    files = [env.file("ext4", f"p{number}", 1 << 20) for number in range(env.count(PARALLEL))]
    guests = [env.guest(memory=256) for _ in range(2 if len(files) < 32 else 4)]
    took = {}
    for count in (len(files) // 4, len(files)):
        start = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            attached = pool.map(
                lambda number: guests[number % len(guests)].try_attach(
                    env.disk(files[number], disk_name(number // len(guests)))
                ),
                range(count),
            )
        for done in attached:
            without_complaint(done)
        for number, guest in enumerate(guests):
            guest.wait_disks(*(disk_name(other // len(guests)) for other in range(number, count, len(guests))))
        took[count] = time.monotonic() - start
        log(f"{count} disks attached in parallel to {len(guests)} guests in {took[count]:.1f} s")
        env.look_around()
        for guest in guests:
            for vdev in range(count // len(guests)):
                guest.detach(disk_name(vdev))
        wait_for(lambda: not env.backends(), 30, "the disks gone")
    few, many = took
    check(took[many] / many < 1.6 * took[few] / few, f"seconds for so many disks: {took}")
    for guest in guests:
        guest.destroy()


def idle(env: Env, name: str) -> float:
    """The KiB of dom0's memory that a connected disk takes which does nothing. It has no program, so that of programs
    does not count."""
    backend(env, name)
    count = min(env.count(IDLE[name]), 30)
    files = [env.file("ext4", f"i{number}", 1 << 20) for number in range(count + 1)]
    guest = env.guest(memory=384)
    guest.attach(env.disk(files[count], disk_name(40)))  # what the first disk brings along
    before = used().all
    for number in range(count):
        guest.attach(env.disk(files[number], disk_name(number)))
    after = used().all
    guest.destroy()
    wait_for(lambda: not env.backends(), 30, "the disks gone")
    return (after - before) / count


def idle_qdisk(env: Env) -> float:
    """The same for qdisk, which has a process for all disks of a guest: of a guest with disks, beyond what one without
    takes."""
    backend(env, "qdisk")

    def everything() -> int:
        now = used()
        return now.all + now.parts["AnonPages"] + now.parts["PageTables"]

    files = [env.file("ext4", f"q{number}", 1 << 20) for number in range(IDLE["rs"])]
    took = []
    for disks in ([], [env.disk(file, disk_name(number)) for number, file in enumerate(files)]):
        before = everything()
        guest = env.guest(*disks, memory=384)
        took.append(everything() - before)
        guest.destroy()
    return (took[1] - took[0]) / len(files)


def startup(env: Env, names: tuple[str, ...]) -> None:
    """How long xl create and xl block-attach take until the disk can be used."""
    images = [env.file("ext4", f"s{number}", 8 << 20) for number in range(2)]
    creating: dict[str, list[float]] = {name: [] for name in names}
    # libxl starts no qemu for a disk that is attached.
    attaching: dict[str, list[float]] = {name: [] for name in ("rs", "loop")}
    # In turns: what slows the machine down for a while must not hit one of them alone.
    for _ in range(env.count(ROUNDS)):
        for name in names:
            backend(env, "rs" if name == "none" else name)
            guest = env.new_guest(*([] if name == "none" else [env.disk(images[0])]))
            creating[name].append(seconds(guest.create))
            for _ in range(2 if name in attaching else 0):
                attaching[name].append(seconds(lambda: guest.attach(env.disk(images[1], "xvdb"))))
                guest.detach("xvdb")
            guest.destroy()
            wait_for(lambda: not env.backends() and not env.loops(), 30, "the disks gone")
    create, attach = ({name: min(all) for name, all in times.items()} for times in (creating, attaching))
    log(f"seconds from xl create to a usable disk: {create}; from xl block-attach: {attach}")
    # With wide margins, for these are few measurements, under emulation: 0.8 and 0.4 are usual.
    check(create["rs"] < 1.2 * create["loop"], f"seconds to create: {create}")
    check(attach["rs"] < attach["loop"], f"seconds to attach: {attach}")


def seconds(act: Callable[[], object]) -> float:
    start = time.monotonic()
    act()
    return time.monotonic() - start
