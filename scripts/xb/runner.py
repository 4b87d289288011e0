"""Runs checks and tests, shows each as it ends, and closes with the one line `N passed, N failed`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from . import checks, module
from .common import BUILD, TOP, Fail, say, write_json

NESTED = TOP / "scripts/nested/run.py"
DEBUG = TOP / "scripts/nested/debug.py"
RESULTS = BUILD / "results"


@dataclass
class Result:
    name: str
    ok: bool
    seconds: float
    why: str = ""


def host(chosen: list[checks.Check], to: module.Target | None) -> list[Result]:
    """Static checks and cargo tests."""
    results: list[Result] = []

    def report(name: str, why: str, start: float) -> None:
        results.append(Result(name, not why, round(time.monotonic() - start, 1), why))
        print(f"FAIL {name}: {why}" if why else f"ok {name}", flush=True)

    for check in chosen:
        name = check.__name__
        start = time.monotonic()
        try:
            parts = check(to)
            if parts is None:
                report(name, "", start)
            for part, why in parts or ():
                report(f"{name}: {part}", why, start)
        except Fail as error:
            report(name, str(error), start)
    return results


def nested(to: module.Target) -> list[Result]:
    """The tests that run inside Xen; their own runner prints as they go and leaves the results in a file."""
    if not NESTED.exists():
        return [Result("nested", False, 0, f"{NESTED} is not there")]
    module.build(to)
    return in_xen(to.release, NESTED, "nested")


def in_xen(kver: str, script: Path, name: str, *argv: str) -> list[Result]:
    """What SCRIPT, a program of scripts/nested, finds; its results are NAME's."""
    file = RESULTS / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    start = time.monotonic()
    env = os.environ | {"KVER": kver}
    code = subprocess.run([sys.executable, str(script), "--kver", kver, "--json", str(file), *argv], env=env).returncode
    try:
        tests = json.loads(file.read_text())["tests"]
        results = [
            Result(
                f"{name}: {test['name']}{' on two processors' if test['cpus'] == 2 else ''}",
                test["result"] == "ok",
                test["seconds"],
                test["reason"],
            )
            for test in tests
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"no results in {file}: {error}")
        results = []
    if not results or (code and all(result.ok for result in results)):
        why = f"the test runner ended with exit code {code} and " + (
            "no results" if not results else "only good results"
        )
        results.append(Result(name, False, round(time.monotonic() - start, 1), why))
        print(f"FAIL {name}: {why}", flush=True)
    return results


def finish(results: list[Result], started: float, name: str = "check") -> int:
    """Repeats the failures, prints the sum as the last line and returns the exit code."""
    write_json(RESULTS / f"{name}.json", [asdict(result) for result in results])
    failed = [result for result in results if not result.ok]
    say(f"checks took {time.monotonic() - started:.0f} s")
    for result in failed:
        print(f"FAIL {result.name}: {(result.why.strip().splitlines() or ['see above'])[0]}")
    print(f"{len(results) - len(failed)} passed, {len(failed)} failed", flush=True)
    return 1 if failed or not results else 0
