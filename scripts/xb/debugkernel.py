"""The debug kernel of `make check-debug`: dom0's kernel with its instruments on, from the same source package as KVER.

    build/kernel-debug/RELEASE/tree      the built tree, to build the module against
    build/kernel-debug/RELEASE/vmlinux   the kernel, as Xen takes it
    build/kernel-debug/RELEASE/modules   its /lib/modules/RELEASE

Its configuration and a patch are in scripts/debug-kernel. Made anew only when these, the package or a compiler changes.
"""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path

from . import archive, buildroot, kernel
from .common import BUILD, JOBS, TOP, Fail, digest, lock, read_json, rel, remove, say, step, write_json

KERNELS = BUILD / "kernel-debug"
INPUTS = TOP / "scripts/debug-kernel"
# KASAN and Rust together want clang, of the same LLVM as rustc.
CC = "clang"


def release_of(kver: str) -> str:
    """The release of the debug kernel beside KVER."""
    return f"{kver.removesuffix('-amd64')}-debug"


def ensure(kver: str) -> Path:
    """The directory of the debug kernel beside release KVER. Costs nothing, and needs no network, when it is there
    already."""
    kernel.ensure(kver)
    directory = KERNELS / release_of(kver)
    if not _fresh(directory, kver):
        with lock(directory.name):
            if not _fresh(directory, kver):
                _build(kver, directory)
    return directory


def _fresh(directory: Path, kver: str) -> bool:
    return read_json(directory / "stamp").get("key") == _key(kver)


def _key(kver: str) -> str:
    """Changes with all that the kernel is made from."""
    version = read_json(kernel.directory(kver) / "stamp").get("version", "")
    compiler = buildroot.run([CC, "--version"], capture=True).stdout
    recipe = [inspect.getsource(part) for part in (_build, _install, _make)]
    return digest(
        version, compiler, *buildroot.compilers(), *recipe, *(path.read_bytes() for path in sorted(INPUTS.iterdir()))
    )


def _make(tree: Path, log: str, release: str, *arguments: str) -> None:
    """The kernel's make, at low priority: it takes half an hour."""
    buildroot.run(
        [
            "nice",
            "make",
            f"-j{JOBS}",
            "-C",
            str(tree),
            *kernel.ARGUMENTS,
            f"CC={CC}",
            f"KERNELRELEASE={release}",
            *arguments,
        ],
        log=log,
        append=True,
    )


def _build(kver: str, directory: Path) -> None:
    release, log, key = directory.name, f"kernel-{directory.name}", _key(kver)
    new = KERNELS / f".new-{release}"
    tree = new / "tree"
    begun = new / "key"
    if not begun.exists() or begun.read_text() != key:  # else one that was interrupted goes on
        remove(new)
        with step(f"{release}: downloading and unpacking the source"):
            kernel.unpack_source(archive.find(kver), tree, log)
        with step(f"{release}: patching and configuring"):
            for patch in sorted(INPUTS.glob("*.patch")):
                buildroot.run(
                    ["patch", "-p1", "--no-backup-if-mismatch", "-d", str(tree), "-i", str(patch)], log=log, append=True
                )
            _make(tree, log, release, f"KCONFIG_ALLCONFIG={INPUTS / 'config'}", "allnoconfig")
            _refuse_lost(tree)
        begun.write_text(key)
    with step(f"{release}: building (about 20 min on 2 idle cores)"):
        _make(tree, log, release, "vmlinux", "modules")
    with step(f"{release}: taking kernel and modules out of the tree"):
        _install(new, tree, release, log)
    write_json(new / "stamp", {"key": key})
    remove(directory)
    new.rename(directory)
    say(f"{release}: ready in {rel(directory)}")


def _refuse_lost(tree: Path) -> None:
    """kconfig drops silently what it does not know or what lacks something else; an instrument would be missing."""
    got = set((tree / ".config").read_text().splitlines())
    wanted = re.findall(r"^(?:CONFIG_\w+=\S+|# CONFIG_\w+ is not set)$", (INPUTS / "config").read_text(), re.M)
    if lost := [
        line
        for line in wanted
        if (line.startswith("CONFIG_") and line not in got)
        or (line.startswith("#") and re.search(rf"^{line.split()[1]}=", "\n".join(got), re.M))
    ]:
        raise Fail(f"{rel(INPUTS / 'config')} has what this kernel does not take: {', '.join(lost)}")


def _install(new: Path, tree: Path, release: str, log: str) -> None:
    """Moves the kernel and its modules to their places, and removes what no build of a module reads."""
    _make(tree, log, release, f"INSTALL_MOD_PATH={new}/install", "modules_install")
    modules = new / "install/lib/modules" / release
    (modules / "build").unlink(missing_ok=True)
    remove(new / "modules")
    modules.rename(new / "modules")
    remove(new / "install")
    shutil.copy(tree / "vmlinux", new / "vmlinux")
    for pattern in kernel.UNNEEDED:
        for path in tree.glob(pattern):
            remove(path)
    for name in ("block", "crypto", "drivers", "fs", "init", "ipc", "kernel", "lib", "mm", "net", "security"):
        for path in [path for path in (tree / name).rglob("*") if path.suffix in (".o", ".ko", ".a", ".cmd")]:
            path.unlink()
