"""Draws the results of `make bench` (first argument) as bars: what a request costs dom0, a panel for each load.

Runs in the build root, where matplotlib is.
"""

from __future__ import annotations

import json
import sys

import matplotlib

from figures import summary

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "xen-blkback-rs"  # the same figures give the same file
import matplotlib.pyplot as plt  # noqa: E402

OURS, OTHERS = "#2a7f62", "#9aa5b1"


def main() -> None:
    with open(sys.argv[1]) as file:
        results = json.load(file)
    figures = results["figures"]
    setups = list(dict.fromkeys(f["setup"] for f in sorted(figures, key=lambda f: f["place"])))
    loads = list(dict.fromkeys(f["load"] for f in figures))
    columns = min(4, len(loads))
    rows = -(-len(loads) // columns)
    picture, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 0.32 * rows * len(setups) + rows), squeeze=False, sharey=True
    )
    for axis in axes.flat[len(loads) :]:
        axis.set_visible(False)
    for axis, load in zip(axes.flat, loads):
        values = [[f["cpu_ns"] / 1000 for f in figures if (f["setup"], f["load"]) == (setup, load)] for setup in setups]
        middle, below, above = zip(*(summary(v or [0]) for v in values))
        axis.barh(
            setups,
            middle,
            xerr=[below, above],
            color=[OURS if s.startswith("rs") else OTHERS for s in setups],
            ecolor="#444444",
        )
        axis.set_title(load, fontsize=9)
        axis.tick_params(labelsize=8)
    axes.flat[0].invert_yaxis()
    unit = "thousands of instructions" if results["mode"] == "exact" else "microseconds of processor time"
    picture.suptitle(f"What a request costs dom0: {unit} ({results['mode']}, {results['kver']})", fontsize=11)
    picture.tight_layout()
    picture.savefig(sys.argv[2], metadata={"Date": None})


main()
