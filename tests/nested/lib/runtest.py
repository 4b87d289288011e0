"""Runs one test in a process of its own: runtest.py NAME BACKEND [STATE]. The result goes out as JSON on descriptor 3.

The log is standard output. STATE, JSON, is there in the boot after a power cut: then after_power_cut() is called.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import os
import re
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.basics import PACE, Failure, log, read, run, where_is
from lib.env import Env, PowerCut


def report(kind: str, reason: str = "", **more: object) -> None:
    os.write(3, json.dumps({"result": kind, "reason": reason} | more).encode() + b"\n")


def explain(env: Env) -> None:
    """Prints what may tell why a test failed, while its guests are still there."""
    for guest in env.guests:
        if guest.domid:
            guest.ask_kernel()
            print(f"--- console of {guest.name}\n{guest.tail(100000)}", flush=True)
    for back in env.backends():
        print(f"--- {back}: {env.store.values(back)}", flush=True)
        front = env.store.read(f"{back}/frontend")
        if front:
            print(f"    {front}: {env.store.values(front)}", flush=True)
    for device in Path("/sys/bus/xen-backend/devices").glob("vbd-*"):
        print(
            f"--- {device.name}: driver"
            f" {(device / 'driver').resolve().name if (device / 'driver').exists() else 'none'}",
            flush=True,
        )
    print("--- loaded: " + " ".join(sorted(path.name for path in Path("/sys/module").glob("xen_blkback*"))), flush=True)
    for path in Path("/sys/kernel/debug/xen-blkback-rs").glob("*/state"):
        print(f"--- {path}\n{read(path)}", flush=True)
    for comm in Path("/proc").glob("[0-9]*/comm"):
        # The threads of rings, those of xenbus, and whoever waits for what nothing can interrupt.
        waits = read(comm.parent / "stat").rpartition(")")[2].split()[:1] == ["D"]
        if waits or re.fullmatch(r"\d+-\d+\.\d+|xenwatch|xenbus|xenconsoled", read(comm)):
            print(f"--- {where_is(int(comm.parent.name))}", flush=True)
    print("--- " + run("xl", "list").stdout, flush=True)
    for guest in env.guests:
        # What the toolstack's process of the guest, and its qemu, have said.
        for path in sorted(Path("/var/log/xen").glob(f"*-{guest.name}.log")):
            print(f"--- {path}\n{read(path)[-4000:]}", flush=True)
    run("xl", "debug-keys", "e")
    print("--- " + run("xl", "dmesg").stdout[-8000:], flush=True)


def main() -> None:
    name, backend = sys.argv[1:3]
    path = Path(__file__).resolve().parents[1] / "tests" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    test = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(test)
    timeout = test.TIMEOUT * PACE
    log(f"time limits are stretched {PACE:g} times")
    faulthandler.dump_traceback_later(max(timeout - 5, 5), file=sys.stdout)
    env = Env(backend)
    kind, reason = "ok", ""
    try:
        if len(sys.argv) > 3:
            test.after_power_cut(env, json.loads(sys.argv[3]))
        else:
            test.run(env)
    except PowerCut as cut:
        print("power cut", flush=True)
        report("powercut", state=cut.state)
        sys.stdin.read()  # until the host has killed us
    except Failure as failure:
        kind, reason = "fail", str(failure)
        frames = traceback.extract_tb(failure.__traceback__)
        print("".join(traceback.format_list(frames)), flush=True)
    except Exception as error:  # a bug in the test is a failure, too
        kind, reason = "fail", f"{type(error).__name__}: {error}"
        traceback.print_exc(file=sys.stdout)
    if kind == "fail":
        if os.environ.get("XB_BRIEF"):  # the machine is given up, and nobody wants to know more
            report(kind, reason)
            os._exit(1)
        explain(env)
    elif env.domains():
        kind, reason = "fail", f"the test left domains {sorted(env.domains())} behind"
    env.clean_up()
    problems = env.leftovers()
    env.empty_scratch()
    if problems and kind == "ok":
        kind, reason = "fail", "; ".join(problems)
    report(kind, reason, problems=problems, dmesg=env.kernel_log.lines()[-200:] if kind == "fail" else [])


main()
