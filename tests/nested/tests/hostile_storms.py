"""A guest sends events, requests and writes to xenstore as fast as it can: its neighbour keeps its share, and other
disks come and go."""

from lib.attacks import storms
from lib.env import Env
from lib.hostile import each_kind

BACKENDS = ("rs", "loop")
TIMEOUT = 1800
ESTIMATE = 100
ONLY_LONG = True
LONG = 20  # and pvh guests, too


def run(env: Env) -> None:
    each_kind(env, storms)
