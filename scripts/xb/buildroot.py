"""The build root: a Debian trixie with the kernel's exact tool versions, in build/root, so that any host can build.

Everything runs in it through run(): a private mount and process namespace, so that nothing stays mounted and
nothing stays running, whatever happens to the caller.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .common import BUILD, TOP, Fail, digest, lock, logged, need_root, read_json, remove, step, write_json

MIRROR = os.environ.get("XB_MIRROR") or "http://deb.debian.org/debian"
SUITE = "trixie"
BACKPORTS = f"{SUITE}-backports"
ROOT = BUILD / "root"

# Everything that any part of the project runs inside the build root. A package added here is installed into an
# existing build root by the next make; one removed makes the build root anew.
PACKAGES = (
    # the kernel's tools, in the versions that Debian builds its kernel with
    "rustc rust-src bindgen rustfmt rust-clippy cargo gcc-14 gcc g++ make bc bison flex libelf-dev libssl-dev libdw-dev"
    " pahole rsync xz-utils zstd kmod cpio python3 perl patch git libclang-dev clang pkgconf"
    # headers that the protocol crate's tests compare with, and the crates that they use
    " libxen-dev libc6-dev librust-proptest-dev"
    # the crates of tests/frontend
    " librust-clap-dev librust-libc-dev librust-serde-json-dev"
    # libFuzzer, for tests/fuzz
    " libclang-rt-dev"
    # what looks at the scripts, tests and texts
    " mypy shellcheck codespell"
    # the test system: image tools and the emulator
    " qemu-system-x86 e2fsprogs ca-certificates debian-archive-keyring"
).split()

# The compilers decide whether the Rust symbols come out as in Debian's kernel: kernel trees are keyed on them.
COMPILERS = ("rustc", "rust-src", "bindgen", "gcc-14", "pahole")

HOST_PACKAGES = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux", "chroot": "coreutils"}
HOST_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# Run by unshare(1) as process 1 of its own namespaces. $1 is the root, $2 the directory to start in, then the paths
# to bind one by one, "--", and the command. It is not exec'ed: process 1 would ignore its own fatal signals.
ENTER = r"""
set -e
root=$1 dir=$2; shift 2
bind() { if [ -d "$2" ]; then mkdir -p "$root$2"; else mkdir -p "$root${2%/*}"; : >>"$root$2"; fi
         mount "$1" "$2" "$root$2"; }
mount -t proc proc "$root/proc"
bind --rbind /dev; bind --rbind /sys
while [ "$1" != -- ]; do bind --bind "$1"; shift; done
shift
set +e
chroot "$root" /bin/sh -c 'cd "$1" || exit 125; shift; exec "$@"' sh "$dir" "$@"
exit $?
"""


def sources_list() -> str:
    return f"deb {MIRROR} {SUITE} main\ndeb {MIRROR} {BACKPORTS} main\n"


def ensure() -> None:
    """Makes the build root, or adds newly listed packages to it; does nothing, at no cost, when it is right."""
    stamp = ROOT / ".xb-stamp"
    key = digest(SUITE, *PACKAGES)
    if read_json(stamp).get("key") == key:
        return
    need_root("making the build root")
    with lock("root"):
        have = read_json(stamp)
        if have.get("key") == key:
            return
        missing = sorted(set(PACKAGES) - set(have.get("packages", [])))
        if have.get("suite") == SUITE and set(have["packages"]) <= set(PACKAGES):
            with step(f"build root: adding {' '.join(missing)}"):
                for command in (["apt-get", "update"], ["apt-get", "install", "-y", *missing]):
                    run(command, log="root-install", append=command[1] != "update", env=APT_ENV, ready=False)
        else:
            _create()
        query = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *COMPILERS]
        compilers = run(query, capture=True, ready=False).stdout.split("\n")
        write_json(stamp, {"key": key, "suite": SUITE, "packages": PACKAGES, "compilers": compilers})


def extra(packages: Sequence[str]) -> None:
    """Packages that only few need: into the build root when they are first asked for."""
    ensure()
    missing = [name for name in packages if not (ROOT / f"var/lib/dpkg/info/{name}.list").exists()]
    if missing:
        with lock("root"), step(f"build root: adding {' '.join(missing)}"):
            run(["apt-get", "update"], log="root-extra", env=APT_ENV)
            run(
                ["apt-get", "install", "-y", "--no-install-recommends", *missing],
                log="root-extra",
                append=True,
                env=APT_ENV,
            )


APT_ENV = {"DEBIAN_FRONTEND": "noninteractive"}


def _create() -> None:
    new = BUILD / ".root.new"
    remove(new)
    remove(ROOT)
    BUILD.mkdir(exist_ok=True)
    with step(f"build root: Debian {SUITE} with the kernel's tools (about 1 min, 2.5 GB)"):
        mmdebstrap(f"--include={','.join(PACKAGES)}", SUITE, str(new), *sources_list().splitlines(), log="root-create")
    new.rename(ROOT)


def mmdebstrap(*argv: str, log: str) -> None:
    """Makes a minimal Debian; needs nothing but the host."""
    need_root("making a Debian below build/")
    host_tools()
    logged(["mmdebstrap", "--mode=root", "--variant=apt", *argv], log, env=_clean_env(APT_ENV))


def host_tools() -> None:
    """Installs what the host itself needs: only mmdebstrap and the archive's keys on an ordinary Debian or Ubuntu."""
    if not _missing_on_host():
        return
    with lock("host"):
        missing = _missing_on_host()
        if missing:
            install_on_host(missing)


