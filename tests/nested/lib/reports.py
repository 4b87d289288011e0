"""What the kernel's instruments report, and which of that is the kernel's own: KNOWN is the one list of it.

A report that is not in the list fails the test in which it appears, and `make check-debug`, whoever is to blame.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

KMEMLEAK = "/sys/kernel/debug/kmemleak"


@dataclass(frozen=True)
class Known:
    """A report that says nothing about the module: its first line and its text match."""

    name: str
    first: str
    text: str
    reason: str


KNOWN = (
    Known(
        "in-tree driver's work on the stack",
        r"WARNING: .*debug_?object",
        r"gnttab_unmap_refs_sync",
        "gnttab_unmap_refs_sync() has its delayed work on the stack and does not say so to the kernel; xen-blkback"
        " calls it when it disconnects, this module never does",
    ),
    Known(
        "event channel from preemptible code",
        r"BUG: using (?:__this_cpu_\w+|smp_processor_id)\(\) in preemptible",
        r"xen_irq_lateeoi",
        "xen_irq_lateeoi() looks at the number of its processor and takes no harm from being moved; every late-EOI user"
        " calls it so",
    ),
    Known(
        "lazy MMU mode of a new task",
        r"WARNING: .*xen_(?:start|end)_context_switch",
        r"Comm: swapper",
        "a task that is switched to for the first time has its lazy MMU mode resumed, though nobody has paused it"
        " (DEBUG_VM says so at most twice, when dom0's kernel boots)",
    ),
)
# What has leaked and is the kernel's own: the pattern of an entry of kmemleak's, and why.
KNOWN_LEAKS = {
    r"/local/domain/\d.*device/vbd/.*xenbus_thread\+": (
        "xenbus_dev_probe() reads the path of the other end, and when the driver's "
        "probe has failed nobody frees it but the next probe (faults has probes fail)"
    ),
}

# The first line of a report. What belongs to one need not match.
FIRST = re.compile(
    r"\bWARNING:|(?-i:\bBUG\b)|\bOops\b|blocked for more than|general protection fault|Unable to handle|kernel panic|"
    r"refcount_t|list_(?:add|del) corruption|rust_kernel.*panic|trying to register non-static key|"
    r"lockdep is turned off",
    re.IGNORECASE,
)
LAST = re.compile(r"---\[ end trace")
LOCKDEP_OFF = "lockdep is turned off"  # a line of many reports, and bad in itself
STACK_BEGINS, STACK_ENDS = "Call Trace", "</TASK>"
LINES = 250  # that a report has at most; lockdep's are the longest


def debug_kernel() -> bool:
    """Whether dom0 runs the debug kernel: memory is held back there, and everything takes longer."""
    return os.path.exists(KMEMLEAK)


def begins(line: str) -> bool:
    """Whether it is the first line of a report, within another one, too."""
    return bool(FIRST.search(line)) and LOCKDEP_OFF not in line


def split(lines: list[str]) -> dict[int, list[str]]:
    """The reports among the kernel's messages, by the number of their first line. The next one ends a report at
    latest, but not before its stack: two processors may report at a time, and print their stacks one after the
    other."""
    found: dict[int, list[str]] = {}
    first = None
    for number, line in enumerate(lines):
        if first is None:
            another = bool(FIRST.search(line))
        else:
            another = begins(line) and any(STACK_BEGINS in before for before in found[first])
        if another:
            first = number
            found[first] = []
        if first is not None:
            found[first].append(line)
            if LAST.search(line) or len(found[first]) == LINES:
                first = None
    return found


def parts(report: list[str]) -> list[list[str]]:
    """A report to the end of its stack; what follows may be something else. Of several that came at a time as many
    stacks, each with what comes before it."""
    begin = next((number for number, line in enumerate(report) if STACK_BEGINS in line), len(report))
    wanted = max(1, sum(map(begins, report[:begin])))
    found: list[list[str]] = [[]]
    for line in report:
        found[-1].append(line)
        if STACK_ENDS in line:
            if len(found) == wanted:
                break
            found.append([])
    return found


def known(report: list[str]) -> Known | None:
    """Why a report is none of ours."""
    stacks = parts(report)
    texts = ["\n".join(line for line in stack if "Modules linked in" not in line) for stack in stacks]
    first = [report[0], *filter(begins, stacks[0])]
    for each in KNOWN:
        if all(re.search(each.first, line) for line in first) and all(re.search(each.text, text) for text in texts):
            return each
    return None


def known_heads(lines: list[str]) -> list[tuple[int, list[str]]]:
    """Where a known report begins, and its head."""
    return [
        (first, [line for part in parts(report) for line in part])
        for first, report in split(lines).items()
        if known(report)
    ]


def excused(lines: list[str]) -> set[int]:
    """By number, of the messages of known reports those that would fail a test. Others may come between them."""
    return {
        first + number
        for first, said in known_heads(lines)
        for number, line in enumerate(said)
        if begins(line) or STACK_BEGINS in line
    }


def without_known(lines: list[str]) -> list[str]:
    """The messages but for those of known reports, of which each has dozens."""
    left_out = {first + number for first, said in known_heads(lines) for number in range(len(said) + 1)}
    return [line for number, line in enumerate(lines) if number not in left_out]


def leaks() -> list[str]:
    """What nothing refers to any more and nobody has freed, as kmemleak has found it."""
    with open(KMEMLEAK) as file:
        text = file.read()
    return [
        entry
        for entry in re.split(r"\n(?=unreferenced object)", text)
        if entry and not any(re.search(pattern, entry, re.S) for pattern in KNOWN_LEAKS)
    ]
