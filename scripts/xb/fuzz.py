"""The fuzz targets of tests/fuzz: what parses bytes of a guest or of the toolstack, under libFuzzer.

rustc leaves in the code what libFuzzer looks at (coverage, operands of comparisons) by options of LLVM that a stable
rustc takes, too; libFuzzer itself is the one of Debian's clang. Inputs that reached something new stay in
build/fuzz/corpus, and each run begins with them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import buildroot, frontend
from .common import BUILD, JOBS, LOGS, TOP, Fail, rel, remove, say, step

SOURCE = TOP / "tests/fuzz"
# As deep below the checkout as SOURCE.
CRATE = BUILD / "cargo-fuzz"
OUTPUT = BUILD / "cargo-fuzz-target"
FUZZ = BUILD / "fuzz"
FINDINGS = FUZZ / "findings"
# Inputs that have found a fault once, NAME/FILE: none of them may do so again.
KNOWN = SOURCE / "findings"
RUNTIME = "usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-x86_64.a"
SHORT, LONG = 60, 3600  # seconds that the targets share, of `make check` and of `make check-long`
LONGEST = 4096  # bytes of an input: a value of xenstore, or some hundred steps
COVERAGE = (
    "-sanitizer-coverage-level=4",
    "-sanitizer-coverage-inline-8bit-counters",
    "-sanitizer-coverage-pc-table",
    "-sanitizer-coverage-trace-compares",
)


def targets() -> list[str]:
    return sorted(path.stem for path in (SOURCE / "src/bin").glob("*.rs"))


def cargo(command: str, *argv: str, log: str, fuzzer: bool = False) -> None:
    """Runs cargo on the fuzz targets; FUZZER: with what libFuzzer needs."""
    env = frontend.prepare(SOURCE, CRATE) | {"CARGO_TARGET_DIR": str(OUTPUT)}
    if fuzzer:
        flags = [
            "-Cpasses=sancov-module",
            *(f"-Cllvm-args={flag}" for flag in COVERAGE),
            "-Ccodegen-units=1",
            f"-Clink-arg={runtime()}",
            "-Clink-arg=-lstdc++",
            "-Clink-arg=-lm",
            "-Cdefault-linker-libraries",
        ]
        env["RUSTFLAGS"] += " " + " ".join(flags)
    buildroot.run(["cargo", command, "--offline", "--target", frontend.TARGET, *argv], cwd=CRATE, env=env, log=log)


def runtime() -> str:
    """libFuzzer, as the build root sees it."""
    found = sorted(buildroot.ROOT.glob(RUNTIME))
    if not found:
        raise Fail(f"no /{RUNTIME} in the build root: is libclang-rt-dev of the archive of another layout?")
    return "/" + str(found[-1].relative_to(buildroot.ROOT))


def build() -> None:
    buildroot.ensure()
    with step("the fuzz targets"):
        cargo("build", "--bins", log="fuzz-build", fuzzer=True)


def run(seconds: float, names: list[str] | None = None) -> Iterator[tuple[str, str]]:
    """Fuzzes for SECONDS, which the targets share, several at a time; yields (target and what was done, "" or what was
    found)."""
    names = names or targets()
    if unknown := sorted(set(names) - set(targets())):
        raise Fail(f"no fuzz target {' '.join(unknown)}; there are {' '.join(targets())}")
    build()
    each = max(1, round(seconds / len(names)))
    say(f"fuzzing {' '.join(names)}, {each} s each")
    with ThreadPoolExecutor(int(JOBS)) as pool:
        yield from pool.map(lambda name: one(name, each), names)


def one(name: str, seconds: int) -> tuple[str, str]:
    """Fuzzes one target."""
    program = str(OUTPUT / frontend.TARGET / "debug" / name)
    corpus, seeds, findings = FUZZ / "corpus" / name, FUZZ / "seeds" / name, FINDINGS / name
    remove(seeds)
    for path in (corpus, seeds, findings):
        path.mkdir(parents=True, exist_ok=True)
    known = [str(KNOWN / name)] if (KNOWN / name).is_dir() else []
    log = LOGS / f"fuzz-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        program,
        str(corpus),
        str(seeds),
        *known,
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST}",
        "-timeout=30",
        "-rss_limit_mb=1024",
        "-use_value_profile=1",
        "-print_final_stats=1",
        f"-artifact_prefix={findings}/",
    ]
    buildroot.run([program], env={"XB_SEEDS": str(seeds)}, capture=True)
    with log.open("w") as out:
        code = buildroot.run(
            command, check=False, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        ).returncode
    text = log.read_text(errors="replace")
    executed = re.search(r"number_of_executed_units: (\d+)", text)
    reached = re.findall(r"cov: (\d+) ft: \d+ corp: (\d+)/", text)
    done = int(executed[1]) if executed else 0
    edges, inputs = reached[-1] if reached else ("0", "0")
    what = f"{name}: {done:,} executions in {seconds} s, {edges} edges of the code, {inputs} inputs kept"
    if code:
        artifact = re.search(r"Test unit written to (\S+)", text)
        said = re.search(r"^thread .* panicked at .*\n(?:.*\n)?", text, re.M)
        why = (said[0].strip().replace("\n", ": ") if said else f"exit code {code}") + f"; see {rel(log)}"
        if artifact:
            why += f"; the input is {rel(Path(artifact[1]))}: keep it as {rel(KNOWN / name)}/WHAT"
        return what, why
    # No coverage: rustc no longer does as it is told, and all would seem well.
    if done < 100 or int(edges) < 20:
        return what, f"that is not fuzzing; see {rel(log)}"
    return what, ""
