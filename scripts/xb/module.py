"""The module: builds it against a prepared tree, lets no warning pass, and proves that the result would load."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import archive, buildroot, kernel
from .common import BUILD, JOBS, LOGS, TOP, Fail, digest, lock, logged, read_json, rel, remove, say, step, write_json

NAME = "xen-blkback-rs"
# Where a kernel tree has its release.
RELEASE = "include/config/kernel.release"

# What at the top of the checkout cannot change the module. Everything else is an input of it: a new directory that
# is not named here costs a needless rebuild at worst, never a stale module.
NOT_INPUT = {"build", "scripts", "tests", "Documentation", "Makefile", "debian", "dkms"}

WARNING = re.compile(r"\bwarning(\[|: )", re.IGNORECASE)
# Said about a KDIR that another compiler of the same kind built; kbuild goes on, and so do we.
HARMLESS = ("the compiler differs from the one used", "The kernel was built by:", "You are using:")


@dataclass(frozen=True)
class Target:
    """What to build against, where, and with whose compilers."""

    release: str
    tree: Path
    key: str  # changes when the tree does
    cc: str
    lld: bool  # linked by clang's own linker, so that all tools are LLVM's
    on_host: bool  # run the host's tools rather than those of the build root
    stock: Path | None  # /lib/modules/KVER of the packaged kernel, absent with KDIR=

    def output(self, clippy: bool = False) -> Path:
        return BUILD / ("clippy" if clippy else "module") / self.release

    @property
    def ko(self) -> Path:
        return self.output() / f"{NAME}.ko"

    def run(self, argv: Sequence[str], log: str) -> None:
        if self.on_host:
            logged(list(argv), log, lines=60, cwd=TOP)
        else:
            buildroot.run(argv, log=log, lines=60, binds=[self.tree])

    def read(self, argv: Sequence[str]) -> str:
        if self.on_host:
            return subprocess.run(argv, text=True, capture_output=True, check=True).stdout
        return buildroot.run(argv, capture=True, binds=[self.tree]).stdout


def target(kver: str | None, kdir: str | None) -> Target:
    """The Target for KVER (or the default release), or for an already prepared tree KDIR."""
    if kdir:
        return _kdir_target(Path(kdir).resolve())
    kver = kver or archive.default_kver()
    tree = kernel.ensure(kver)
    return Target(kver, tree, kernel.key(kver), kernel.CC, False, False, kernel.directory(kver) / "modules")


def release_of(kver: str | None, kdir: str | None) -> str:
    """The release that target() is for, without preparing that."""
    if not kdir:
        return kver or archive.default_kver()
    try:
        return (Path(kdir) / RELEASE).read_text().strip()
    except OSError as error:
        raise Fail(
            f"cannot read {RELEASE} of KDIR={kdir}: {error.strerror}; name the release with KVER= instead"
        ) from None


def _kdir_target(tree: Path) -> Target:
    config, release = tree / ".config", tree / RELEASE
    for path in (config, release, tree / "Module.symvers", tree / "rust/libkernel.rmeta"):
        if not path.exists():
            raise Fail(
                f"KDIR={tree} is not prepared for Rust modules: it has no {path.relative_to(tree)}.\n"
                "  Build it with CONFIG_RUST=y first: `make` there, or `make modules_prepare` and its Module.symvers."
            )
    text = config.read_text()
    rustc = _config(text, "CONFIG_RUSTC_VERSION_TEXT")
    on_host = bool(shutil.which("rustc")) and _version(subprocess.run, capture_output=True, text=True) == rustc
    if not on_host and (ours := _version(buildroot.run, capture=True)) != rustc:
        raise Fail(f"KDIR={tree} was built by {rustc}; neither this host nor the build root ({ours}) has that compiler")
    cc = compiler(_config(text, "CONFIG_CC_VERSION_TEXT"), lambda name: _there(name, on_host))
    inputs = [(path, path.stat()) for path in (config, tree / "Module.symvers", tree / "rust/libkernel.rmeta")]
    key = digest(str(tree), *(f"{path} {stat.st_mtime_ns} {stat.st_size}" for path, stat in inputs))
    return Target(release.read_text().strip(), tree, key, cc, "\nCONFIG_LD_IS_LLD=y\n" in text, on_host, None)


def compiler(version: str, there: Callable[[str], bool]) -> str:
    """The compiler whose first line of --version is VERSION; THERE says whether there is one of a name.

    gcc begins that line with the name by which it was called, clang with its vendor ("Debian clang version 19.1.7").
    """
    clang = re.search(r"\bclang version (\d+)", version)
    if not clang:
        return version.split(" ", maxsplit=1)[0] or "gcc"
    return next((name for name in (f"clang-{clang[1]}", "clang") if there(name)), "clang")


def _there(name: str, on_host: bool) -> bool:
    return bool(shutil.which(name)) if on_host else (buildroot.ROOT / "usr/bin" / name).exists()


def _config(text: str, name: str) -> str:
    found = re.search(rf'^{name}="(.*)"$', text, re.M)
    return found[1] if found else ""


def _version(run, **options) -> str:  # type: ignore[no-untyped-def]
    return run(["rustc", "--version"], **options).stdout.strip()


def build(to: Target, *, clippy: bool = False) -> bool:
    """Builds the module (or, with clippy=True, passes it through clippy); returns False if there was nothing to do."""
    output = to.output(clippy)
    stamp = output / ".xb-stamp"
    tree_key = digest(to.key, inspect.getsource(build), inspect.getsource(kernel_make), to.cc)
    done = {"tree": tree_key, "sources": _sources_key()}
    if read_json(stamp) == done:
        return False
    if not (TOP / "Kbuild").exists():
        raise Fail("there is no Kbuild file: nothing to build")
    with lock(f"module-{to.release}{'-clippy' if clippy else ''}"):
        # Kbuild does not see that a crate's metadata in the tree changed, so another tree means a fresh start.
        if (output / ".xb-tree").exists() and (output / ".xb-tree").read_text() != tree_key:
            remove(output)
        stamp.unlink(missing_ok=True)
        output.mkdir(parents=True, exist_ok=True)
        (output / ".xb-tree").write_text(tree_key)
        log = f"{'clippy' if clippy else 'module'}-{to.release}"
        with step(f"{'clippy' if clippy else NAME + '.ko'} for {to.release}"):
            to.run(kernel_make(to, TOP, output, *(["CLIPPY=1"] if clippy else [])), log)
            try:
                refuse_warnings(LOGS / f"{log}.log")
                if not clippy:
                    _verify(to)
            except Fail:
                remove(output)  # else the next make would find everything up to date and say nothing
                raise
        write_json(stamp, done)
    if not clippy:
        say(f"{rel(to.ko)}: loads into {to.release}")
    return True


def kernel_make(to: Target, source: Path, output: Path, *more: str) -> list[str]:
    """The command that builds the module from SOURCE into OUTPUT."""
    return [
        "make",
        f"-j{JOBS}",
        "-C",
        str(to.tree),
        *kernel.ARGUMENTS,
        *_compiler(to),
        f"KERNELRELEASE={to.release}",
        f"M={source}",
        f"MO={output}",
        *more,
        "modules",
    ]


def _compiler(to: Target) -> list[str]:
    """What has kbuild use the same tools again."""
    if to.lld:
        return [f"LLVM={to.cc.removeprefix('clang') or 1}"]
    return [f"CC={to.cc}"]


def _sources_key() -> str:
    parts: list[str | bytes] = []
    for entry in sorted(TOP.iterdir()):
        if entry.name in NOT_INPUT or entry.name.startswith(".") or entry.suffix == ".md":
            continue
        for path in sorted(entry.rglob("*")) if entry.is_dir() else [entry]:
            if path.is_file():
                parts += [str(path.relative_to(TOP)), path.read_bytes()]
    return digest(*parts)


def refuse_warnings(log: Path) -> None:
    """Warnings of modpost and objtool do not fail kbuild; compilers' are errors already."""
    lines = [
        line
        for line in log.read_text(errors="replace").splitlines()
        if WARNING.search(line) and not any(text in line for text in HARMLESS)
    ]
    if lines:
        raise Fail(
            "the build gave warnings, which are errors here:\n"
            + "\n".join(f"    {line}" for line in lines[:20])
            + f"\n  ({rel(log)})"
        )


