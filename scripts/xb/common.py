"""What every part of the build shares: where things lie, progress lines, logs, locks, stamps."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

TOP = Path(__file__).resolve().parents[2]
BUILD = TOP / "build"
LOGS = BUILD / "log"
JOBS = os.environ.get("XB_JOBS") or str(os.cpu_count() or 1)


class Fail(Exception):
    """An error that the user can understand and act on: printed without a traceback."""


def program(main: Callable[[], int]) -> NoReturn:
    """Runs MAIN as a program: what it returns is the exit status; an error for the user is printed."""
    # kill(1) unwinds like Ctrl-C does, so that what we started ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except Fail as error:
        print(f"xb: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def positive(text: str) -> int:
    """An argument that says how many."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def say(text: str) -> None:
    print(f"xb: {text}", flush=True)


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Shows that a long step begins, and at its end the seconds it took. Whole lines: several steps may go on at a
    time."""
    say(f"{name} ...")
    start = time.monotonic()
    outcome = "failed after "
    try:
        yield
        outcome = ""
    finally:
        say(f"{name.partition(' (about')[0]}: {outcome}{time.monotonic() - start:.1f} s")


def logged(
    argv: list[str], log: str, *, shown: Sequence[str] = (), append: bool = False, lines: int = 25, **popen: Any
) -> Path:
    """Runs argv with its output in build/log/LOG.log; on failure shows the tail and where the rest is.

    SHOWN is what the user should see as the command, where argv wraps it in others.
    """
    shown = shown or argv
    path = LOGS / f"{log}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab" if append else "wb") as out:
        out.write(f"$ {' '.join(shown)}\n".encode())
        out.flush()
        code = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **popen).returncode
    if code:
        raise Fail(f"{shown[0]} failed with exit code {code}; end of {rel(path)}:\n{tail(path, lines)}")
    return path


def tail(path: Path, lines: int = 25) -> str:
    text = path.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join("    " + line for line in text)


def rel(path: Path) -> str:
    """A path as the user would type it in the checkout."""
    return str(path.relative_to(TOP)) if path.is_relative_to(TOP) else str(path)


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Only one process at a time builds the thing NAME; a second one waits and then finds it ready."""
    path = BUILD / "lock" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that works on {name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def digest(*parts: str | bytes) -> str:
    """A short hash that identifies the inputs of something built."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()[:20]


def read_json(path: Path) -> dict[str, Any]:
    """The content of a stamp, or {} when it is absent or was cut short: then its subject is built anew."""
    try:
        value = json.loads(path.read_text())
        return value if isinstance(value, dict) else {}
    except (OSError, ValueError):
        return {}


def write_json(path: Path, value: Any) -> None:
    """Written beside and renamed: a reader sees the old or the new stamp, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(json.dumps(value, indent=1) + "\n")
    new.rename(path)


def remove(path: Path) -> None:
    """rm -rf that never follows a mount: a build root may hold somebody's bind mount of /dev or of the checkout."""
    if not os.path.lexists(path):
        return
    below = str(path.resolve()) + "/"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if (point + "/").startswith(below):
            raise Fail(f"{point} is a mount point: unmount it before {rel(path)} can be removed")
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)


def need_root(why: str) -> None:
    if os.geteuid() != 0:
        raise Fail(f"{why} needs root (mounts and chroot); run make as root")


def sources(top: Path, dirs: Iterable[str]) -> list[Path]:
    """All files below DIRS of a checkout, sorted; a name in DIRS may also be a single file."""
    found: list[Path] = []
    for name in dirs:
        base = top / name
        if base.is_dir():
            found += [path for path in base.rglob("*") if path.is_file() and "/target/" not in str(path)]
        elif base.is_file():
            found.append(base)
    return sorted(found)
