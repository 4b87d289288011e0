#!/usr/bin/env python3
"""`make bench`: one boot of Xen and dom0 in which the same loads run on every way to serve a disk.

What is measured, and how, stands in tests/nested/dom0/bench.py. Here: the machine, and what is made of the figures:
    build/bench/MODE.json             each single figure
    Documentation/benchmarks/         table and plot (with --publish)

Two modes. timed: the emulation runs as it can, and figures compare within a boot. exact: its clock counts instructions,
so that two boots agree, but a cache miss or a flushed TLB costs no more than any other instruction.

A spread is half of the distance between the quartiles of the rounds, or of the extremes of three rounds or fewer.
"""

from __future__ import annotations

import argparse
import base64
import bisect
import json
import os
import signal
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

import image  # noqa: E402
from figures import summary  # noqa: E402
from vm import Machine, frontend_files, module_files  # noqa: E402
from xb import buildroot  # noqa: E402
from xb.common import BUILD, TOP, Fail, lock, positive, program, rel, say, write_json  # noqa: E402

OUTPUT = BUILD / "bench"
PUBLISHED = TOP / "Documentation/benchmarks"
SOURCE = Path(__file__).with_name("profile.c")
PLOT = Path(__file__).with_name("plot.py")
MEMORY, DOM0_MEMORY = 3072, 1792
# In the timed mode dom0 and the guest have a processor each, as on a real machine: on a shared one each request costs
# two switches between them, after which the emulator's tables of pages start empty, and hardly anything else is seen.
TIMED: dict[str, Any] = {"cpus": 2, "xen": "dom0_max_vcpus=1 dom0_vcpus_pin"}


