"""A guest boots with its root file system on a block device, writes to it, and dom0 finds the change there."""

from lib.env import Env
from tests.root_on_file import boot_from

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 180
ESTIMATE = 20


def run(env: Env) -> None:
    boot_from(env, env.device(64))
