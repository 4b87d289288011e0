"""The ring-level frontend of tests/frontend: builds the program that test guests run, static, in the build root."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

from . import buildroot
from .common import BUILD, TOP, digest, lock, read_json, sources, step, write_json

SOURCE = TOP / "tests/frontend"
INPUTS = ("tests/frontend", "blkback/blkif")
TARGET = "x86_64-unknown-linux-gnu"
# As deep below the checkout as SOURCE, so that the path of the protocol crate in Cargo.toml means the same.
CRATE = BUILD / "cargo-frontend"
OUTPUT = BUILD / "cargo-target"
BINARY = OUTPUT / TARGET / "debug/blkif-frontend"
DEBIAN_CRATES = """\
[source.crates-io]
replace-with = "debian"
[source.debian]
directory = "/usr/share/cargo/registry"
"""


def prepare(source: Path, crate: Path, *, static: bool = False) -> dict[str, str]:
    """Makes CRATE a directory in which cargo builds SOURCE with Debian's crates; returns the environment for cargo.

    Crates come from Debian's packages, not from crates.io: what is built needs no network but the package archive.
    Their versions are not those of a Cargo.lock, and cargo would write its own beside Cargo.toml: hence the links.
    """
    home = BUILD / "cargo-home"
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text(DEBIAN_CRATES)
    crate.mkdir(exist_ok=True)
    for link in crate.iterdir():
        if link.is_symlink():
            link.unlink()
    for entry in source.iterdir():
        if entry.name not in ("Cargo.lock", "target"):
            (crate / entry.name).symlink_to(entry)
    return {
        "CARGO_HOME": str(home),
        "CARGO_TARGET_DIR": str(OUTPUT),
        "CARGO_TERM_COLOR": "never",
        "RUSTFLAGS": "-Dwarnings" + (" -Ctarget-feature=+crt-static" if static else ""),
    }


def cargo(command: str, *argv: str, log: str) -> None:
    """Runs cargo on the frontend. The target is named so that crt-static is not for build scripts and macros, too."""
    env = prepare(SOURCE, CRATE, static=True)
    buildroot.run(["cargo", command, "--offline", "--target", TARGET, *argv], cwd=CRATE, env=env, log=log)


def key() -> str:
    """Changes with anything that the program is built from."""
    parts: Sequence[str | bytes] = [
        part for path in sources(TOP, INPUTS) for part in (str(path.relative_to(TOP)), path.read_bytes())
    ]
    return digest(inspect.getsource(prepare), inspect.getsource(cargo), "\n".join(buildroot.compilers()), *parts)


def build() -> Path:
    """The program, built if something that it depends on has changed."""
    stamp = CRATE / ".xb-stamp"
    wanted = {"key": key()}
    if read_json(stamp) != wanted or not BINARY.exists():
        with lock("frontend"), step("the ring-level frontend for test guests"):
            cargo("build", log="frontend")
            write_json(stamp, wanted)
    return BINARY
