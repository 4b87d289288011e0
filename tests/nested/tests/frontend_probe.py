"""The ring-level frontend connects, reads a block and disconnects, several times on one disk."""

from lib.env import Env

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 120
ESTIMATE = 20


def run(env: Env) -> None:
    guest = env.guest(env.disk(env.file("ext4", "disk", 16 << 20)), frontend=True)
    for abi in ("native", "x86_32", "x86_64", "default"):
        guest.sh(f"blkif-frontend probe --abi {abi}")
    guest.shutdown()
