"""A guest loses its disks by a state that is none, or dies, while its rings are full and storage is slow: nothing is
left of it."""

from lib.attacks import deaths
from lib.env import Env
from lib.hostile import each_kind

BACKENDS = ("rs", "loop")
TIMEOUT = 1800
ESTIMATE = 60
ONLY_LONG = True
LONG = 20  # and pvh guests, too


def run(env: Env) -> None:
    each_kind(env, deaths)
