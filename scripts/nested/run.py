#!/usr/bin/env python3
"""Runs the nested-Xen tests: boots Xen and a stock dom0 under QEMU and runs tests/nested/tests/*.py inside dom0.

    run.py                         all tests on the Rust backend
    run.py --backend loop NAME...  some tests on the in-tree backend with loop devices
    run.py --shell                 a shell in dom0 on this terminal
    run.py --exec 'xl info'        one command in dom0

One boot serves many tests. After a failure the machine is booted anew, so that one test cannot spoil the next.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

import image  # noqa: E402
from vm import PACE, TESTS, Dead, Machine, fault_files, frontend_files, module_files  # noqa: E402
from xb import archive  # noqa: E402
from xb.common import Fail, lock, positive, program, read_json, say, write_json  # noqa: E402
from xb.module import target  # noqa: E402

BACKENDS = ("rs", "loop", "qdisk")
TIMES = image.NESTED / "times.json"
GRACE = 45  # seconds, times the pace, that dom0 has to report a test that ran out of time
PROGRESS = 60  # seconds between lines of a test's log that are shown in any case: what a long form is at


@dataclass
class Test:
    """What a test file says about itself, read without running it."""

    name: str
    purpose: str
    backends: tuple[str, ...]
    timeout: float
    estimate: float
    long: float | None  # how many times its loops, when there is time
    only_long: bool  # whether there is no other form
    processors: tuple[int, ...]  # it runs once on a machine of each of these kinds; on any one if it names none


@dataclass
class Job:
    """A test that is to be run, and the kind of machine that it needs; 0: any."""

    test: Test
    cpus: int


@dataclass
class Outcome:
    name: str
    cpus: int
    result: str
    reason: str = ""
    seconds: float = 0.0
    log: list[str] = field(default_factory=list)
    dmesg: list[str] = field(default_factory=list)
    xl: dict[str, str] = field(default_factory=dict)


def find_tests() -> dict[str, Test]:
    found = {}
    for path in sorted((TESTS / "tests").glob("*.py")):
        tree = ast.parse(path.read_text())
        values = {
            node.targets[0].id: ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in ("BACKENDS", "TIMEOUT", "ESTIMATE", "LONG", "ONLY_LONG", "PROCESSORS")
        }
        found[path.stem] = Test(
            path.stem,
            (ast.get_docstring(tree) or "").strip(),
            values["BACKENDS"],
            values["TIMEOUT"],
            values.get("ESTIMATE", 20),
            values.get("LONG"),
            values.get("ONLY_LONG", False),
            values.get("PROCESSORS", ()),
        )
    return found


class Runner:
    """Shares the tests out among machines, prints each result as it comes.

    The machines have one processor each, unless CPUS says how many. At the end one of them is made anew with two, for
    the tests that want these, and has the host for itself: an emulated machine with two needs both of the host's."""

    # Under this name times are remembered, if not under the backend's.
    TIMES_OF = ""

    def __init__(
        self,
        kver: str,
        backend: str,
        tests: list[Test],
        jobs: int,
        verbose: bool,
        cpus: int | None,
        loops: float,
        long: bool,
        xen: str = "",
        module: Path | None = None,
        brief: bool = False,
    ) -> None:
        self.kver, self.backend, self.verbose, self.loops, self.long = kver, backend, verbose, loops, long
        self.xen, self.brief = xen, brief
        self.image = self._image()
        self.files = [
            *module_files(kver, backend, module),
            *fault_files(target(kver, None), backend),
            *frontend_files(),
        ]
        times = read_json(TIMES).get(self.TIMES_OF or backend, {})
        self.jobs = [Job(test, kind) for test in tests for kind in ((0,) if cpus else test.processors or (0,))]
        self.queue = sorted(self.jobs, key=lambda job: (job.cpus > 1, -times.get(job.test.name, job.test.estimate)))
        self.kinds = [cpus or 1] * max(1, min(jobs, len(self.jobs)))
        self.lock = threading.Lock()
        self.outcomes: list[Outcome] = []
        self.stop = False
        self.machines: list[Machine] = []

    def run(self) -> list[Outcome]:
        workers = [
            threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(len(self.kinds))
        ]
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                while worker.is_alive():
                    worker.join(0.5)
        finally:
            self.stop = True
            for machine in self.machines:
                machine.kill()
            for worker in workers:
                worker.join(5)
            for machine in self.machines:
                machine.remove()
        times = read_json(TIMES)
        times.setdefault(self.TIMES_OF or self.backend, {}).update(
            {o.name: round(o.seconds, 1) for o in self.outcomes if o.result == "ok"}
        )
        write_json(TIMES, times)
        return self.outcomes

    def _next(self, number: int) -> Job | None:
        """The next job for a machine; it becomes one of another kind if no machine is left for the jobs that need
        that."""
        with self.lock:
            job = next((job for job in self.queue if job.cpus in (0, self.kinds[number])), None)
            if not job:
                job = next((job for job in self.queue if job.cpus not in self.kinds), None)
                self.kinds[number] = job.cpus if job else 0  # else it has ended
            if job:
                self.queue.remove(job)
            return job

    def _work(self, number: int) -> None:
        machine, up = None, False
        while not self.stop:
            job = self._next(number)
            if not job:
                break
            test, cpus = job.test, self.kinds[number]
            if not machine or machine.cpus != cpus:
                if machine:
                    machine.kill()
                machine, up = self._machine(cpus), False
                self.machines.append(machine)
            start = time.monotonic()
            outcome = Outcome(test.name, cpus, "fail")
            try:
                if not up:
                    self._boot(machine, number)
                    up = True
                start = time.monotonic()
                self._one(machine, test, outcome)
            except Dead as dead:
                reason, _, console = str(dead).partition("\n")
                outcome.result, outcome.reason = "fail", reason if up else f"boot: {reason}"
                outcome.log += ["--- console of dom0", *console.splitlines()]
            except Exception as error:  # a bug of ours must not look like a pass
                outcome.result, outcome.reason = "fail", f"runner: {type(error).__name__}: {error}"
            outcome.seconds = time.monotonic() - start
            if self.stop:
                return
            if outcome.result == "fail":
                machine.kill()
                up = False
            self._report(outcome)
        if machine and up and not self.stop:
            self._end(machine)

    def _image(self) -> image.Image:
        return image.ensure(self.kver)

    def _machine(self, cpus: int) -> Machine:
        return Machine(self.image, self.files, cpus=cpus, xen=self.xen)

    def _end(self, machine: Machine) -> None:
        """When there is no test left for a machine that is up."""

    def _boot(self, machine: Machine, number: int) -> None:
        start = time.monotonic()
        release = machine.boot()
        if release != self.image.release:
            raise Dead(f"dom0 runs {release}, not {self.image.release}")
        with self.lock:
            processors = "one processor" if machine.cpus == 1 else f"{machine.cpus} processors"
            say(
                f"machine {number + 1}: Xen and {release} with {processors} up after {time.monotonic() - start:.1f} s; "
                f"time limits are stretched {machine.pace:g} times"
            )

    def _one(self, machine: Machine, test: Test, outcome: Outcome) -> None:
        state: dict[str, Any] | None = None
        loops = self.loops * (test.long if self.long and test.long else 1)
        timeout = test.timeout * max(1.0, loops)
        shown = time.monotonic()
        while True:
            machine.send(
                run=test.name,
                backend=self.backend,
                timeout=timeout,
                state=state,
                loops=loops,
                pace=PACE,
                brief=self.brief,
            )
            for message in machine.messages(timeout + GRACE):
                if "log" in message:
                    outcome.log.append(message["log"])
                    now = time.monotonic()
                    if self.verbose or now - shown > PROGRESS:
                        shown = now
                        with self.lock:
                            print(f"    {test.name}: {message['log']}", flush=True)
            outcome.result, outcome.reason = message["result"], message.get("reason", "")
            outcome.dmesg, outcome.xl = message.get("dmesg", []), message.get("xl", {})
            if outcome.result != "powercut":
                return
            machine.kill()
            state = message["state"]
            machine.boot()

    def _report(self, outcome: Outcome) -> None:
        with self.lock:
            self.outcomes.append(outcome)
            word = {"ok": "ok  ", "fail": "FAIL"}[outcome.result]
            reason = f": {outcome.reason}" if outcome.reason else ""
            processors = f", {outcome.cpus} processors" if outcome.cpus > 1 else ""
            print(f"{word} {outcome.name} ({outcome.seconds:.1f} s{processors}){reason}", flush=True)
            if outcome.result == "fail":
                if not self.verbose:
                    section("test log", outcome.log[:40] + ["..."] * (len(outcome.log) > 100) + outcome.log[40:][-60:])
                section("dom0's kernel log", outcome.dmesg[-60:])
                for path, text in outcome.xl.items():
                    section(path, text.splitlines()[-15:])


