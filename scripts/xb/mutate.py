"""Tests the tests: breaks the code on purpose, one small break at a time, and looks whether the test named for it
fails.

The breaks are in tests/mutations, whose head describes the format. They are made in a copy of the sources, never in the
checkout. `xb.py mutate` is the command, `make check-long` runs all of them; that each can still be made is a check of
`make check-host`.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from . import buildroot, frontend, module
from .common import BUILD, TOP, Fail, lock, rel, remove, step, write_json

LIST = TOP / "tests/mutations"
NESTED = TOP / "scripts/nested/run.py"
TESTS = TOP / "tests/nested/tests"
WORK = BUILD / "mutate"
TREE = WORK / "tree"
SOURCES = ("Kbuild", "blkback", "rust-bindings")
BLKIF = "blkback/blkif"
SECONDS = 120  # that a test of the protocol crate may take: a break can make it endless
CAUGHT, MISSED, ERROR = "caught", "NOT CAUGHT", "ERROR"


@dataclass
class Mutation:
    name: str
    line: int
    file: str = ""
    function: str = ""
    old: str = ""
    new: str = ""
    cargo: str = ""  # the file in tests/ of the protocol crate, and which of its tests
    nested: list[str] = field(default_factory=list)

    def where(self) -> str:
        return f"{rel(LIST)}:{self.line}: {self.name}"

    def broken(self, text: str) -> str:
        """The file's text with the break. White space counts as any other, so that reformatting does not matter."""
        pattern = re.compile(r"\s+".join(re.escape(word) for word in self.old.split()))
        found = [hit for start, end in _bodies(text, self.function) for hit in pattern.finditer(text, start, end)]
        if len(found) != 1:
            place = f"fn {self.function} of {self.file}" if self.function else self.file
            raise Fail(
                f"{self.where()}: its text is {len(found)} times in {place}, not once: make the list follow the code"
            )
        return text[: found[0].start()] + self.new + text[found[0].end() :]


def _bodies(text: str, function: str) -> Iterator[tuple[int, int]]:
    """From where to where each function of this name goes in a file that rustfmt has formatted; all of it without a
    name."""
    if not function:
        yield 0, len(text)
    for hit in re.finditer(rf"^( *)(?:[\w(:)\" ]+ )?fn {re.escape(function)}\b", text, re.M) if function else ():
        end = text.find(f"\n{hit[1]}}}", hit.start())
        yield hit.start(), end if end >= 0 else len(text)


