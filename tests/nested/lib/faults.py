"""Calls of the module that fail: the controls of fail-calls.ko, which tests/nested/faults has the source of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .basics import read, sh
from .env import Env

PARAMETERS = Path("/sys/module/fail_calls/parameters")
FAILED = re.compile(r"fail_calls: (\S+) called by (\S+)")


class Faults:
    """Watches the calls of the module, which is loaded anew for it, until the test ends."""

    def __init__(self, env: Env) -> None:
        self.env = env
        sh(f"! [ -e /sys/module/{env.driver} ] || rmmod {env.driver}; modprobe fail-calls; modprobe {env.driver}")
        env.at_end("rmmod fail-calls")
        env.at_end(f"rmmod {env.driver}")
        self.names = list(self.counts())

    @staticmethod
    def counts() -> dict[str, tuple[int, int]]:
        """By function, how often it was called and how often that failed."""
        rows = (line.split() for line in read(PARAMETERS / "counts").splitlines())
        return {name: (int(calls), int(failures)) for name, calls, failures in rows}

    def calls(self) -> dict[str, int]:
        return {name: calls for name, (calls, _) in self.counts().items()}

    def failures(self) -> dict[str, int]:
        return {name: failures for name, (_, failures) in self.counts().items()}

    def _set(self, names: Iterable[str] = (), **values: int) -> None:
        # Nothing fails while they change.
        self._write("mask", 0)
        for name, value in values.items():
            self._write(name, value)
        self._write("mask", sum(1 << self.names.index(name) for name in names))

    @staticmethod
    def _write(name: str, value: int) -> None:
        (PARAMETERS / name).write_text(str(value))

    @contextmanager
    def one(self, names: Iterable[str], nth: int) -> Iterator[list[str]]:
        """The call NTH from now of these functions fails, 1 being the next. Afterwards the list has what failed, and
        who called it, if there were so many."""
        found: list[str] = []
        since = len(self.env.kernel_log.lines())
        self._set(names, permille=0, nth=nth)
        try:
            yield found
        finally:
            self._set(nth=0)
            found += [
                " < ".join(match.groups())
                for line in self.env.kernel_log.lines()[since:]
                if (match := FAILED.search(line))
            ]

    @contextmanager
    def some(self, names: Iterable[str], permille: int, seed: int = 1) -> Iterator[None]:
        """So many of a thousand calls of these functions fail."""
        self._set(names, permille=permille, nth=0, seed=seed)
        try:
            yield
        finally:
            self._set(permille=0)
