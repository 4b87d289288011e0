"""Requests of every kind get the answer that the protocol demands, in both layouts, on a file and on a device."""

from __future__ import annotations

from lib.basics import check, log
from lib.env import Env
from lib.guest import Guest

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 300
ESTIMATE = 60


def run(env: Env) -> None:
    image = env.file("ext4", "disk", 16 << 20)
    read_only = env.file("ext4", "read-only", 16 << 20, fill="read only")
    guest = env.guest(env.disk(image, "xvda"), env.disk(env.device(16), "xvdb"), env.disk(read_only, "xvdc", access="r"),
                      frontend=True)
    for vdev in ("xvda", "xvdb", "xvdc"):
        for abi in ("native", "x86_32"):
            conformance(guest, f"--vdev {vdev} --abi {abi}")
    guest.shutdown()


def conformance(guest: Guest, options: str) -> None:
    done = guest.run(f"blkif-frontend conformance --backend {guest.env.backend} {options}", timeout=120)
    for line in done.output.splitlines():
        if not line.startswith("ok "):
            log(f"    {line}")
