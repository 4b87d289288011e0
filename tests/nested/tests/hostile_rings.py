"""A guest fills rings, segments and grants with what may hurt: only its own requests fail, its neighbour's data are
right."""

from lib.attacks import rings
from lib.env import Env
from lib.hostile import each_kind

BACKENDS = ("rs", "loop")
TIMEOUT = 1800
ESTIMATE = 90
ONLY_LONG = True
LONG = 20  # and pvh guests, too


def run(env: Env) -> None:
    each_kind(env, rings)