def _verify(to: Target) -> None:
    """Refuses a module that insmod would refuse: foreign version magic, or a symbol that the kernel does not export."""
    magic = to.read(["modinfo", "-F", "vermagic", str(to.ko)]).strip()
    if to.stock:
        like = next(iter(sorted(to.stock.rglob("xen-blkback.ko*"))), None) or next(to.stock.rglob("*.ko*"))
        wanted = to.read(["modinfo", "-F", "vermagic", str(like)]).strip()
        if magic != wanted:
            raise Fail(f"version magic of the module is '{magic}', of the packaged {like.name} '{wanted}'")
    elif magic.split(" ")[0] != to.release:
        raise Fail(f"version magic of the module is '{magic}', the kernel's release is '{to.release}'")
    exported = {line.split("\t")[1] for line in (to.tree / "Module.symvers").read_text().splitlines()}
    undefined = {line.split()[-1] for line in to.read(["nm", "-u", str(to.ko)]).splitlines() if " U " in line}
    if missing := sorted(undefined - exported):
        raise Fail(f"the module needs symbols that {to.release} does not export: {' '.join(missing)}")


def need_kernel(release: str, dest: Path) -> None:
    """Refuses to install for a kernel that is not there, where the module would never be loaded. Below a DESTDIR, as a
    package is made, it need not be."""
    every = dest / "lib/modules"
    if dest != Path("/") or (every / release / "modules.order").exists():
        return
    known = " ".join(sorted(path.parent.name for path in every.glob("*/modules.order"))) or "none"
    raise Fail(
        f"kernel {release} is not installed, so its module would never be loaded (installed: {known}).\n"
        f"  Choose one of these with KVER=, or install it: apt-get install linux-image-{release}"
    )