def mutations() -> list[Mutation]:
    """Those of the list, in its order."""
    found: list[Mutation] = []
    for number, line in enumerate(LIST.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if not line.startswith(" "):
            found.append(Mutation(line.strip(), number))
            continue
        now, (key, _, rest) = found[-1], line.strip().partition(" ")
        match key:
            case "in":
                now.file, _, now.function = (word.strip() for word in rest.partition(" fn "))
            case "-":
                now.old += rest + "\n"
            case "+":
                now.new += ("\n" if now.new else "") + rest
            case "cargo":
                now.cargo = rest
            case "nested":
                now.nested = rest.split()
            case _:
                raise Fail(f"{rel(LIST)}:{number}: a line of a break begins with in, -, +, cargo or nested")
    return found


def check() -> None:
    """Each break can be made, in one place, and the tests that must fail are there. Takes no time."""
    problems, names = [], set()
    for mutation in mutations():
        where = mutation.where()
        if mutation.name in names:
            problems.append(f"{where}: there is another of this name")
        names.add(mutation.name)
        try:
            text = (TOP / mutation.file).read_text()
            if mutation.broken(text) == text:
                problems.append(f"{where}: changes nothing")
        except OSError as error:
            problems.append(f"{where}: {mutation.file}: {error.strerror}")
        except Fail as error:
            problems.append(str(error))
        if bool(mutation.cargo) == bool(mutation.nested):
            problems.append(f"{where}: names tests of either cargo or nested Xen")
        problems += [
            f"{where}: there is no nested test {test}"
            for test in mutation.nested
            if not (TESTS / f"{test}.py").exists()
        ]
        if mutation.cargo:
            target, _, test = mutation.cargo.partition(" ")
            path = TOP / BLKIF / f"tests/{target}.rs"
            if not path.exists() or not re.search(rf"\bfn {re.escape(test)}\b", path.read_text()):
                problems.append(f"{where}: there is no test {test} in {rel(path)}")
    if problems:
        raise Fail("\n" + "\n".join(f"    {problem}" for problem in problems))


def run(options) -> int:  # type: ignore[no-untyped-def]
    """The command: tries the breaks that OPTIONS choose, prints what becomes of each, and counts."""
    chosen = [
        one
        for one in mutations()
        if not options.names or any(fnmatch.fnmatch(one.name, name) for name in options.names)
    ]
    if options.host or options.nested:
        chosen = [one for one in chosen if (one.cargo and options.host) or (one.nested and options.nested)]
    if options.list:
        for one in chosen:
            print(
                f"{one.name:36} {one.file}{' fn ' + one.function if one.function else '':24} "
                f"{'cargo test ' + one.cargo if one.cargo else 'nested ' + ' '.join(one.nested)}"
            )
        return 0
    if not chosen:
        raise Fail("no break has such a name: --list shows all")
    check()
    started = time.monotonic()
    results: dict[str, tuple[str, str]] = {}

    def report(one: Mutation, word: str, why: str, seconds: float) -> None:
        results[one.name] = word, why
        print(f"{word:10} {one.name} ({seconds:.0f} s): {why}", flush=True)
        write_json(
            BUILD / "results/mutations.json",
            {name: {"result": word, "why": why} for name, (word, why) in results.items()},
        )

    with lock("mutate"):
        remove(TREE)
        TREE.mkdir(parents=True)
        for name in SOURCES:
            (shutil.copytree if (TOP / name).is_dir() else shutil.copy2)(TOP / name, TREE / name)
        _in_crate([one for one in chosen if one.cargo], report, options.quick)
        nested = [one for one in chosen if one.nested]
        if nested:
            _in_xen(nested, report, options)
    count = {word: sum(result == word for result, _ in results.values()) for word in (CAUGHT, MISSED, ERROR)}
    for name, (word, why) in results.items():
        if word != CAUGHT:
            print(f"{word:10} {name}: {why}")
    print(
        f"{len(results)} breaks: {count[CAUGHT]} caught, {count[MISSED]} not caught, {count[ERROR]} errors "
        f"in {time.monotonic() - started:.0f} s",
        flush=True,
    )
    return 0 if count[CAUGHT] == len(chosen) else 1


class _Broken:
    """The copy with one break, while in use."""

    def __init__(self, mutation: Mutation) -> None:
        self.path = TREE / mutation.file
        self.text = self.path.read_text()
        self.new = mutation.broken(self.text)

    def __enter__(self) -> None:
        self.path.write_text(self.new)

    def __exit__(self, *_: object) -> None:
        self.path.write_text(self.text)


def _in_crate(chosen: list[Mutation], report, quick: bool) -> None:  # type: ignore[no-untyped-def]
    """Breaks of the protocol crate, which its own tests on the host must find."""
    if not chosen:
        return
    crate = WORK / "crate"
    # A break may leave something unused.
    env = frontend.prepare(TREE / BLKIF, crate) | {"CARGO_TARGET_DIR": str(WORK / "cargo"), "RUSTFLAGS": "-Awarnings"}

    def cargo(*argv: str, limit: bool = True) -> subprocess.CompletedProcess[str]:
        command = [*(["timeout", str(SECONDS)] if limit else []), "cargo", "test", "--offline", *argv]
        return buildroot.run(command, cwd=crate, env=env, capture=True, check=False)

    if not quick:
        with step("cargo test of the protocol crate as it is"):
            done = cargo(limit=False)
        if done.returncode:
            raise Fail(f"the protocol crate's tests fail without any break:\n{(done.stdout + done.stderr)[-2000:]}")
    for one in sorted(chosen, key=lambda one: (one.cargo, one.file)):
        start = time.monotonic()
        target, _, test = one.cargo.partition(" ")
        with _Broken(one):
            word, why = ERROR, "does not build"
            done = cargo("--test", target, "--no-run", limit=False)
            if not done.returncode:
                done = cargo("--test", target, test)
                ran = re.findall(rf"^test \S*\b{re.escape(test)} (?:- should panic )?\.\.\. (\w+)", done.stdout, re.M)
                if done.returncode == 124:
                    word, why = CAUGHT, f"{test} does not end"
                elif "FAILED" in ran or (done.returncode and ran):
                    word, why = CAUGHT, f"{test} fails"
                elif "ok" in ran:
                    word, why = MISSED, f"{test} passes"
                else:
                    why = f"{test} was not run"
            if word == ERROR:
                why += f":\n{(done.stdout + done.stderr)[-1500:]}"
        report(one, word, why, time.monotonic() - start)


def _in_xen(chosen: list[Mutation], report, options) -> None:  # type: ignore[no-untyped-def]
    """Breaks that tests in nested Xen must find. The next module is built while tests run on the one before.

    Each gets a machine of its own: what a broken module leaves behind would spoil the next test.
    """
    to = module.target(options.kver, options.kdir)
    kbuild = TREE / "Kbuild"
    kbuild.write_text(kbuild.read_text().replace("-Dwarnings", "-Awarnings"))
    # Those of one file after the other: changing a crate that others need means building these, too.
    chosen = sorted(
        chosen,
        key=lambda one: (
            not one.file.startswith("blkback/blkif"),
            not one.file.startswith("rust"),
            one.file,
            one.nested,
        ),
    )
    with ThreadPoolExecutor(1) as machine:
        healthy: Future[dict[str, str]] | None = None
        if not options.quick:
            built = _build(to, "unbroken")
            healthy = machine.submit(
                _tests, to, built, sorted({test for one in chosen for test in one.nested}), "unbroken"
            )
        pending: list[Future[None]] = []

        def tried(one: Mutation, built: Path) -> None:
            start = time.monotonic()
            without = healthy.result() if healthy else None
            bad = [test for test in one.nested if without is not None and without.get(test) != "ok"]
            outcomes = {} if bad else _tests(to, built, one.nested, one.name)
            failed = [f"{test}: {why}" for test, why in outcomes.items() if why != "ok"]
            built.unlink()
            if without is not None and bad:
                word, why = ERROR, f"{bad[0]} fails without any break: {without.get(bad[0])}"
            elif untried := [
                f"{test}: {outcomes.get(test, 'no result')}"
                for test in one.nested
                if outcomes.get(test, "boot: ").startswith(("boot: ", "runner: "))
            ]:
                word, why = ERROR, "; ".join(untried)
            else:
                word, why = (CAUGHT, failed[0]) if failed else (MISSED, f"{' '.join(one.nested)} passes")
            report(one, word, why.splitlines()[0][:200], time.monotonic() - start)

        for one in chosen:
            start = time.monotonic()
            try:
                with _Broken(one):
                    built = _build(to, one.name)
            except Fail as error:
                report(one, ERROR, f"does not build: {error}", time.monotonic() - start)
                continue
            pending.append(machine.submit(tried, one, built))
        for future in pending:
            future.result()


def _build(to: module.Target, name: str) -> Path:
    """Builds the copy; the module under a name of its own."""
    output = WORK / "module"
    output.mkdir(exist_ok=True)
    to.run(module.kernel_make(to, TREE, output), "mutate-module")
    ko = WORK / f"{name}.ko"
    shutil.copy(output / f"{module.NAME}.ko", ko)
    return ko


def _tests(to: module.Target, built: Path, tests: list[str], name: str) -> dict[str, str]:
    """Runs TESTS on a module. "ok" or why it failed, for each."""
    results = WORK / "results" / f"{name}.json"
    results.parent.mkdir(exist_ok=True)
    results.unlink(missing_ok=True)
    log = WORK / "results" / f"{name}.log"
    with log.open("w") as out:
        subprocess.run(
            [
                sys.executable,
                str(NESTED),
                "--kver",
                to.release,
                "--jobs",
                "1",
                "--brief",
                "--module",
                str(built),
                "--json",
                str(results),
                *tests,
            ],
            stdout=out,
            stderr=out,
            env={key: value for key, value in os.environ.items() if key != "KVER"},
        )
    try:
        return {
            test["name"]: "ok" if test["result"] == "ok" else test["reason"] or "?"
            for test in json.loads(results.read_text())["tests"]
        }
    except (OSError, ValueError):
        return {}
