"""The static checks of `make check-host`. Each is a function that raises Fail with the reason, and is easy to add.

CHECKS at the end lists them in the order in which they run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from . import archive, buildroot, failcalls, frontend, fuzz, imports, module, mutate, ruff
from .common import BUILD, LOGS, TOP, Fail, rel, sources, step, tail

# A check raises Fail, or yields its tests with what is wrong with each.
Check = Callable[..., Iterator[tuple[str, str]] | None]

RUST_DIRS = ("blkback", "rust-bindings")
SAFE_DIR = "blkback"
UNSAFE_DIR = "rust-bindings"
# The files that say for which module of their crate unsafe code is allowed: what reaches the kernel's devices from user
# space, in a test program; what libFuzzer calls, and is called by.
MAY_ALLOW = ("tests/frontend/src/main.rs", "tests/fuzz/src/lib.rs", "tests/fuzz/src/libfuzzer.rs")
ROOT = TOP / "blkback/blkback.rs"
BINDGEN = TOP / "rust-bindings/raw.rs"
BLKIF = TOP / "blkback/blkif"
CRATES = [TOP / file for file in ("blkback/blkback.rs", "blkback/blkif/blkif.rs", "rust-bindings/xen_bindings.rs")]
MISUSE = TOP / "tests/misuse/misuse.rs"
MARK = re.compile(r"//~ (E\d+)$")
# Attributes that would turn off what makes people justify unsafe code.
SILENCED = re.compile(
    r"\b(?:allow|expect)\s*\([^)]*?\b(undocumented_unsafe_blocks|missing_safety_doc|unsafe_op_in_unsafe_fn)\b"
)

# Symbols that only code which can panic refers to: in dom0 a panic is a BUG().
PANIC = re.compile(r"core9panicking|_fail$|unwrap_failed|expect_failed")


def rustfmt(to: module.Target, *, write: bool = False) -> None:
    """Formatting, by the kernel's own configuration; write=True is `make fmt`."""
    files = [str(path) for path in _rust_files(RUST_DIRS)]
    buildroot.run(
        [
            "rustfmt",
            *(() if write else ("--check",)),
            "--color",
            "never",
            "--edition",
            "2021",
            "--config-path",
            str(to.tree / ".rustfmt.toml"),
            *files,
        ],
        log="rustfmt",
        binds=[to.tree],
    )


def programs_rustfmt(*sources: Path, write: bool = False) -> None:
    """As rustfmt, of the test programs, which are formatted as programs usually are."""
    files = [str(path) for source in sources for path in (source / "src").rglob("*.rs")]
    buildroot.run(
        ["rustfmt", *(() if write else ("--check",)), "--color", "never", "--edition", "2021", *files],
        log="programs-fmt",
    )


def build(to: module.Target) -> None:
    """The module builds without a warning, and would load."""
    module.build(to)


def clippy(to: module.Target) -> None:
    """Clippy with the kernel's configuration; every warning is an error."""
    module.build(to, clippy=True)
    commands = [path.read_text() for path in to.output(clippy=True).rglob(".*.o.cmd")]
    if not any("-Wclippy::undocumented_unsafe_blocks" in text for text in commands):
        raise Fail("the kernel's flags no longer include the lint undocumented_unsafe_blocks: add it to Kbuild")


def panic_gate(to: module.Target) -> None:
    """No Rust object of the module refers to a function that panics."""
    module.build(to)
    output, objects = to.output(), _rust_objects(to)
    found = [
        f"{line.split(':')[0].removeprefix(str(output) + '/')} refers to {line.split()[-1]}"
        for line in to.read(["nm", "-A", "-u", *map(str, objects)]).splitlines()
        if PANIC.search(line)
    ]
    if found:
        raise Fail(_list(found))


