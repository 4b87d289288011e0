"""What tests of hostile guests have in common: a guest that does harm, a neighbour whose data are checked meanwhile,
and what dom0 must not pay. What the guest does is in attacks.py."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import reports
from .basics import PACE, check, log, run, sh, wait_for
from .env import Env
from .guest import Guest
from .leaks import handles, no_more, no_more_handles, used
from .xenstore import Writes

SIZE, SMALLER = 16 << 20, 8 << 20
QUEUES = 4
LINES = 10  # of dom0's log in a second, at most
# Of what the neighbour gets beside an honest guest. A short measurement on a busy host may be half of the next one.
SHARE, SHARE_SHORT = 0.8, 0.3
WEIGHT = 256  # of a domain, for Xen's scheduler
DESTROY, DESTROY_SHORT = 5, 20  # seconds that xl destroy may take longer than for an honest guest
# Seconds for what ends by itself, and for what ends only with the test.
PATIENCE_SHORT, PATIENCE = 240, 36000
TRIES = 3  # to measure a share: whatever else the host does shows in a single one
NEIGHBOUR = "verify --depth 8 --area 1 --requests 1000000000 --seed 5"
# Honest guests that are as busy, on half of their first disk.
LOAD = "load --depth 32 --size 4 --reads 50 --queues 2 --area 8"
SMALL = f"blkif-frontend {LOAD} --seconds 3"
LARGE = "blkif-frontend load --depth 32 --size 1024 --reads 50 --queues 2 --area 8 --seconds 3"
# One that computes something, too.
COMPUTING = f"while :; do :; done & {SMALL}; code=$?; kill $!; (exit $code)"


def each_kind(env: Env, *parts: Callable[[Scene], None]) -> None:
    """Plays the parts, one after the other in one scene; in the long form with a guest of each kind."""
    env.parameter("max_queues", QUEUES)
    for kind in ("pv", "pvh") if env.long() else ("pv",):
        scene = Scene(env, kind)
        for part in parts:
            part(scene)
        scene.end()


@dataclass
class Meanwhile:
    """What there was while a guest did something."""

    requests: int  # of the neighbour
    seconds: float  # of these
    lines: float  # in dom0's log, a second
    writes: float  # of xenstore for the guest's disks, a second
    problems: list[str]  # what the attack itself has found


class Scene:
    """A hostile guest that has a disk of each kind, and a neighbour. What is wrong fails the test on this module; of
    another backend it is written down, as it is not ours to judge."""

    def __init__(self, env: Env, kind: str) -> None:
        self.env, self.kind = env, kind
        self.image = env.file("ext4", "disk", SIZE, fill="disk")
        self.slow, self.slow_protected = Slow(env, SIZE, 1), Slow(env, SMALLER, 2)
        self.device = Path(self.slow.path)
        self.protected = (env.file("ext4", "protected", SMALLER, fill="protected"), Path(self.slow_protected.path))
        for source, target in ((self.image, self.device), self.protected):
            sh(f"dd if={source} of={target} bs=1M conv=fsync 2>/dev/null")
        # Dom0 waits for none of them.
        env.at_end(f"xl sched-credit2 -d 0 -w {WEIGHT}")
        sh(f"xl sched-credit2 -d 0 -w {4 * WEIGHT}")
        self.neighbour = env.guest(env.disk(env.file("xfs", "neighbour", 8 << 20)), frontend=True)
        self.neighbour.sh(f"blkif-frontend {NEIGHBOUR} --seconds 1")
        self.before, self.memory = handles(), used()
        self.hostile = env.guest(*self.disks(), frontend=True, vcpus=2, kind=kind)
        self.honest: dict[str, list[Meanwhile]] = {}
        self.took: list[float] = []

    def disks(self) -> list[str]:
        """A file and a device that can be slow; xvdc and xvdd are the same, read-only."""
        env = self.env
        return [
            env.disk(self.image, "xvda"),
            env.disk(self.device, "xvdb"),
            env.disk(self.protected[0], "xvdc", access="r"),
            env.disk(self.protected[1], "xvdd", access="r"),
        ]

    def demand(self, well: object, message: str) -> None:
        if self.env.backend == "rs":
            check(well, message)
        elif not well:
            log(f"DIFFERS: {message}")

    def beside(self, script: str) -> Meanwhile:
        """What there is while the hostile guest does something; the neighbour's data must be right."""
        writes = Writes(f"/local/domain/0/backend/vbd/{self.hostile.domid}")
        lines, start = len(self.env.kernel_log.lines()), time.monotonic()
        begin(self.neighbour, f"{NEIGHBOUR} --until /tmp/stop --json /tmp/r.json", "rm -f /tmp/stop")
        done = self.hostile.run(f"{{ {script}; }} 2>&1", PATIENCE if self.env.long() else PATIENCE_SHORT)
        took = time.monotonic() - start
        self.neighbour.sh("touch /tmp/stop")
        code, text = end(self.neighbour)
        check(code == 0, f"the neighbour's data: {text.strip()}")
        report = json.loads(self.neighbour.sh("cat /tmp/r.json"))
        said = reports.without_known(self.env.kernel_log.lines()[lines:])
        output = [line.strip() for line in done.output.strip().splitlines()]
        for line in output:
            log(f"    {line}")
        found = Meanwhile(
            report["requests"],
            report["seconds"],
            len(said) / took,
            writes.count() / took,
            [] if done.code == 0 else output[-3:],
        )
        writes.close()
        self.demand(done.code == 0, f"{script} ended with {done.code}: {done.output.strip()}")
        self.demand(
            found.lines <= LINES, f"{script}: {len(said)} lines in dom0's log in {took:.0f} s, such as {said[-1:]}"
        )
        return found

    def attack(self, *names: str, seconds: int = 0, options: str = "", honest: str = SMALL) -> None:
        """Runs attacks; the neighbour must keep its share. In the long form each is measured by itself, beside a guest
        that does something alike."""
        seconds = seconds or self.env.count(1)
        if self.env.long():
            for name in names:
                self._attack(name, f"--seconds {seconds} {options}", honest)
        else:
            self._attack(" ".join(names), f"--seconds {seconds} {options}", SMALL)

    def _attack(self, names: str, options: str, honest: str) -> None:
        least = SHARE if self.env.long() else SHARE_SHORT
        attacked: list[Meanwhile] = []
        for number in range(TRIES):
            if number == 1:  # what was measured long ago says nothing
                attacked.clear()
                self.honest[honest] = []
            usual = self.honest.setdefault(honest, [])
            if number or not usual:
                usual.append(self.beside(honest))
            attacked.append(self.beside(f"blkif-frontend attack {names} {options}"))
            share, last = rate(attacked) / rate(usual), attacked[-1]
            log(
                f"ATTACK {self.kind} | {names} {options} | neighbour {100 * share:.0f} % of {rate(usual):.0f}/s | "
                f"{last.lines:.1f} lines/s | {last.writes:.1f} writes/s | {'; '.join(last.problems)}"
            )
            if share >= least:
                return
        self.demand(
            False, f"{names} {options}: the neighbour has {100 * share:.0f} % of what it has beside an honest guest"
        )

    def anew(self) -> None:
        """Destroys the hostile guest, whatever it is doing, and makes another."""
        self.took.append(destroyed(self.hostile))
        self.hostile = self.env.guest(*self.disks(), frontend=True, vcpus=2, kind=self.kind)

    def end(self) -> None:
        """Destroys the hostile guest at work: dom0 has then what it had. Then the neighbour, which is the measure of
        how long that takes."""
        self.took.append(destroyed(self.hostile))
        self.slow.remove()
        self.slow_protected.remove()
        after = handles()
        log(f"{self.before} before, {after} after")
        more = no_more_handles(self.before, after)
        self.demand(not more, f"dom0 has more than before: {more}")
        if self.env.backend == "rs":
            no_more(self.memory, used(), "the attacks")
        begin(self.neighbour, NEIGHBOUR)
        usual = destroyed(self.neighbour)
        log(f"seconds until gone: {self.took}, usually {usual:.1f}")
        longer = DESTROY if self.env.long() else DESTROY_SHORT
        self.demand(
            max(self.took) <= usual + longer * PACE, f"gone after {max(self.took):.1f} s, usually after {usual:.1f} s"
        )


