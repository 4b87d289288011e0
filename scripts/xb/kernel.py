"""Kernel trees: makes build/kernel/KVER from Debian's packages, with the Rust metadata that Debian does not ship.

    build/kernel/KVER/tree      prepared source tree to build modules against
    build/kernel/KVER/vmlinuz   the unmodified kernel
    build/kernel/KVER/modules   its /lib/modules/KVER, with modules.dep

The metadata is rebuilt from the source package with the packaged configuration. That it is the packaged kernel's own
is proven by its exported Rust symbols: they contain hashes over each crate, and all must equal the packaged ones.
"""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path

from . import archive, buildroot
from .common import BUILD, JOBS, Fail, digest, lock, read_json, rel, remove, say, step, write_json

KERNELS = BUILD / "kernel"

ARGUMENTS = ["ARCH=x86", "CROSS_COMPILE=x86_64-linux-gnu-"]
CC = "x86_64-linux-gnu-gcc-14"

# Parts of the source that no module build reads, removed once the tree is prepared: two thirds of its 2 GB.
UNNEEDED = (
    "Documentation/[a-z]*",
    "drivers/gpu",
    "drivers/net",
    "drivers/media",
    "drivers/staging",
    "drivers/scsi",
    "drivers/usb",
    "drivers/infiniband",
    "drivers/accel",
    "sound",
    "tools/testing",
    "tools/perf",
    "samples",
    "arch/x86/kvm",
    "fs/smb",
    "fs/xfs",
    "fs/btrfs",
)


def directory(kver: str) -> Path:
    return KERNELS / kver


def ensure(kver: str) -> Path:
    """The prepared tree of release KVER. Costs nothing, and needs no network, when it is there already."""
    if not re.fullmatch(r"[\w.+~-]+", kver):
        raise Fail(f"{kver!r} is no kernel release; `scripts/xb.py list` shows those that exist")
    stamp = directory(kver) / "stamp"
    if _fresh(stamp):
        return directory(kver) / "tree"
    with lock(f"kernel-{kver}"):
        if not _fresh(stamp):
            release = archive.find(kver)
            try:
                _prepare(release)
            except _Gone:
                say("a package is no longer in the archive; reading the lists anew")
                archive.refresh()
                _prepare(archive.find(kver))
    return directory(kver) / "tree"


def key(kver: str) -> str:
    """Identifies the prepared tree of KVER, so that what was built against another one is built anew."""
    return read_json(directory(kver) / "stamp").get("key", "")


class _Gone(Fail):
    """A package that the lists name cannot be downloaded."""


def _key() -> str:
    recipe = [inspect.getsource(part) for part in (_prepare, _take_image, _download, verify_rust_symbols, kmake)]
    return digest(*recipe, *ARGUMENTS, CC, *UNNEEDED, *buildroot.compilers())


def _fresh(stamp: Path) -> bool:
    return read_json(stamp).get("key") == _key()


def kmake(
    tree: Path, log: str, release: str, *arguments: str, append: bool = True, cc: str = CC, binds: tuple[Path, ...] = ()
) -> None:
    """Runs the kernel's make inside the build root."""
    buildroot.run(
        ["make", f"-j{JOBS}", "-C", str(tree), *ARGUMENTS, f"CC={cc}", f"KERNELRELEASE={release}", *arguments],
        log=log,
        append=append,
        binds=binds,
    )


def _prepare(release: archive.Release) -> None:
    kver, log = release.kver, f"kernel-{release.kver}"
    new = KERNELS / f".new-{kver}"
    remove(new)
    debs, unpacked, tree = new / "debs", new / "unpacked", new / "tree"
    tree.mkdir(parents=True)

    with step(f"{kver}: downloading {release.headers}"):
        _download([release.headers], debs, unpacked, log, append=False)
    headers = unpacked / "usr/src" / f"linux-headers-{kver}"
    config = (headers / ".config").read_text()
    if "\nCONFIG_RUST=y" not in config:
        remove(new)
        raise Fail(
            f"kernel {kver} was built without CONFIG_RUST: no Rust module can be built for it.\n"
            "  `scripts/xb.py list` shows the others."
        )
    with step(f"{kver}: downloading {release.source} and the kernel image"):
        _download([release.source, *release.image], debs, unpacked, log)
    with step(f"{kver}: unpacking"):
        archives = list((unpacked / "usr/src").glob("linux-source-*.tar.xz"))
        buildroot.run(
            ["tar", "-xf", str(archives[0]), "-I", "xz -T0", "-C", str(tree), "--strip-components=1"],
            log=log,
            append=True,
        )
    with step(f"{kver}: taking kernel and modules out of the packages"):
        _take_image(unpacked, new, kver, log)
    with step(f"{kver}: preparing the tree and its Rust metadata (about 1 min on 2 cores)"):
        shutil.copy(headers / ".config", tree)
        kmake(tree, log, kver, "olddefconfig")
        kmake(tree, log, kver, "prepare")
    with step(f"{kver}: comparing the Rust symbols with the packaged kernel's"):
        count = verify_rust_symbols(tree, headers / "Module.symvers", kver)
    with step(f"{kver}: making it ready for modules"):
        shutil.copy(headers / "Module.symvers", tree)
        shutil.copy(headers / "vmlinux", tree)  # for BTF
        kmake(tree, log, kver, "modules_prepare")
        for pattern in UNNEEDED:
            for path in tree.glob(pattern):
                remove(path)
        remove(debs)
        remove(unpacked)
    write_json(new / "stamp", {"key": _key(), "version": release.version, "rust_symbols": count})
    remove(directory(kver))
    new.rename(directory(kver))
    say(f"{kver}: ready in {rel(directory(kver))}; all {count} exported Rust symbols equal the packaged kernel's")