def instrumented(to: module.Target) -> None:
    """Built for the debug kernel, each Rust object of the module that has functions has KASAN look at its accesses."""
    without = []
    for path in _rust_objects(to):
        symbols = [line.split() for line in to.read(["nm", str(path)]).splitlines()]
        functions = [name for *_, kind, name in symbols if kind in "Tt" and not name.startswith("asan.module_")]
        if functions and not any(name.startswith("__asan_load") for *_, name in symbols):
            without.append(path.name)
    if without:
        raise Fail(f"KASAN does not look at {' '.join(without)}")


def _rust_objects(to: module.Target) -> list[Path]:
    output = to.output()
    objects = [path for path in output.rglob("*.o") if (TOP / path.relative_to(output)).with_suffix(".rs").exists()]
    if not objects:
        raise Fail(f"no Rust object in {rel(output)}: there is nothing to look at")
    return objects


def misuse(to: module.Target) -> None:
    """What the types of rust-bindings/ must not allow does not compile: each line marked so in tests/misuse/ gets its
    error."""
    module.build(to)
    directory = BUILD / "misuse"
    directory.mkdir(exist_ok=True)
    text = MISUSE.read_text()
    wanted = {(number, mark[1]) for number, line in enumerate(text.split("\n"), 1) if (mark := MARK.search(line))}
    for name, source, errors in (
        ("marked", text, wanted),
        ("rest", re.sub(rf"^.*{MARK.pattern}", "", text, flags=re.M), set()),
    ):
        file = directory / f"{name}.rs"
        file.write_text(source)
        messages = list(_compile(to, file))
        found = {(line, code) for line, code, _ in messages}
        if found != errors:
            raise Fail(
                _list(
                    [f"{rel(MISUSE)}:{line}: {code} is wanted, and not there" for line, code in sorted(errors - found)]
                    + [
                        f"{rel(MISUSE)}:{line}: {code}: {message}"
                        for line, code, message in messages
                        if (line, code) not in errors
                    ]
                )
            )


