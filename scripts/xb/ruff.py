"""ruff, which formats the project's Python and looks for faults in it: the version of scripts/requirements.txt, in
build/ruff. ruff.toml says what it wants."""

from __future__ import annotations

import shutil

from . import buildroot
from .common import BUILD, TOP, digest, lock, logged, read_json, remove, step, write_json

REQUIREMENTS = TOP / "scripts/requirements.txt"
DIRECTORY = BUILD / "ruff"


def run(*argv: str) -> None:
    """Runs ruff over the checkout. Raises Fail with what it finds."""
    _ensure()
    buildroot.run([str(DIRECTORY / "bin/ruff"), *argv], log=f"ruff-{argv[0]}")


def _ensure() -> None:
    stamp = DIRECTORY / ".xb-stamp"
    key = digest(REQUIREMENTS.read_bytes())
    if read_json(stamp).get("key") == key:
        return
    with lock("ruff"):
        if not shutil.which("pip3"):
            buildroot.install_on_host(["python3-pip"])
        with step("ruff, from PyPI"):
            remove(DIRECTORY)
            where = ["--target", str(DIRECTORY), "--requirement", str(REQUIREMENTS)]
            # pip of the host, which may have been told how PyPI is reached from there.
            logged(["pip3", "install", "--no-deps", "--require-hashes", "--only-binary=:all:", *where], "ruff-install")
            write_json(stamp, {"key": key})
