"""A PVH guest, whose frontend runs in a hardware virtual machine, boots from a file and from a device."""

from lib.env import Env
from tests.root_on_file import boot_from

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 200
ESTIMATE = 35


def run(env: Env) -> None:
    for target in (env.file("ext4", "root", 64 << 20), env.device(64)):
        boot_from(env, target, kind="pvh", memory=128)