def _compile(to: module.Target, file: Path) -> Iterator[tuple[int, str, str]]:
    """Compiles a file as one beside the driver's crate, with the same command: yields (line, number, message) of each
    error."""
    output = to.output()
    saved = re.search(r"^savedcmd\S* := (.*?)(?:;|$)", (output / "blkback/.blkback.o.cmd").read_text(), re.M)
    if not saved:
        raise Fail(f"kbuild has left no command for blkback.o in {rel(output)}")
    command = re.sub(r"--emit=\S+|--out-dir \S+|\S+/blkback\.rs", "", saved[1])
    command += (
        f" --crate-name misuse -L blkback/blkif --emit=metadata={file.with_suffix('.rmeta')} --error-format=json {file}"
    )
    argv, env = ["sh", "-c", command], {"RUSTC_BOOTSTRAP": "1"}
    if to.on_host:
        done = subprocess.run(argv, cwd=output, env=os.environ | env, text=True, capture_output=True)
    else:
        done = buildroot.run(argv, cwd=output, env=env, binds=[to.tree], capture=True, check=False)
    errors = 0
    for message in (json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")):
        if message.get("level", "").startswith("error") and message["spans"]:
            errors += 1
            line = next(span["line_start"] for span in message["spans"] if span["is_primary"])
            yield line, (message["code"] or {}).get("code", "error"), message["message"]
    if bool(errors) != bool(done.returncode):
        raise Fail(f"the compiler ended with {done.returncode} and said:\n{done.stderr}")


def unsafe_code(to: module.Target | None = None) -> None:
    """Outside of rust-bindings/ the compiler is told to refuse `unsafe`, file by file of the driver and crate by crate
    beside it, save one module of each test program. No C code is there either."""
    found: list[str] = []
    for path in _rust_files(("",)):
        if path.is_relative_to(TOP / UNSAFE_DIR):
            continue
        text = path.read_text()
        manifest = next((parent / "Cargo.toml" for parent in path.parents if (parent / "Cargo.toml").exists()), None)
        if manifest:
            if tomllib.loads(manifest.read_text())["lints"]["rust"].get("unsafe_code") not in ("deny", "forbid"):
                found.append(f"{rel(manifest)}: does not deny unsafe_code, which {rel(path)} could use")
        elif path == ROOT:
            # module! expands to unsafe code, so that it cannot be forbidden there.
            found += [f"{rel(path)}: {line}" for line in re.findall(r"^(?!\s*//).*\bunsafe\b.*", text, re.M)]
        elif "#![forbid(unsafe_code)]" not in text.split("\n"):
            found.append(f"{rel(path)}: lacks #![forbid(unsafe_code)]")
        if rel(path) not in MAY_ALLOW and re.search(r"\b(?:allow|expect|warn)\s*\([^)]*\bunsafe_code\b", text):
            found.append(f"{rel(path)}: allows unsafe code")
    found += [
        f"{rel(path)}: C code outside of {UNSAFE_DIR}/"
        for path in sources(TOP, [SAFE_DIR])
        if path.suffix in (".c", ".h")
    ]
    if found:
        raise Fail(_list(found))


def safety_comments(to: module.Target | None = None) -> None:
    """No file turns off clippy's lints that want a reason for each `unsafe`, but that for bindgen's output."""
    found = [
        f"{rel(path)}: turns off {name}"
        for path in _rust_files((UNSAFE_DIR, "tests"))
        if path != BINDGEN
        for name in SILENCED.findall(path.read_text())
    ]
    if found:
        raise Fail(_list(found))


def one_way(to: module.Target | None = None) -> None:
    """In no crate of the module an import runs back up: what a file stands on does not know it."""
    found: list[str] = []
    for crate in CRATES:
        others = [other.parent for other in CRATES if other != crate and other.is_relative_to(crate.parent)]
        code = {
            path: path.read_text()
            for path in _rust_files((rel(crate.parent),))
            if not any(path.is_relative_to(other) for other in others) and "tests" not in path.parts
        }
        known = imports.arrows(crate, code)
        up = imports.upwards(known)
        found += [f"{rel(known[room][to])}: imports {to}, which leads back to {room}" for room, to in up]
        print(
            f"xb: {rel(crate)}: {len(known)} rooms, {sum(map(len, known.values()))} arrows, {len(up)} back up",
            flush=True,
        )
    if found:
        raise Fail(_list(found))


def checkpatch(to: module.Target) -> None:
    """The kernel's style checker over the C helpers, and a module of the tests."""
    files = [str(path) for path in sources(TOP, [*RUST_DIRS, rel(failcalls.SOURCE)]) if path.suffix in (".c", ".h")]
    if files:
        buildroot.run(
            [
                "perl",
                str(to.tree / "scripts/checkpatch.pl"),
                "--no-tree",
                "--strict",
                "--terse",
                "--no-summary",
                "--color=never",
                "-f",
                *files,
            ],
            log="checkpatch",
            binds=[to.tree],
        )


def python(to: module.Target | None = None) -> None:
    """The Python of scripts/ and tests/ is formatted, has no fault that ruff knows, and its types hold."""
    python_format()
    ruff.run("check", "--output-format", "concise", ".")
    mypy = ["mypy", "--config-file", str(TOP / "mypy.ini")]
    nested = TOP / "tests/nested"
    scripts = TOP / "scripts"
    path = {"MYPYPATH": "nested:."}
    buildroot.run([*mypy, "xb", "nested"], cwd=scripts, env=path, log="mypy-scripts")
    # xb.py, as a file, would be a second module of the package's name.
    buildroot.run([*mypy, "-c", (scripts / "xb.py").read_text()], cwd=scripts, env=path, log="mypy-xb")
    buildroot.run([*mypy, "lib", "tests", "dom0"], cwd=nested, log="mypy-tests")


def python_format(*, write: bool = False) -> None:
    """How the Python looks, by ruff.toml; write=True is `make fmt`."""
    if write:
        ruff.run("check", "--select", "I", "--fix", ".")
    ruff.run("format", *(() if write else ("--diff",)), ".")


def shell(to: module.Target | None = None) -> None:
    """shellcheck has nothing to say about the scripts in shell."""
    places = [entry.name for entry in TOP.iterdir() if entry.name not in (BUILD.name, ".git")]
    files = [path for path in sources(TOP, places) if re.match(rb"#!.*\b(?:ba|da)?sh\b", path.read_bytes()[:80])]
    if not files:
        raise Fail("found no shell script")
    buildroot.run(["shellcheck", "--color=never", *map(rel, files)], log="shellcheck")


def spelling(to: module.Target | None = None) -> None:
    """codespell knows no misspelt word in any text."""
    skip = "./build,./.git,*.json,*.svg"
    words = ["--ignore-words", str(TOP / "scripts/codespell.txt")]
    buildroot.run(["codespell", "--check-hidden", "--skip", skip, *words, "."], log="codespell")


def refused(to: module.Target | None = None) -> Iterator[tuple[str, str]]:
    """What cannot be done is refused, with the reason: yields (command, "" or what it did instead)."""
    kver = "0.0.1-none-amd64"
    with tempfile.TemporaryDirectory() as name:
        file = Path(name, "file")
        file.touch()
        for command, reason in (
            (f"xb.py module --kver {kver}", archive.default_kver()),  # in the list of those that exist
            ("xb.py check rustfmt typo", "no check typo"),
            ("xb.py check --nested rustfmt", "leave out rustfmt"),
            (f"xb.py install --kver {kver}", f"kernel {kver} is not installed"),
            (f"xb.py uninstall --kver {kver} --dest {file}", f"cannot remove {file}/lib"),
            (f"xb.py uninstall --kdir {name} --dest {name}", "with KVER= instead"),
            (f"nested/run.py --kver {kver} --repeat 0", "0 is not positive"),
            (f"nested/run.py --kver {kver} --json {name}", "name a file"),
        ):
            done = _script(*command.split())
            good = done.returncode and reason in done.stderr and "Traceback" not in done.stderr
            yield (
                command.replace(name, "DIR"),
                ("" if good else f"exit code {done.returncode} and:\n{done.stdout}{done.stderr}"),
            )
        try:
            module.install(kver, file, file)
            problem = "it was not"
        except (Fail, OSError) as error:
            problem = "" if f"cannot install {file}/lib" in str(error) else str(error)
        yield "install below a file", problem


def uninstall(to: module.Target | None = None) -> None:
    """What is there is removed, and only that is named; with KDIR= the module of that kernel."""
    with tempfile.TemporaryDirectory() as name:
        release, ko = (
            Path(name, "tree", module.RELEASE),
            Path(name, f"dest/lib/modules/0.0.1-own/updates/{module.NAME}.ko"),
        )
        for path, text in ((release, "0.0.1-own\n"), (ko, "")):
            path.parent.mkdir(parents=True)
            path.write_text(text)
        done = _script("xb.py", "uninstall", "--kdir", f"{name}/tree", "--dest", f"{name}/dest")
        if done.returncode or ko.exists() or done.stdout != f"xb: removed {ko}\n":
            raise Fail(f"exit code {done.returncode} and:\n{done.stdout}{done.stderr}")


def default_kernel(to: module.Target | None = None) -> None:
    """Of several prepared kernels the tests take that which `make` takes, else the newest by its numbers."""
    old, new, default = "1.9.2+deb13-amd64", "1.10.1+deb13-amd64", archive.default_kver()
    for ready, wanted in (([new, old], new), ([old, new], new), ([default, "99.0.1+deb13-amd64"], default)):
        if (best := archive.best_of(ready)) != wanted:
            raise Fail(f"of {' and '.join(ready)} it is {best}")


def mutations(to: module.Target | None = None) -> None:
    """Each break of tests/mutations still can be made, and names tests that are there."""
    mutate.check()


def compiler(to: module.Target | None = None) -> None:
    """The compiler of a kernel tree is recognized by its version, whoever has made it."""
    for version, there, wanted in (
        ("gcc-14 (Debian 14.2.0-19) 14.2.0", (), "gcc-14"),
        ("x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) 14.2.0", (), "x86_64-linux-gnu-gcc-14"),
        ("Debian clang version 19.1.7 (3+b1)", ("clang", "clang-19"), "clang-19"),
        ("Ubuntu clang version 18.1.3 (1ubuntu1)", ("clang",), "clang"),
        ("clang version 20.1.0 (https://github.com/llvm/llvm-project.git 24a30da)", ("clang", "clang-19"), "clang"),
        ("", (), "gcc"),
    ):
        if (found := module.compiler(version, lambda name: name in there)) != wanted:
            raise Fail(f"of {version!r} it is {found}, not {wanted}")


def reports(to: module.Target | None = None) -> None:
    """Of the kernel's reports only the known ones are excused, whatever comes after them."""
    sys.path.insert(0, str(TOP / "tests/nested"))
    try:
        from lib.basics import KernelLog  # type: ignore[import-not-found]  # noqa: PLC0415
    finally:
        sys.path.pop(0)
    stack = ["Call Trace:", " <TASK>", "{}+0x10/0x20", " </TASK>"]
    preempt = ["BUG: using smp_processor_id() in preemptible [00000000] code: 1-0.0/99", *stack]
    on_stack = [
        "ODEBUG: object is on stack, but NOT annotated.",
        "WARNING: lib/debugobjects.c:655 at lookup_object",
        *stack,
        "---[ end trace 0000000000000000 ]---",
    ]
    freed = ["BUG: KASAN: slab-use-after-free in gnttab_unmap_refs_sync+0x1/0x2", *stack]
    error = ["Buffer I/O error on dev xvda"]
    off = "INFO: lockdep is turned off."

    def log(function: str, *texts: list[str]) -> list[str]:
        return [line.format(function) for text in texts for line in text]

    for lines, wanted in (
        (log("xen_irq_lateeoi", preempt, error), error),
        (log("xen_irq_lateeoi", preempt[:1], preempt, stack, error), error),
        (log("xen_irq_lateeoi", preempt[:1], preempt, error), [preempt[0], preempt[0], "Call Trace:", *error]),
        (
            log("xen_irq_lateeoi", preempt[:1], preempt) + log("other", stack),
            [preempt[0], preempt[0], "Call Trace:", "Call Trace:"],
        ),
        (
            log("xen_irq_lateeoi", ["WARNING: something"], preempt, stack),
            ["WARNING: something", preempt[0], "Call Trace:", "Call Trace:"],
        ),
        (log("other", preempt), [preempt[0], "Call Trace:"]),
        (log("xen_irq_lateeoi", [*preempt[:2], off, *preempt[2:]]), [off]),
        (log("gnttab_unmap_refs_sync", on_stack, error), error),
        (log("xen_irq_lateeoi", preempt, stack), ["Call Trace:"]),
        (log("gnttab_unmap_refs_sync", freed), [freed[0], "Call Trace:"]),
        (log("other", preempt, ["xen_irq_lateeoi+0x1/0x2"]), [preempt[0], "Call Trace:"]),
    ):
        if (found := KernelLog.faults(lines)) != wanted:
            raise Fail(f"of {lines} these fail a test: {found}, not {wanted}")


def _script(name: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of scripts/ for the default kernel."""
    env = {name: value for name, value in os.environ.items() if name not in ("KVER", "KDIR")}
    return subprocess.run([sys.executable, str(TOP / "scripts" / name), *argv], text=True, capture_output=True, env=env)


def cargo(to: module.Target | None = None) -> Iterator[tuple[str, str]]:
    """The protocol crate's own tests: yields (name, "" or why it failed) for each of them."""
    if not (BLKIF / "Cargo.toml").exists():
        raise Fail(f"{rel(BLKIF)} has no Cargo.toml")
    crate = BUILD / "cargo-blkif"
    env = frontend.prepare(BLKIF, crate)
    problem = ""
    try:
        with step("cargo test of the protocol crate"):
            buildroot.run(["cargo", "test", "--offline", "--no-fail-fast"], cwd=crate, env=env, log="cargo-test")
    except Fail as error:
        problem = str(error)
    yield from _tests("cargo-test", problem)


def ring_frontend(to: module.Target | None = None) -> Iterator[tuple[str, str]]:
    """The frontend of tests/frontend: formatting, clippy, and its unit tests."""
    programs_rustfmt(frontend.SOURCE)
    problem = ""
    with step("clippy and cargo test of the ring-level frontend"):
        frontend.cargo("clippy", "--all-targets", "--", "-Dwarnings", log="frontend-clippy")
        try:
            frontend.cargo("test", "--no-fail-fast", log="frontend-test")
        except Fail as error:
            problem = str(error)
    yield from _tests("frontend-test", problem)


def fuzzing(to: module.Target | None = None) -> Iterator[tuple[str, str]]:
    """The fuzz targets: formatting, clippy, their seeds, and then a minute of fuzzing."""
    programs_rustfmt(fuzz.SOURCE)
    with step("clippy and cargo test of the fuzz targets"):
        fuzz.cargo("clippy", "--lib", "--bins", "--", "-Dwarnings", log="fuzz-clippy")
        problem = ""
        try:
            fuzz.cargo("test", "--lib", "--no-fail-fast", log="fuzz-test")
        except Fail as error:
            problem = str(error)
    yield from _tests("fuzz-test", problem)
    yield from fuzz.run(fuzz.SHORT)


def _tests(name: str, problem: str) -> Iterator[tuple[str, str]]:
    """The tests that a log of cargo names; PROBLEM is how cargo itself ended, if not well."""
    log = LOGS / f"{name}.log"
    tests = re.findall(r"^test (\S.*?)(?: - should panic)? \.\.\. (\w+)", log.read_text(errors="replace"), re.M)
    for test, outcome in tests:
        if outcome != "ignored":
            yield test, "" if outcome == "ok" else f"see {rel(log)}"
    if problem and not any(outcome == "FAILED" for _, outcome in tests):
        raise Fail(problem)
    if not tests:
        raise Fail(f"no tests were run; end of {rel(log)}:\n{tail(log)}")


# These run while the kernel's tree is being prepared.
WITHOUT_KERNEL: list[Check] = [
    python,
    shell,
    spelling,
    unsafe_code,
    safety_comments,
    one_way,
    mutations,
    uninstall,
    compiler,
    reports,
    cargo,
    ring_frontend,
    fuzzing,
]
CHECKS: list[Check] = [
    *WITHOUT_KERNEL,
    refused,
    default_kernel,
    rustfmt,
    checkpatch,
    build,
    panic_gate,
    misuse,
    clippy,
]


def _list(found: list[str]) -> str:
    more = f"\n    ... and {len(found) - 20} more" if len(found) > 20 else ""
    return "\n" + "\n".join(f"    {line}" for line in found[:20]) + more


def _rust_files(dirs: tuple[str, ...]) -> list[Path]:
    """The .rs files of the checkout; "" stands for all of them, whatever directory is added later."""
    if dirs == ("",):
        dirs = tuple(entry.name for entry in TOP.iterdir() if entry != BUILD and not entry.name.startswith("."))
    files = [path for path in sources(TOP, dirs) if path.suffix == ".rs"]
    if not files:
        raise Fail("found no Rust source")
    return files