def install(release: str, dest: Path, ko: Path | None) -> None:
    """Puts module, modprobe.d file and hotplug helper where a Debian dom0 looks for them; without KO removes them."""
    dist = TOP / "dist"
    modules = dest / "lib/modules" / release
    files = {
        modules / f"updates/{NAME}.ko": (ko, 0o644),
        dest / f"etc/modprobe.d/{NAME}.conf": (dist / f"{NAME}.conf", 0o644),
        dest / "etc/xen/scripts/block-rs": (dist / "block-rs", 0o755),
    }
    for path, (source, mode) in files.items():
        try:
            if ko and source:
                path.parent.mkdir(parents=True, exist_ok=True)
                new = path.with_name(f".{path.name}.new")  # renamed into place: the helper may be running
                shutil.copyfile(source, new)
                new.chmod(mode)
                new.rename(path)
                say(f"installed {path}")
            else:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                    say(f"removed {path}")
        except OSError as error:
            raise Fail(
                f"cannot {'install' if ko else 'remove'} {path}: {error.strerror}; "
                "run as root, or set DESTDIR to a directory that can be written"
            ) from None
    if (modules / "kernel").exists():
        programs = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        subprocess.run(
            ["depmod", *(["-b", str(dest)] if dest != Path("/") else []), release],
            check=True,
            env=os.environ | {"PATH": programs},
        )
    elif ko:
        say(f"no kernel {release} is installed in {modules}: run `depmod {release}` where it is")
