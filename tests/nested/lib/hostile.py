"""What tests of hostile guests have in common: a neighbour whose data are checked meanwhile, and what dom0 must not pay."""

from __future__ import annotations

import json
import time

from .basics import check, log, run, sh, wait_for
from .env import Env
from .guest import Guest
from .leaks import handles, no_more, used

LINES = 10  # of dom0's log in a second, at most
SHARE = 0.8  # of what the neighbour gets beside an honest guest
DESTROY = 5  # seconds that xl destroy may take longer than for an honest guest
PATIENCE = 36000  # seconds; the time limit of the test ends before
TRIES = 3  # to measure a share: whatever else the host does shows in a single one
NEIGHBOUR = "verify --depth 8 --area 1 --requests 1000000000 --seed 5"
# Honest guests that are as busy, on their first disk.
SMALL = "load --depth 32 --size 4 --reads 50 --queues 2"
LARGE = "load --depth 32 --size 1024 --reads 50 --queues 2"


class Scene:
    """A neighbour, and what others do meanwhile. What is wrong fails the test on this module; of another backend it is
    written down, as it is not ours to judge."""

    def __init__(self, env: Env) -> None:
        self.env = env
        self.neighbour = env.guest(env.disk(env.file("xfs", "neighbour", 8 << 20)), frontend=True)
        self.neighbour.sh(f"blkif-frontend {NEIGHBOUR} --seconds 1")
        self.before, self.memory = handles(), used()
        self.honest: dict[str, float] = {}

    def demand(self, well: object, message: str) -> None:
        if self.env.backend == "rs":
            check(well, message)
        elif not well:
            log(f"DIFFERS: {message}")

    def beside(self, guest: Guest, words: str) -> float:
        """The neighbour's requests a second while the program does something in a guest; its data must be right."""
        lines, start = len(self.env.kernel_log.lines()), time.monotonic()
        begin(self.neighbour, f"{NEIGHBOUR} --until /tmp/stop --json /tmp/r.json", "rm -f /tmp/stop")
        done = guest.run(f"blkif-frontend {words} 2>&1", PATIENCE)
        took = time.monotonic() - start
        self.neighbour.sh("touch /tmp/stop")
        code, text = end(self.neighbour)
        check(code == 0, f"the neighbour's data: {text.strip()}")
        report = json.loads(self.neighbour.sh("cat /tmp/r.json"))
        rate = report["requests"] / report["seconds"]
        said = self.env.kernel_log.lines()[lines:]
        for line in done.output.strip().splitlines():
            log(f"    {line}")
        log(f"    neighbour {rate:.0f}/s, {len(said)} lines in dom0's log in {took:.0f} s")
        self.demand(done.code == 0, f"{words} ended with {done.code}: {done.output.strip()}")
        self.demand(len(said) <= LINES * took, f"{words}: {len(said)} lines in dom0's log in {took:.0f} s, such as {said[-1:]}")
        return rate

    def attack(self, guest: Guest, *names: str, seconds: int = 2, options: str = "", honest: str = SMALL) -> None:
        """Runs attacks, one after the other; the neighbour must keep its share."""
        words = f"attack {' '.join(names)} --seconds {seconds} {options}"
        for number in range(TRIES):
            if number or honest not in self.honest:
                self.honest[honest] = self.beside(guest, f"{honest} --seconds 3")
            usual = self.honest[honest]
            rate = self.beside(guest, words)
            log(f"    {' '.join(names)}: the neighbour has {100 * rate / usual:.0f} % of what it has beside an honest guest")
            if rate >= SHARE * usual:
                return
        self.demand(False, f"{words}: the neighbour does {rate:.0f} requests a second, beside an honest guest {usual:.0f}")

    def end(self, guest: Guest, *more: float) -> None:
        """Destroys a hostile guest at work: dom0 has then what it had. Then the neighbour, which is the measure of how long
        that takes; also for MORE, what it took before."""
        took = [*more, destroyed(guest)]
        after = handles()
        log(f"{self.before} before, {after} after")
        for name, number in self.before.items():
            self.demand(after[name] <= number + (8 if name == "open files" else 0), f"{name}: {number} before, {after[name]} after")
        if self.env.backend == "rs":
            no_more(self.memory, used(), "the attacks")
        begin(self.neighbour, NEIGHBOUR)
        usual = destroyed(self.neighbour)
        log(f"seconds until gone: {took}, usually {usual:.1f}")
        self.demand(max(took) <= usual + DESTROY, f"gone after {max(took):.1f} s, usually after {usual:.1f} s")


def begin(guest: Guest, words: str, before: str = "true", name: str = "x") -> None:
    """Has the program do something in the background."""
    guest.sh(f"{before}; rm -f /tmp/{name}.end; {{ blkif-frontend {words} >/tmp/{name}.out 2>&1; echo $? >/tmp/{name}.end; }} &")


def end(guest: Guest) -> tuple[int, str]:
    """Waits for it; its exit status, and what it said."""
    code, _, text = guest.sh("until [ -s /tmp/x.end ]; do usleep 50000; done; cat /tmp/x.end /tmp/x.out", PATIENCE).partition("\n")
    return int(code), text


def destroyed(guest: Guest) -> float:
    """Seconds from xl destroy until the domain is wholly gone, its disks too."""
    start, number, env = time.monotonic(), guest.domid, guest.env
    done = run("xl", "destroy", str(number), timeout=90)
    check(done.returncode == 0, f"xl destroy: {done.stderr.strip()}")
    wait_for(lambda: number not in env.domains() and not any(f"/{number}/" in path for path in env.backends()), 60, f"{guest.name} gone")
    guest.close()
    guest.domid = 0
    return time.monotonic() - start


class Slow:
    """A device that can be made slow. From the start on, udev would read it for minutes."""

    def __init__(self, env: Env, megabytes: int, number: int) -> None:
        self.env, self.size = env, megabytes * 2048
        self.base = env.device(megabytes, number)
        self.path = "/dev/mapper/xb9"
        sh(f"dmsetup create xb9 --table '0 {self.size} linear {self.base} 0' && udevadm settle")
        env.at_end("! dmsetup info xb9 >/dev/null 2>&1 || dmsetup remove --retry xb9")

    def delay(self, milliseconds: int) -> None:
        """How long each request takes from now on."""
        way = f"delay {self.base} 0 {milliseconds}" if milliseconds else f"linear {self.base} 0"
        self.env.reload(self.path, f"0 {self.size} {way}")

    def remove(self) -> None:
        sh("dmsetup remove --retry xb9")
