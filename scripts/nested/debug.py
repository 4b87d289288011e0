#!/usr/bin/env python3
"""`make check-debug`: the nested tests on a dom0 whose kernel has its instruments on, with two processors.

    debug.py                all tests but those of LEFT_OUT
    debug.py smoke rmmod    some of them

KASAN, lockdep and their like report to the kernel's log; a report fails the test in which it appears unless
tests/nested/lib/reports.py lists it as the kernel's own. At the end the log is read from its beginning, kmemleak is
asked what has leaked, and lockdep, which ends at its first report, must still be there. The guests run the stock
kernel."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
# It is slow in itself: the least by which time limits are stretched.
os.environ.setdefault("XB_PACE", "3")

import image  # noqa: E402
from run import Outcome, Runner, default_kver, find_tests  # noqa: E402
from vm import DOM0_MEMORY, MEMORY, Dead, Machine, fault_files, module_files  # noqa: E402
from xb import debugkernel  # noqa: E402
from xb.common import Fail, lock, positive, program, rel, say, write_json  # noqa: E402
from xb.module import target  # noqa: E402

CPUS = 2
MORE_MEMORY = 640  # MiB for KASAN's shadow, what it keeps of freed memory, and the other instruments' notes
# KASAN goes on after its first report, and the log keeps all. Only the tests' own limits apply to a workqueue that
# waits, as emulation stalls.
KERNEL = "kasan_multi_shot log_buf_len=4M workqueue.watchdog_thresh=600"
# Of the tests' loops: what an instrument finds it finds in the first rounds.
LOOPS = 0.2
# Runs first: what comes before it is lost for kmemleak.
FIRST = "power_cut"
# A test takes four times as long with the instruments as without: these run on the stock kernel alone.
LEFT_OUT = {
    name: reason
    for reason, names in {
        "measures memory and time, which the instruments multiply": "scale",
        "boots guests or moves them, which is the toolstack's work": (
            "create_destroy driver_domain hvm_guest move pvh_guest pygrub reboot root_on_device root_on_file"
        ),
        "looks at names, access and scripts, which takes no code that others do not": (
            "access_mode keep_script names one_writer parameters refused without_rs"
        ),
        "looks at data on disks, which the instruments do not": (
            "fill fio_verify large_sectors log_writes odd_sizes sector_sizes"
        ),
    }.items()
    for name in names.split()
}
# What is looked at when no test is left, as dom0/reports.py calls it.
ENDS = ("instruments", "reports", "leaks")
END_SECONDS = 300


class DebugRunner(Runner):
    """Machines with the debug kernel in dom0."""

    TIMES_OF = "debug"

    def __init__(self, kver: str, *args: object) -> None:
        directory = debugkernel.KERNELS / debugkernel.release_of(kver)
        if not (directory / "stamp").exists():
            raise Fail(f"there is no debug kernel in {rel(directory)}: run `make check-debug`, which builds it")
        self.dom0 = image.Kernel(directory.name, directory / "vmlinux", directory / "modules")
        super().__init__(kver, *args)  # type: ignore[arg-type]
        self.files += [
            *module_files(self.dom0.release, self.backend),
            *fault_files(target(None, str(directory / "tree")), self.backend),
        ]
        self.queue.sort(key=lambda job: job.test.name != FIRST)

    def _image(self) -> image.Image:
        return image.ensure(self.kver, self.dom0)

    def _machine(self, cpus: int) -> Machine:
        return Machine(
            self.image,
            self.files,
            cpus=cpus,
            kernel=KERNEL,
            memory=MEMORY + MORE_MEMORY,
            dom0_memory=DOM0_MEMORY + MORE_MEMORY,
        )

    def _boot(self, machine: Machine, number: int) -> None:
        super()._boot(machine, number)
        said, status = execute(machine, "start")
        if status:
            raise Dead(f"dom0/reports.py start ended with {status}: {'; '.join(said)}")

    def _end(self, machine: Machine) -> None:
        start = time.monotonic()
        outcomes = [Outcome(name, machine.cpus, "fail") for name in ENDS]
        try:
            said, status = execute(machine, "end")
            if status:
                raise Dead("\n".join(said[-20:]))
            found = json.loads(said[-1])
            for outcome in outcomes:
                faults = found[outcome.name]
                outcome.log = "\n\n".join(faults).splitlines()
                outcome.result = "fail" if faults else "ok"
                outcome.reason = f"{len(faults)}: {faults[0].splitlines()[0]}" if faults else ""
            for name, times in found["known"].items():
                say(f"known report, {times} times: {name}")
        except (Dead, ValueError, IndexError) as error:
            for outcome in outcomes:
                outcome.reason = str(error)
        for outcome in outcomes:
            outcome.seconds = time.monotonic() - start
            self._report(outcome)


def execute(machine: Machine, what: str) -> tuple[list[str], int]:
    """Runs dom0/reports.py: its lines and its exit status."""
    said, status = [], 1
    for message in machine.execute(f"cd /opt/xb && exec python3 -u dom0/reports.py {what}", END_SECONDS):
        if "log" in message:
            said.append(message["log"])
        elif "exit" in message:
            status = 1 if message["exit"] is None else message["exit"]
    return said, status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", metavar="TEST")
    parser.add_argument("--kver", help="kernel release of the guests; dom0's is made from the same source")
    parser.add_argument("--jobs", type=positive, default=2, help="machines at a time")
    parser.add_argument("--cpus", type=positive, default=CPUS, help="processors of each machine, and of dom0 in it")
    parser.add_argument(
        "--loops",
        type=float,
        default=LOOPS,
        metavar="FACTOR",
        help="longer or shorter loops in the tests that have any",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results and logs here, too")
    parser.add_argument("--verbose", "-v", action="store_true", help="show the tests' logs as they run")
    options = parser.parse_args()
    tests = {name: test for name, test in find_tests().items() if "rs" in test.backends}
    if unknown := sorted(set(options.tests) - set(tests)):
        raise Fail(f"no test {' '.join(unknown)}; `run.py --list` names them")
    kver = options.kver or os.environ.get("KVER") or default_kver()
    chosen = [tests[name] for name in options.tests] or [
        test for name, test in tests.items() if name not in LEFT_OUT and not test.only_long
    ]
    if not options.tests:
        for name, reason in LEFT_OUT.items():
            say(f"left out: {name}: {reason}")
    start = time.monotonic()
    with lock("nested tests"):
        outcomes = DebugRunner(
            kver, "rs", chosen, options.jobs, options.verbose, options.cpus, options.loops, False
        ).run()
    ended = {outcome.name for outcome in outcomes}
    outcomes += [
        Outcome(name, options.cpus, "fail", "did not run: the machine did not live so long")
        for name in (*(test.name for test in chosen), *ENDS)
        if name not in ended
    ]
    if options.json:
        write_json(options.json, {"kver": kver, "backend": "rs", "tests": [asdict(outcome) for outcome in outcomes]})
    failed = sorted(outcome.name for outcome in outcomes if outcome.result != "ok")
    print(
        f"\ndebug {kver}: {len(outcomes) - len(failed)} ok, {len(failed)} failed in {time.monotonic() - start:.0f} s"
        + (f"; failed: {' '.join(failed)}" if failed else ""),
        flush=True,
    )
    return 1 if failed else 0


if __name__ == "__main__":
    program(main)
