"""What everything else uses: conditions to wait for, commands, the kernel log, and the ways in which a test ends."""

from __future__ import annotations

import glob
import os
import re
import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

from . import reports
from .pace import preset

T = TypeVar("T")
PACE = preset()
# libxl gives a backend ten seconds and a script forty, on any machine: for xl this library slows down the clock.
XL_CLOCK = "/opt/xb/lib/xl_clock.so"
if PACE > 1 and os.path.exists(XL_CLOCK):
    os.environ["LD_PRELOAD"] = XL_CLOCK
GAVE_UP = re.compile(r"time.?out|timed out|not ready", re.IGNORECASE)


class Failure(AssertionError):
    """The thing under test did not do what it should."""


def check(condition: Any, message: str) -> None:
    """An assertion that is never compiled out and always says what it means."""
    if not condition:
        raise Failure(message)


def there(value: T | None, message: str) -> T:
    """A value that must not be missing."""
    if value is None:
        raise Failure(message)
    return value


def equal(got: Any, want: Any, what: str) -> None:
    check(got == want, f"{what}: {got!r}, expected {want!r}")


def wait_for(condition: Callable[[], T | None], timeout: float, what: str) -> T:
    """Waits until CONDITION returns something true, and returns that; tests never wait for a fixed time.

    Here and everywhere a time limit is in seconds of an idle host; it is stretched by the machine's pace.
    """
    timeout *= PACE
    end = time.monotonic() + timeout
    pause = 0.01
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failure(f"after {timeout:g} s still not: {what}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.2)


def pause(seconds: float) -> None:
    """Lets something happen that nothing tells of."""
    time.sleep(seconds * PACE)


START = time.monotonic()
silent = False


def silence() -> None:
    """For a program whose own output is all that is wanted."""
    global silent  # noqa: PLW0603
    silent = True


def log(text: str) -> None:
    """Prints with the seconds since the test began."""
    if not silent:
        print(f"{time.monotonic() - START:6.1f}  {text}", flush=True)


def run(*argv: str, timeout: float = 60, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command in dom0 and returns what it said; the test log shows it when it failed."""
    timeout *= PACE
    start = time.monotonic()
    with subprocess.Popen(
        argv,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        errors="replace",
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
    ) as process:
        try:
            out, err = process.communicate(stdin, timeout)
        except subprocess.TimeoutExpired:
            where = where_is(process.pid)
            process.kill()
            raise Failure(f"{' '.join(argv)}: still running after {timeout:g} s, in\n{where}") from None
        if argv[0] == "xl" and GAVE_UP.search(err):
            err += (
                f"(libxl's own limit was over, which is stretched {PACE if 'LD_PRELOAD' in os.environ else 1:g} times"
                " here)\n"
            )
        done = subprocess.CompletedProcess(argv, process.returncode, out, err)
    log(f"$ {' '.join(argv)}   [{done.returncode}, {time.monotonic() - start:.1f} s]")
    return done


def where_is(pid: int) -> str:
    """Where in the kernel a process and its children are: for a command that does not end."""
    lines = []
    for task in glob.glob(f"/proc/{pid}/task/*"):
        lines.append(
            f"{read(task + '/comm')} {os.path.basename(task)} {read(task + '/syscall')}: "
            + " ".join(line.split()[-1] for line in read(f"{task}/stack").splitlines())
        )
        lines += [where_is(int(child)) for child in read(f"{task}/children").split()]
    return "\n".join(lines)


def sh(script: str, timeout: float = 60) -> str:
    """Runs a shell script in dom0 that must succeed, and returns its standard output."""
    done = run("bash", "-ec", script, timeout=timeout)
    if done.returncode:
        raise Failure(f"{script!r} ended with {done.returncode}: {(done.stdout + done.stderr).strip()}")
    return done.stdout


def read(path: str | os.PathLike[str], default: str = "") -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return default


class KernelLog:
    """The kernel's messages from the moment at which this was made."""

    BAD = re.compile(reports.FIRST.pattern + "|Call Trace|Buffer I/O error|bad unmap|unmap failed", re.IGNORECASE)

    def __init__(self) -> None:
        self.file = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self.file, 0, os.SEEK_END)
        self.seen: list[str] = []

    def lines(self) -> list[str]:
        while True:
            try:
                record = os.read(self.file, 8192).decode(errors="replace")
            except BlockingIOError:
                return self.seen
            except OSError:  # EPIPE: messages were overwritten before they were read
                self.seen.append("(messages lost)")
                continue
            head, _, rest = record.partition(";")
            seconds = int(head.split(",")[2]) / 1e6
            self.seen.append(f"[{seconds:12.6f}] {rest.splitlines()[0]}")

    def bad(self) -> list[str]:
        """Messages that fail a test, whatever else it found."""
        return self.faults(self.lines())

    @classmethod
    def faults(cls, lines: list[str]) -> list[str]:
        excused = reports.excused(lines)
        return [line for number, line in enumerate(lines) if cls.BAD.search(line) and number not in excused]
