#!/usr/bin/env python3
"""Entry program of the build: what `make` calls. `make help` describes the targets, `xb.py --help` what is below them.

Other scripts of the project use the functions of the package xb instead: `from xb import buildroot, kernel, module`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.dont_write_bytecode = True

from xb import archive, buildroot, checks, debugkernel, frontend, fuzz, kernel, module, mutate, runner  # noqa: E402
from xb.common import BUILD, TOP, Fail, program, remove, say  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/xb.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str, kernel_choice: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        if kernel_choice:
            command.add_argument("--kver", default=os.environ.get("KVER"), help="kernel release (default: see `kver`)")
            command.add_argument("--kdir", default=os.environ.get("KDIR"), help="prepared kernel tree to use as it is")
        return command

    add("module", "build the module")
    add("kernel", "prepare the kernel tree and unpack the stock kernel")
    add("kver", "print the release that is built for by default", False)
    add("list", "print the kernel releases in the archive", False)
    add("root", "make the build root", False)
    command = add("run", "run a command inside the build root, in the current directory", False)
    command.add_argument("--bind", action="append", default=[], metavar="DIR", help="make DIR visible there too")
    command.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD")
    command = add("check", "run checks and tests")
    command.add_argument("--host", action="store_true", help="only what needs no emulated machine")
    command.add_argument("--nested", action="store_true", help="only what runs inside Xen")
    command.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"only these host checks: {' '.join(check.__name__ for check in checks.CHECKS)}",
    )
    add("fmt", "format the sources: Rust by the kernel's configuration, Python by ruff.toml")
    add("check-second", "build against the newest kernel of another series too")
    command = add("check-debug", "run the nested tests on a dom0 whose kernel has its instruments on")
    command.add_argument("names", nargs="*", metavar="TEST", help="only these nested tests")
    add(
        "check-long",
        "fuzz for an hour, run the long forms of the nested tests that have one, and break the code to see that tests"
        " fail",
    )
    command = add("fuzz", "fuzz what parses bytes of a guest or of the toolstack", False)
    command.add_argument(
        "--seconds",
        type=float,
        default=fuzz.SHORT,
        help="shared by the targets, several at a time (default: %(default)s)",
    )
    command.add_argument("targets", nargs="*", metavar="TARGET", help=f"only these of {' '.join(fuzz.targets())}")
    command = add("mutate", "break the code in many places, one at a time, and see that the test named for it fails")
    command.add_argument("--list", action="store_true", help="show the breaks and their tests")
    command.add_argument("--host", action="store_true", help="only those that the protocol crate's tests find")
    command.add_argument("--nested", action="store_true", help="only those that tests inside Xen find")
    command.add_argument("--quick", action="store_true", help="do not run the tests on the code as it is before")
    command.add_argument("names", nargs="*", metavar="NAME", help="only these; * and ? are patterns")
    add("demo", "build, boot Xen and show guests on the module's disks")
    command = add(
        "bench",
        "build, boot Xen and measure the module beside its peers; options after -- go to scripts/nested/bench.py",
    )
    command.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- OPTION")
    for name in ("install", "uninstall"):
        add(name, f"{name} module, modprobe.d file and hotplug helper").add_argument(
            "--dest", type=Path, default=Path("/")
        )
    add("clean", "remove the module's build output", False)
    add("distclean", "remove everything that was built", False)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    match options.command:
        case "module":
            to = module.target(options.kver, options.kdir)
            if not module.build(to):
                say(f"{to.ko.relative_to(TOP)} is up to date")
        case "kernel":
            kernel.ensure(options.kver or archive.default_kver())
        case "kver":
            print(archive.default_kver())
        case "list":
            print("\n".join(release.kver for release in archive.releases()))
        case "root":
            buildroot.ensure()
        case "run":
            argv = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
            return buildroot.run(
                argv or ["bash"], cwd=Path.cwd(), binds=[*options.bind, Path.cwd()], check=False
            ).returncode
        case "check":
            return check(options)
        case "fmt":
            checks.rustfmt(module.target(options.kver, options.kdir), write=True)
            checks.programs_rustfmt(frontend.SOURCE, fuzz.SOURCE, write=True)
            checks.python_format(write=True)
        case "check-second":
            to = module.target(archive.second_kver(options.kver or archive.default_kver()), None)
            module.build(to)
        case "check-debug":
            return check_debug(options)
        case "check-long":
            codes = [fuzzed(fuzz.LONG, []), built_and_nested(options, "run.py", "--long")]
            options = argparse.Namespace(**vars(options), list=False, host=False, nested=False, quick=False, names=[])
            return max(*codes, mutate.run(options))
        case "fuzz":
            return fuzzed(options.seconds, options.targets)
        case "mutate":
            return mutate.run(options)
        case "demo":
            return built_and_nested(options, "demo.py")
        case "bench":
            return built_and_nested(options, "bench.py", *(word for word in options.argv if word != "--"))
        case "install":
            module.need_kernel(module.release_of(options.kver, options.kdir), options.dest)
            to = module.target(options.kver, options.kdir)
            module.build(to)
            module.install(to.release, options.dest, to.ko)
        case "uninstall":
            module.install(module.release_of(options.kver, options.kdir), options.dest, None)
        case "clean":
            remove(BUILD / "module")
            remove(BUILD / "clippy")
        case "distclean":
            remove(BUILD)
    return 0


def fuzzed(seconds: float, targets: list[str]) -> int:
    """Fuzzes and shows what was done."""
    found = 0
    for what, why in fuzz.run(seconds, targets):
        print(f"FAIL fuzzing: {what}: {why}" if why else f"ok fuzzing: {what}", flush=True)
        found |= bool(why)
    return found


def built_and_nested(options: argparse.Namespace, name: str, *argv: str) -> int:
    """Builds the module and runs a program of scripts/nested."""
    with ahead():
        to = module.target(options.kver, options.kdir)
        module.build(to)
        return subprocess.run(
            [sys.executable, str(TOP / "scripts/nested" / name), "--kver", to.release, *argv]
        ).returncode


@contextlib.contextmanager
def ahead() -> Iterator[None]:
    """Meanwhile makes the Debian of dom0's image, which takes as long as the build root. If that fails, whoever needs
    the image tries again and tells why."""
    log = BUILD / "log/ahead.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("wb") as errors,
        subprocess.Popen([sys.executable, str(TOP / "scripts/nested/image.py")], stderr=errors) as process,
    ):
        try:
            yield
        finally:
            process.terminate()


def check(options: argparse.Namespace) -> int:
    """All checks and tests unless options narrow them; a kernel tree that cannot be prepared fails all of them at
    once."""
    started = time.monotonic()
    if options.nested and options.names:
        raise Fail(
            f"--nested runs no host check: leave out {' '.join(options.names)}\n"
            "  scripts/nested/run.py TEST... runs some of the nested tests."
        )
    if unknown := sorted(set(options.names) - {check.__name__ for check in checks.CHECKS}):
        raise Fail(f"no check {' '.join(unknown)}; --help names them")
    both = options.host == options.nested
    host = (
        [check for check in checks.CHECKS if not options.names or check.__name__ in options.names]
        if both or options.host
        else []
    )
    in_xen = (both or options.nested) and not options.names
    with ahead() if in_xen else contextlib.nullcontext(), ThreadPoolExecutor(1) as pool:
        try:
            buildroot.ensure()
            early = pool.submit(runner.host, [check for check in host if check in checks.WITHOUT_KERNEL], None)
            if in_xen:
                pool.submit(frontend.build)  # whoever needs it tells why it could not be built
            to = module.target(options.kver, options.kdir)
        except Fail as error:
            print(f"FAIL kernel: {error}", flush=True)
            return runner.finish([runner.Result("kernel", False, time.monotonic() - started, str(error))], started)
        results = early.result() + runner.host([check for check in host if check not in checks.WITHOUT_KERNEL], to)
        if in_xen:
            results += runner.nested(to)
    return runner.finish(results, started)


def check_debug(options: argparse.Namespace) -> int:
    """The nested tests on the debug kernel: the module is built for it, and for the stock kernel of the guests."""
    started = time.monotonic()
    if options.kdir:
        raise Fail("check-debug makes its own kernel: KDIR= has no meaning here")
    with ahead():
        stock = module.target(options.kver, None)
        module.build(stock)
        to = module.target(None, str(debugkernel.ensure(stock.release) / "tree"))
        module.build(to)
    results = runner.host([checks.instrumented], to)
    results += runner.in_xen(stock.release, runner.DEBUG, "debug", *options.names)
    return runner.finish(results, started, "check-debug")


if __name__ == "__main__":
    program(main)