def _missing_on_host() -> list[str]:
    missing = [package for tool, package in HOST_PACKAGES.items() if not shutil.which(tool)]
    return missing if HOST_KEYRING.exists() else [*missing, "debian-archive-keyring"]


def install_on_host(missing: list[str]) -> None:
    """Packages of the host itself. Call it under a lock."""
    if not shutil.which("apt-get"):
        raise Fail(f"this host lacks {' '.join(missing)} and has no apt-get to install them with; install them by hand")
    with step(f"host: apt-get install {' '.join(missing)}"):
        env = os.environ | APT_ENV
        try:
            logged(["apt-get", "update"], "host-install", env=env)
        except Fail:
            pass  # a third-party archive of the host that is down need not matter: the install tells
        logged(["apt-get", "install", "-y", "--no-install-recommends", *missing], "host-install", append=True, env=env)


def compilers() -> list[str]:
    """The versions of the tools that decide the kernel's Rust symbols."""
    ensure()
    return read_json(ROOT / ".xb-stamp")["compilers"]


def run(
    argv: Sequence[str],
    *,
    cwd: str | Path = TOP,
    env: Mapping[str, str] | None = None,
    binds: Iterable[str | Path] = (),
    log: str | None = None,
    append: bool = False,
    capture: bool = False,
    check: bool = True,
    ready: bool = True,
    lines: int = 25,
    **popen: Any,
) -> subprocess.CompletedProcess[str]:
    """Runs argv inside the build root, with the checkout (and BINDS) at the same path as on the host.

    log=NAME sends the output to build/log/NAME.log; capture=True returns it; else it goes where ours goes.
    check=True raises Fail when the command fails. The environment is a clean one plus ENV, so that nothing of an
    outer make or of the user's shell changes a build.
    """
    if ready:
        ensure()
    need_root("running a command in the build root")
    _refresh_resolv_conf()
    paths = [str(Path(path).resolve()) for path in (TOP, *binds)]
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        ENTER,
        "xb-enter",
        str(ROOT),
        str(cwd),
        *paths,
        "--",
        *argv,
    ]
    popen["env"] = _clean_env(env)
    if log:
        if check:
            logged(command, log, shown=argv, append=append, lines=lines, **popen)
            return subprocess.CompletedProcess(list(argv), 0)
        raise ValueError("log= implies check=True")
    done = subprocess.run(command, text=True, capture_output=capture, **popen)
    if check and done.returncode:
        raise Fail(
            f"{argv[0]} failed in the build root with exit code {done.returncode}"
            + (f":\n{done.stdout}{done.stderr}" if capture else "")
        )
    return done


def _clean_env(env: Mapping[str, str] | None) -> dict[str, str]:
    keep = {name: os.environ[name] for name in ("TERM", "http_proxy", "https_proxy", "no_proxy") if name in os.environ}
    return (
        keep
        | {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            "PYTHONPYCACHEPREFIX": str(BUILD / "pycache"),
        }
        | dict(env or {})
    )


def _refresh_resolv_conf() -> None:
    """The host's name servers may have changed since the build root was made."""
    source, target = Path("/etc/resolv.conf"), ROOT / "etc/resolv.conf"
    if source.exists() and (not target.exists() or source.read_bytes() != target.read_bytes()):
        target.unlink(missing_ok=True)
        target.write_bytes(source.read_bytes())


def update_lists() -> None:
    """apt-get update inside the build root."""
    ensure()
    (ROOT / "etc/apt/sources.list").write_text(sources_list())
    with step(f"archive: reading the package lists of {MIRROR}"):
        run(["apt-get", "update"], log="archive-update")
