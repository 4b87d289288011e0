"""fail-calls.ko, by which a nested test has calls of the module fail: built as that is, for dom0's kernel."""

from __future__ import annotations

import inspect
from pathlib import Path

from . import module
from .common import BUILD, LOGS, TOP, digest, lock, read_json, sources, step, write_json

SOURCE = TOP / "tests/nested/faults"
NAME = "fail-calls"


def build(to: module.Target) -> Path:
    """The module, built if something that it depends on has changed."""
    output = BUILD / NAME / to.release
    ko, stamp, log = output / f"{NAME}.ko", output / ".xb-stamp", f"{NAME}-{to.release}"
    wanted = {
        "key": digest(
            to.key,
            to.cc,
            inspect.getsource(module.kernel_make),
            *(path.read_bytes() for path in sources(SOURCE, ["."])),
        )
    }
    if read_json(stamp) != wanted or not ko.exists():
        with lock(NAME), step(f"{NAME}.ko for {to.release}"):
            output.mkdir(parents=True, exist_ok=True)
            to.run(module.kernel_make(to, SOURCE, output), log)
            module.refuse_warnings(LOGS / f"{log}.log")
            write_json(stamp, wanted)
    return ko
