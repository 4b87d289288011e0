"""A guest connects and disconnects at the wrong moment, with requests in flight and on slow storage, and with rings
that are none."""

from lib.attacks import states
from lib.env import Env
from lib.hostile import each_kind

BACKENDS = ("rs", "loop")
TIMEOUT = 1800
ESTIMATE = 130
ONLY_LONG = True
LONG = 20  # and pvh guests, too


def run(env: Env) -> None:
    each_kind(env, states)
