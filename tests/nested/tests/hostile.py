"""A guest attacks the backend in every way known: its neighbour's data are right, and dom0 has what it had.

A short form of hostile_rings, hostile_storms, hostile_states and hostile_deaths, all in one scene."""

from lib.attacks import deaths, rings, states, storms
from lib.env import Env
from lib.hostile import each_kind

BACKENDS = ("rs", "loop")
TIMEOUT = 900
ESTIMATE = 200
LONG = 1


def run(env: Env) -> None:
    each_kind(env, rings, storms, states, deaths)