def _take_image(unpacked: Path, new: Path, kver: str, log: str) -> None:
    """Moves the kernel and its modules to their places, with the modules.dep that Debian makes on installation."""
    # Newer packages keep the kernel beside the modules, older ones in /boot; either may still use /lib.
    modules = [path for path in (unpacked / "usr/lib/modules" / kver, unpacked / "lib/modules" / kver) if path.is_dir()]
    image = [
        path for path in (unpacked / f"boot/vmlinuz-{kver}", *(path / "vmlinuz" for path in modules)) if path.exists()
    ]
    if not image or not modules or not (modules[0] / "kernel").is_dir():
        raise Fail(
            f"the packages of {kver} hold no kernel or no modules where they are known to be; see {rel(unpacked)}"
        )
    shutil.move(image[0], new / "vmlinuz")
    for dangling in ("build", "source"):
        (modules[0] / dangling).unlink(missing_ok=True)
    lib = new / "lib/modules"
    lib.mkdir(parents=True)
    shutil.move(modules[0], lib / kver)
    buildroot.run(["depmod", "-b", str(new), kver], log=log, append=True)
    (lib / kver).rename(new / "modules")
    remove(new / "lib")


def _download(packages: list[str], debs: Path, unpacked: Path, log: str, *, append: bool = True) -> None:
    """Downloads PACKAGES (apt checks their signatures and sums) and unpacks them."""
    debs.mkdir(exist_ok=True)
    unpacked.mkdir(exist_ok=True)
    try:
        buildroot.run(
            ["apt-get", "-o", "APT::Sandbox::User=root", "download", *packages], cwd=debs, log=log, append=append
        )
    except Fail as error:
        raise _Gone(str(error)) from None
    for deb in debs.glob("*.deb"):
        buildroot.run(["dpkg-deb", "-x", str(deb), str(unpacked)], log=log, append=True)
        deb.unlink()


def unpack_source(release: archive.Release, tree: Path, log: str) -> None:
    """Puts the whole source of RELEASE into TREE, as Debian has patched it."""
    tree.mkdir(parents=True)
    debs, unpacked = tree.with_name("debs"), tree.with_name("unpacked")
    try:
        _download([release.source], debs, unpacked, log, append=False)
    except _Gone:
        archive.refresh()
        _download([archive.find(release.kver).source], debs, unpacked, log)
    found = next((unpacked / "usr/src").glob("linux-source-*.tar.xz"))
    buildroot.run(
        ["tar", "-xf", str(found), "-I", "xz -T0", "-C", str(tree), "--strip-components=1"], log=log, append=True
    )
    remove(debs)
    remove(unpacked)


def verify_rust_symbols(tree: Path, symvers: Path, kver: str) -> int:
    """Compares what the rebuilt rust/ exports with what the packaged kernel exports; returns how many there are."""
    rebuilt = {
        name
        for path in tree.glob("rust/exports_*_generated.h")
        for name in re.findall(r"\((_R\w+|rust_helper_\w+)\);", path.read_text())
    }
    packaged = {line.split("\t")[1] for line in symvers.read_text().splitlines()}
    packaged = {name for name in packaged if name.startswith(("_R", "rust_helper_"))}
    if rebuilt == packaged and any(name.startswith("_R") for name in rebuilt):
        return sum(name.startswith("_R") for name in rebuilt)

    def some(names: set[str]) -> str:
        return "\n".join(f"      {name}" for name in sorted(names)[:4]) + ("\n      ..." if len(names) > 4 else "")

    built_by = re.findall(r'CONFIG_(?:RUSTC|BINDGEN|CC)_VERSION_TEXT="(.*)"', (tree / ".config").read_text())
    raise Fail(
        f"the rebuilt Rust metadata of {kver} is not the packaged kernel's: a module would not load.\n"
        f"    only in the packaged kernel ({len(packaged - rebuilt)}):\n{some(packaged - rebuilt)}\n"
        f"    only in the rebuilt tree ({len(rebuilt - packaged)}):\n{some(rebuilt - packaged)}\n"
        f"  This build root has {'; '.join(built_by)}.\n"
        "  The kernel was most likely built by other versions. Try `make distclean` and again (newer tools may be\n"
        "  in the archive), or another KVER (`scripts/xb.py list`)."
    )
