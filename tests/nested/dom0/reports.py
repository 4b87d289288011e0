"""Runs in dom0 on the debug kernel: reports.py start | end

start: fails when an instrument is not there, and has kmemleak forget what the boot has left behind. end:   prints on
its last line, as JSON, which instruments have given up ("instruments"), what the kernel has reported since its boot
       ("known": how often by name, "reports": all others) and what nobody has freed ("leaks").
"""

from __future__ import annotations

import collections
import json
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib import reports
from lib.basics import read

KMEMLEAK = Path(reports.KMEMLEAK)
AGE = 6  # seconds; kmemleak says nothing of what is younger than five
INITIALIZED = "KernelAddressSanitizer initialized"


def messages() -> list[str]:
    return subprocess.run(["dmesg"], text=True, capture_output=True, errors="replace", check=True).stdout.splitlines()


def off() -> list[str]:
    """The instruments that do not work."""
    found = []
    if not re.search(r"debug_locks: +1\n", read("/proc/lockdep_stats") + "\n"):
        found.append("lockdep: it ends at its first report")
    if any("ODEBUG disabled" in line for line in messages()):
        found.append("DEBUG_OBJECTS: no memory")
    try:
        KMEMLEAK.write_text("scan")
    except OSError as error:
        found.append(f"kmemleak: {error.strerror}")
    return found


def start() -> int:
    missing = off()
    if not any(INITIALIZED in line for line in messages()):
        missing.append("KASAN")
    for instrument in missing:
        print(f"not working: {instrument}")
    if not missing:
        KMEMLEAK.write_text("clear")
    return len(missing)


def end() -> int:
    gave_up = off()
    # What changes between two looks is in use. The second one has to see everything old enough.
    time.sleep(AGE)
    if not any("kmemleak" in instrument for instrument in gave_up):
        for _ in range(2):
            KMEMLEAK.write_text("scan")
    times: collections.Counter[str] = collections.Counter()
    others = []
    for report in reports.split(messages()).values():
        if why := reports.known(report):
            times[why.name] += 1
        else:
            others.append("\n".join(report[:80]))
    print(json.dumps({"instruments": gave_up, "known": times, "reports": others, "leaks": reports.leaks()}))
    return 0


sys.exit({"start": start, "end": end}[sys.argv[1]]())
