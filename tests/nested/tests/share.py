"""What one guest can have mapped is bounded: beyond that its requests wait, those of its other disks and of other
guests do not."""

import json
import re
import time

from lib.basics import check, equal, log, read, sh, wait_for
from lib.env import DRIVERS, Env
from lib.guest import Guest
from lib.leaks import mapped

BACKENDS = ("rs",)
TIMEOUT = 400
ESTIMATE = 80
MOST = 1024
FEW = 12  # console, xenstore and what else there is
RING = 12  # a page, and what is reserved for the ring
HUGE = 1 << 20
LARGE = "--indirect 256 --size 1024"


def load(guest: Guest, words: str) -> None:
    """Load that must end without an error."""
    log(guest.sh(f"blkif-frontend load --json /tmp/report {words} 2>&1", 90).splitlines()[0])
    equal(json.loads(guest.sh("cat /tmp/report"))["errors"], 0, f"errors of load {words}")


def begin(guest: Guest, words: str) -> None:
    guest.sh(
        f"rm -f /tmp/*.end; {{ blkif-frontend load --timeout 120 {words} >/tmp/load 2>&1; echo $? >/tmp/load.end; }} &"
    )


def end(guest: Guest) -> None:
    guest.sh("until [ -e /tmp/load.end ]; do sleep 0.1; done", 120)
    log(guest.sh("cat /tmp/load").splitlines()[0])
    equal(guest.sh("cat /tmp/load.end").strip(), "0", "how the load ended that had to wait")


def run(env: Env) -> None:
    env.parameter("max_queues", 4)
    env.parameter("max_guest_mapped_pages", MOST)
    device = env.device(32)
    greedy = env.guest(env.disk(device, "xvda"), env.disk(env.file("ext4", "b", 8 << 20), "xvdb"), frontend=True)
    other = env.guest(env.disk(env.file("ext4", "c", 8 << 20), "xvda"), frontend=True)
    env.at_end(f"dmsetup resume {device} || true")
    for options in ("", "--persistent --ring-order 1"):
        bounded(env, greedy, other, device, options)
    unbound(env, greedy, device)
    rings(env, greedy)
    frames = re.search(r"gnttab_max_maptrack_frames=(\d+)", sh("xl info xen_commandline"))
    if frames or env.long():
        full(env, greedy, other, device, int(frames[1]) * 256 if frames else 1024 * 256)
    greedy.shutdown()
    other.shutdown()


def bounded(env: Env, greedy: Guest, other: Guest, device: str, options: str) -> None:
    files = greedy.device("xvda")
    waits = int(read(f"{files}/statistics/map_waits"))
    sh(f"dmsetup suspend --noflush {device}")
    begin(greedy, f"--vdev xvda --queues 2 --depth 8 --requests 16 --reads 50 {LARGE} {options}")
    wait_for(lambda: int(read(f"{files}/statistics/map_waits")) > waits + 1, 60, "both rings to wait")
    check("too much mapped" in greedy.debug_state("xvda"), "state does not say it")
    equal(int(read(f"{files}/guest_mapped_max")), MOST, "what the guest may have mapped")
    counted, found = int(read(f"{files}/guest_mapped")), mapped(greedy.domid)
    log(f"{options}: {found} pages of the guest are mapped, by our own count {counted}")
    check(MOST // 2 < found <= MOST + FEW, f"{found} pages are mapped, the guest may have {MOST}")
    check(found - FEW <= counted <= MOST, f"{counted} pages are counted, {found} are mapped")
    # Another disk of the same guest has something for itself, other guests have all of theirs.
    for size in (4, 44):
        load(greedy, f"--vdev xvdb --seconds 30 --requests 20 --depth 1 --size {size} {options}")
    load(other, f"--seconds 30 --requests 20 --depth 1 {LARGE} {options}")
    sh(f"dmsetup resume {device}")
    end(greedy)
    equal(int(read(f"{files}/guest_mapped")), 0, "pages that are counted when no ring is connected")
    check(mapped(greedy.domid) <= FEW, "pages are still mapped")


def unbound(env: Env, greedy: Guest, device: str) -> None:
    """The driver goes while requests wait: it does them before, and whoever comes next does the rest."""
    vbd, driver = greedy.bus_name("xvda"), DRIVERS["rs"]
    files = greedy.device("xvda")
    waits = int(read(f"{files}/statistics/map_waits"))
    sh(f"dmsetup suspend --noflush {device}")
    begin(greedy, f"--vdev xvda --queues 2 --depth 8 --requests 16 --reads 50 {LARGE}")
    wait_for(lambda: int(read(f"{files}/statistics/map_waits")) > waits + 1, 60, "both rings to wait")
    sh(f"echo {vbd} >{driver}/unbind; dmsetup resume {device}; echo {vbd} >{driver}/bind")
    end(greedy)


def rings(env: Env, greedy: Guest) -> None:
    """Rings count, too: one that is too many is refused, with the reason in the log."""
    env.parameter("max_guest_mapped_pages", 2 * RING)
    done = greedy.run("blkif-frontend probe --vdev xvda --queues 4 --timeout 5 2>&1")
    check(done.code != 0, f"four rings though there is room for two: {done.output}")
    check(any("too many for another ring" in line for line in env.kernel_log.lines()), "no word about it in the log")
    load(greedy, f"--vdev xvda --queues 2 --seconds 30 --requests 4 --depth 2 {LARGE}")
    env.parameter("max_guest_mapped_pages", MOST)


def full(env: Env, greedy: Guest, other: Guest, device: str, most: int) -> None:
    """Xen itself has no room for another mapping, as when others than us have them: all wait, nobody gets an error. By
    default Xen has room for MOST = 262,144, which takes minutes; run.py --xen gnttab_max_maptrack_frames=32 makes it
    8192."""
    files = greedy.device("xvda")
    for name in ("max_guest_mapped_pages", "max_mapped_pages"):
        env.parameter(name, HUGE)
    # A ring that is not there yet could not be mapped.
    begin(other, f"--seconds {40 + most // 1000} --depth 2 {LARGE}")
    wait_for(lambda: env.store.read(f"{other.backend('xvda')}/state") == "4", 30, "another guest connected")
    sh(f"dmsetup suspend --noflush {device}")
    start = time.monotonic()
    # A grant can be mapped 255 times.
    depth = min(512, most // 4 // 256 + 8)
    waits = int(read(f"{files}/statistics/map_waits"))
    begin(greedy, f"--vdev xvda --queues 4 --ring-order 4 --depth {depth} --own-pages 3 --requests {depth} {LARGE}")
    wait_for(
        lambda: int(read(f"{files}/statistics/map_waits")) > waits + 3, 40 + most // 1000, "Xen's table to be full"
    )
    log(f"full after {time.monotonic() - start:.1f} s")
    files = other.device("xvda")
    wait_for(lambda: int(read(f"{files}/statistics/map_waits")) > 0, 60, "another guest to wait, too")
    log(other.debug_state("xvda"))
    sh(f"dmsetup resume {device}")
    end(greedy)
    end(other)
    check(any("Xen has no room" in line for line in env.kernel_log.lines()), "no word about it in the log")