def section(title: str, lines: list[str]) -> None:
    if lines:
        print(f"     -- {title}")
        print("\n".join(f"     | {line}" for line in lines), flush=True)


def default_kver() -> str:
    """What `make` builds for if that kernel is prepared, else the newest one that is."""
    ready = [path.parent.parent.name for path in image.KERNELS.glob("*/modules/modules.dep")]
    if not ready:
        raise Fail("no kernel is prepared: run `make` first")
    return archive.best_of(ready)


def shell(kver: str, backend: str) -> int:
    """dom0's console on this terminal; Ctrl-A X ends QEMU."""
    machine = Machine(image.ensure(kver), [*module_files(kver, backend), *frontend_files()], kernel="xb.shell=1")
    try:
        return subprocess.run(machine.command(None)).returncode
    finally:
        machine.remove()


def execute(kver: str, backend: str, command: str) -> int:
    with Machine(image.ensure(kver), [*module_files(kver, backend), *frontend_files()]) as machine:
        machine.boot()
        code: int | None = None
        for message in machine.execute(command):
            if "log" in message:
                print(message["log"], flush=True)
            code = message.get("exit")
        return 1 if code is None else code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", metavar="TEST")
    parser.add_argument(
        "--kver", help="kernel release of dom0 and guests (default: that of `make`, or the newest that is prepared)"
    )
    parser.add_argument("--backend", choices=BACKENDS, default="rs")
    parser.add_argument("--jobs", type=positive, default=2, help="machines at a time")
    parser.add_argument(
        "--cpus", type=positive, help="processors of each machine, and of dom0 in it (default: one and two in turn)"
    )
    parser.add_argument("--xen", default="", metavar="OPTIONS", help="more options for Xen's command line")
    parser.add_argument("--module", type=Path, metavar="FILE", help="this module rather than that of `make`")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results and logs here, too")
    parser.add_argument("--list", action="store_true", help="name the tests and what they prove")
    parser.add_argument("--repeat", type=positive, default=1, help="run each test so often")
    parser.add_argument(
        "--loops", type=float, default=1, metavar="FACTOR", help="longer or shorter loops in the tests that have any"
    )
    parser.add_argument("--long", action="store_true", help="only the tests that have a long form, in that form")
    parser.add_argument("--brief", action="store_true", help="do not look around after a failure, only say what it was")
    parser.add_argument("--verbose", "-v", action="store_true", help="show the tests' logs as they run")
    parser.add_argument("--shell", action="store_true")
    parser.add_argument("--exec", metavar="COMMAND")
    options = parser.parse_args()

    tests = find_tests()
    if options.list:
        for test in tests.values():
            print(f"{test.name:22} {'/'.join(test.backends):14} {test.purpose.splitlines()[0]}")
        return 0
    unknown = sorted(set(options.tests) - set(tests))
    if unknown:
        raise Fail(f"no test {' '.join(unknown)}; --list names them")
    kver = options.kver or os.environ.get("KVER") or default_kver()
    if options.shell:
        return shell(kver, options.backend)
    if options.exec:
        return execute(kver, options.backend, options.exec)

    chosen = (
        [tests[name] for name in options.tests]
        if options.tests
        else [test for test in tests.values() if options.long or not test.only_long]
    )
    chosen = [test for test in chosen if options.backend in test.backends and (test.long or not options.long)]
    if not chosen:
        raise Fail(f"none of these tests applies to {options.backend}")
    if options.json:
        try:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.open("a").close()  # else the results would be lost at the end
        except OSError as error:
            raise Fail(f"--json {options.json}: {error.strerror}; name a file that can be written") from None
    start = time.monotonic()
    with lock("nested tests"):  # two runs at a time would only run into each other's time limits
        runner = Runner(
            kver,
            options.backend,
            chosen * options.repeat,
            options.jobs,
            options.verbose,
            options.cpus,
            options.loops,
            options.long,
            options.xen,
            options.module,
            options.brief,
        )
        outcomes = runner.run()
    if options.json:
        write_json(options.json, {"kver": kver, "backend": options.backend, "tests": [asdict(o) for o in outcomes]})
    count = {word: sum(o.result == word for o in outcomes) for word in ("ok", "fail")}
    failed = sorted({o.name for o in outcomes if o.result == "fail"})
    missing = len(runner.jobs) - len(outcomes)
    print(
        f"\nnested {kver} {options.backend}: {count['ok']} ok, {count['fail']} failed"
        f" in {time.monotonic() - start:.0f} s"
        + (f"; failed: {' '.join(failed)}" if failed else "")
        + (f"; {missing} did not run" if missing else ""),
        flush=True,
    )
    return 1 if failed or missing else 0


if __name__ == "__main__":
    program(main)
