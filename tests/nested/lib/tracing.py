"""Trace events of the kernel, and of the module in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .basics import sh

TRACING = Path("/sys/kernel/tracing")
OURS = "xen_blkback_rs"


def mount() -> None:
    sh(f"mountpoint -q {TRACING} || mount -t tracefs tracefs {TRACING}")


class Trace:
    """What has been recorded, when that is over."""

    text = ""


@contextmanager
def traced(*events: str) -> Iterator[Trace]:
    """Records these events, or groups of them, meanwhile."""
    mount()
    switch = "; ".join(f"echo {{0}} >{TRACING}/events/{event}/enable" for event in events)
    sh(f"echo >{TRACING}/trace; {switch.format(1)}")
    trace = Trace()
    try:
        yield trace
    finally:
        sh(switch.format(0))
        trace.text = (TRACING / "trace").read_text()
        (TRACING / "trace").write_text("\n")