def measure(kver: str, mode: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All figures, as they come from dom0."""
    files = [*module_files(kver, "rs"), *frontend_files()]
    profile = Profile() if options.profile else None
    with Machine(
        image.ensure(kver),
        files,
        memory=MEMORY,
        dom0_memory=DOM0_MEMORY,
        exact=mode == "exact",
        clock=mode == "timed",
        more=profile.arguments if profile else None,
        **(TIMED if mode == "timed" else {}),
    ) as machine:
        say(f"{mode}: booting Xen and {kver}")
        machine.boot()
        command = f"cd /opt/xb && exec python3 -u dom0/bench.py --repeat {options.repeat}"
        for name in ("only", "loads"):
            if words := getattr(options, name):
                command += f" --{name} " + " ".join(f"'{word}'" for word in words)
        if mode == "exact":
            command += " --exact"
        if profile:
            command += " --announce"
        figures, status = [], 1
        for message in machine.execute(command, timeout=7200):
            text = message.get("log", "")
            if text.startswith("@R "):
                figure = json.loads(text[3:])
                figures.append(figure)
                print(
                    f"  {figure['setup']:28} {figure['load']:30} {figure['cpu_ns'] / 1000:10.1f} {UNITS[mode]}, "
                    f"{figure['per_second']:8.0f}/s, {figure['latency_us']:8.0f} us",
                    flush=True,
                )
            elif text.startswith("@P ") and profile:
                profile.toggle(machine, json.loads(text[3:]))
            elif text:
                print(f"  {text}", flush=True)
            status = message.get("exit", status)
        if status:
            raise Fail("the bench did not end well; what it said is above")
    return figures


class Profile:
    """Where the instructions go: profile.c counts them in QEMU, between two lines "@P" from dom0."""

    def __init__(self) -> None:
        library = OUTPUT / "profile.so"
        buildroot.run(
            ["gcc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], log="profile"
        )
        self.counts = OUTPUT / "profile.txt"
        self.arguments = ["-plugin", f"file={library},out={self.counts}"]
        self.symbols: list[tuple[int, str]] = []

    def toggle(self, machine: Machine, message: dict[str, Any]) -> None:
        """Starts counting, ends it, or shows what was found."""
        assert machine.process
        if message["at"] in ("start", "end"):
            self.counts.unlink(missing_ok=True)
            os.kill(machine.process.pid, signal.SIGRTMIN + 8)
            return
        lines = [line.split() for line in zlib.decompress(base64.b64decode(message["symbols"])).decode().splitlines()]
        symbols = [(int(line[0], 16), " ".join(line[2:])) for line in lines]
        if message["at"] == "kernel symbols":
            self.symbols = symbols
        elif message["requests"] > 10:
            print(f"  {message['load']}:")
            self.show(message["requests"], sorted(self.symbols + symbols))

    def show(self, requests: int, symbols: list[tuple[int, str]]) -> None:
        addresses = [address for address, _ in symbols]
        kernels: dict[int, Counter[str]] = {}
        rest: Counter[str] = Counter()
        for line in self.counts.read_text().splitlines():
            address, memory, count = (int(word, base) for word, base in zip(line.split(), (16, 16, 10)))
            if address < 1 << 47:
                rest["programs"] += count
            elif address < 0xFFFF_8800_0000_0000:
                rest["Xen"] += count
            else:
                name = symbols[max(bisect.bisect_right(addresses, address) - 1, 0)][1]
                # Each kernel's text is in one piece of memory, each module's page somewhere.
                kernel = (memory - address) >> 24 if address < 0xFFFF_FFFF_A000_0000 else -1
                kernels.setdefault(kernel, Counter())[name] += count
        dom0 = max(
            (counts["gnttab_map_refs"] + counts["notify_remote_via_irq"] / 1e6, key) for key, counts in kernels.items()
        )[1]
        print(
            "  instructions for a request: "
            + ", ".join(f"{name} {count / requests:.0f}" for name, count in rest.items())
        )
        for key, counts in sorted(kernels.items(), key=lambda item: -sum(item[1].values())):
            what = (
                "modules, of all domains"
                if key == -1
                else "dom0's kernel"
                if key == dom0
                else "another kernel or a part of one"
            )
            total = sum(counts.values()) / requests
            if total < 20:
                continue
            print(f"  {what}: {total:.0f}")
            for name, count in counts.most_common(45):
                print(f"      {count / requests:8.1f} {name}")


UNITS = {"timed": "us of dom0", "exact": "1000 instr."}


def table(figures: list[dict[str, Any]], key: str, scale: float, digits: int) -> str:
    """Set-ups against loads: the median over the rounds, and their spread."""
    setups = list(dict.fromkeys(figure["setup"] for figure in sorted(figures, key=lambda figure: figure["place"])))
    loads = list(dict.fromkeys(figure["load"] for figure in figures))
    lines = ["| | " + " | ".join(loads) + " |", "|---" * (len(loads) + 1) + "|"]
    for setup in setups:
        cells = []
        for load in loads:
            values = [figure[key] / scale for figure in figures if figure["setup"] == setup and figure["load"] == load]
            if not values:
                cells.append("")
                continue
            middle, below, above = summary(values)
            cells.append(f"{middle:.{digits}f}" + (f" ±{(below + above) / 2:.{digits}f}" if len(values) > 1 else ""))
        lines.append(f"| {setup} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(kver: str, mode: str, figures: list[dict[str, Any]]) -> str:
    rounds = 1 + max(figure["round"] for figure in figures)
    cost = (
        "Thousands of instructions that dom0 executes for a request"
        if mode == "exact"
        else "Microseconds of dom0's processor time for a request"
    )
    text = (
        f"# {mode.capitalize()}: {kver}, {rounds} rounds in one boot\n\nMade by `make bench`; the median of the rounds,"
        f" ± half of {'the distance between their quartiles' if rounds > 3 else 'their range'}.\n\n##"
        f" {cost}\n\n{table(figures, 'cpu_ns', 1000, 1)}\n"
    )
    text += f"\n## Mean latency in microseconds\n\n{table(figures, 'latency_us', 1, 0)}\n"
    return text + f"\n## Requests per second\n\n{table(figures, 'per_second', 1, 0)}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kver", required=True, help="kernel release of dom0 and guests")
    parser.add_argument("--mode", choices=("timed", "exact", "both"), default="both")
    parser.add_argument("--repeat", type=positive, default=3, help="rounds in the boot (default 3)")
    parser.add_argument("--only", nargs="*", default=[], metavar="TEXT", help="only set-ups whose name contains this")
    parser.add_argument("--loads", nargs="*", default=[], metavar="TEXT", help="only loads whose name contains this")
    parser.add_argument("--profile", action="store_true", help="count each function's instructions; for --mode exact")
    parser.add_argument("--publish", action="store_true", help=f"write {rel(PUBLISHED)}, too")
    options = parser.parse_args()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for mode in ("timed", "exact") if options.mode == "both" else (options.mode,):
        with lock("nested tests"):  # whatever else runs would be measured, too
            figures = measure(options.kver, mode, options)
        if not figures:
            raise Fail("nothing was measured: --only and --loads name no set-up or load")
        results = OUTPUT / f"{mode}.json"
        write_json(results, {"kver": options.kver, "mode": mode, "figures": figures})
        text = report(options.kver, mode, figures)
        (OUTPUT / f"{mode}.md").write_text(text)
        print(f"\n{text}", flush=True)
        if options.publish:
            PUBLISHED.mkdir(parents=True, exist_ok=True)
            (PUBLISHED / f"{mode}.md").write_text(text)
            write_json(PUBLISHED / f"{mode}.json", {"kver": options.kver, "mode": mode, "figures": figures})
        plot(results, (PUBLISHED if options.publish else OUTPUT) / f"{mode}.svg")
    return 0


def plot(results: Path, target: Path) -> None:
    buildroot.extra(["python3-matplotlib"])
    buildroot.run(["python3", str(PLOT), str(results), str(target)], log="bench-plot")
    say(f"plot: {rel(target)}")


if __name__ == "__main__":
    program(main)