def rate(all: list[Meanwhile]) -> float:
    return sum(each.requests for each in all) / sum(each.seconds for each in all)


def begin(guest: Guest, words: str, before: str = "true", name: str = "x") -> None:
    """Has the program do something in the background."""
    guest.sh(
        f"{before}; rm -f /tmp/{name}.end; {{ blkif-frontend {words} >/tmp/{name}.out 2>&1; echo $? >/tmp/{name}.end;"
        " } &"
    )


def end(guest: Guest, name: str = "x") -> tuple[int, str]:
    """Waits for it; its exit status, and what it said."""
    code, _, text = guest.sh(
        f"until [ -s /tmp/{name}.end ]; do usleep 50000; done; cat /tmp/{name}.end /tmp/{name}.out", PATIENCE
    ).partition("\n")
    return int(code), text


def destroyed(guest: Guest) -> float:
    """Seconds from xl destroy until the domain is wholly gone, its disks too."""
    start, number, env = time.monotonic(), guest.domid, guest.env
    done = run("xl", "destroy", str(number), timeout=90)
    check(done.returncode == 0, f"xl destroy: {done.stderr.strip()}")
    wait_for(
        lambda: number not in env.domains() and not any(f"/{number}/" in path for path in env.backends()),
        60,
        f"{guest.name} gone",
    )
    guest.close()
    guest.domid = 0
    return time.monotonic() - start


class Slow:
    """A device that can be made slow, and that udev does not read: that would take minutes then."""

    def __init__(self, env: Env, size: int, number: int) -> None:
        self.env, self.sectors = env, size >> 9
        self.base = env.device(size >> 20, number)
        self.name = f"xb{number}slow"
        self.path = f"/dev/mapper/{self.name}"
        env.hide_from_udev(f'ENV{{DM_NAME}}=="{self.name}"')
        sh(f"dmsetup create {self.name} --table '{self._table(0)}' && udevadm settle")
        env.at_end(
            f"dmsetup info {self.name} >/dev/null 2>&1 || exit 0; dmsetup suspend {self.name}; dmsetup reload"
            f" {self.name} --table '{self._table(0)}'; dmsetup resume {self.name}; dmsetup remove --retry {self.name}"
        )

    def _table(self, milliseconds: int) -> str:
        return f"0 {self.sectors} " + (
            f"delay {self.base} 0 {milliseconds}" if milliseconds else f"linear {self.base} 0"
        )

    def delay(self, milliseconds: int) -> None:
        """How long each request takes from now on; those in flight do not wait any longer."""
        self.env.reload(self.path, self._table(milliseconds))

    def remove(self) -> None:
        self.delay(0)
        sh(f"dmsetup remove --retry {self.name}")
