"""Requests of every kind, right and wrong, get the answers that the protocol demands, on a file, a device, a disk to read.

Each row of the table in tests/frontend/src/conformance/table.rs is one request. Then random requests are put on the
rings, and what is read is compared with what was written; in every layout of the ring that the backend offers.
"""

from __future__ import annotations

import json

from lib.basics import Failure, check, equal, log, read
from lib.env import Env, md5
from lib.guest import Guest, vdev_number

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 360
ESTIMATE = 90
SIZE = 16 << 20
REQUESTS = 500


def run(env: Env) -> None:
    if env.backend != "qdisk":  # as on a machine with more processors
        env.parameter("max_queues", 4)
    image = env.file("ext4", "disk", SIZE)
    read_only = env.file("ext4", "read-only", SIZE, fill="read only")
    before = md5(read_only)
    disks = {"xvda": env.disk(image, "xvda"), "xvdb": env.disk(env.device(SIZE >> 20), "xvdb")}
    if env.backend != "qdisk":  # qemu 10.0 does not take a file that it may not write
        disks["xvdc"] = env.disk(read_only, "xvdc", access="r")
    guest = env.guest(*disks.values(), frontend=True)
    for vdev in disks:
        for abi in ("native", "x86_32"):
            conformance(guest, vdev, f"--abi {abi}")
    equal(md5(read_only), before, "checksum of the read-only file")

    layouts = offered(guest, "xvda")
    for options in layouts:
        if "--indirect" not in options:  # the table has indirect requests in any case
            conformance(guest, "xvda", options)
    requests = env.count(REQUESTS)
    abis = ["native", "x86_32", "x86_64"]
    if env.backend != "qdisk":  # qemu 10.0 takes a frontend that does not name its layout for one of its own
        abis.append("default")
    for number, options in enumerate([*(f"--abi {abi}" for abi in abis), *layouts]):
        vdev = ("xvda", "xvdb")[number % 2]
        frontend(guest, f"verify --vdev {vdev} --requests {requests} --seed {number + 1} {options}")
    for vdev in ("xvda", "xvdb"):
        report = frontend(guest, f"load --vdev {vdev} --depth 32 --reads 50 --seconds 1")
        check(report["requests"] > 0 and report["errors"] == 0, f"load on {vdev}: {report}")
    if env.backend == "rs":
        statistics = f"/sys/bus/xen-backend/devices/vbd-{guest.domid}-{vdev_number('xvda')}/statistics"
        ways = {way: int(read(f"{statistics}/pages_{way}")) for way in ("mapped", "copied", "persistent")}
        log(f"pages: {ways}")
        check(all(ways.values()), f"not all ways to make a page accessible were used: {ways}")
    guest.shutdown()
    equal(md5(read_only), before, "checksum of the read-only file")


def offered(guest: Guest, vdev: str) -> list[str]:
    """Options for each way of connecting that the backend offers beside the plain one."""
    store, path = guest.env.store, guest.backend(vdev)
    offer = {name: int(store.read(f"{path}/{name}") or 0) for name in
             ("max-ring-page-order", "multi-queue-max-queues", "feature-max-indirect-segments", "feature-persistent")}
    log(f"{vdev}: {offer}")
    order, queues = min(offer["max-ring-page-order"], 4), min(offer["multi-queue-max-queues"], 4)
    found = [f"--abi {abi} --ring-order {order}" for abi in ("native", "x86_32") if order]
    if queues > 1:
        found.append(f"--abi x86_32 --queues {queues}")
        found += [f"--abi native --queues {queues} --ring-order {order} --persistent"] if order else []
    if offer["feature-persistent"]:
        found.append("--abi native --persistent")
    if indirect := min(offer["feature-max-indirect-segments"], 256):
        found += [f"--abi native --indirect {indirect}", "--abi x86_32 --indirect 32"]
    if guest.env.backend != "qdisk":  # qemu counts from 0, whatever the ring says
        found.append(f"--abi native --first-index {(1 << 32) - 40}")
    return found


def conformance(guest: Guest, vdev: str, options: str) -> None:
    """The whole table on one disk."""
    done = guest.run(f"blkif-frontend conformance --backend {guest.env.backend} --vdev {vdev} {options} --json /tmp/report", 120)
    if done.code not in (0, 1):
        raise Failure(f"conformance {vdev} {options}: {done.output.strip()[-1500:]}")
    *rows, summary = done.output.strip().splitlines()
    skipped = sum(row.startswith("skip ") for row in rows)
    log(f"    {summary}")
    failed = [row for row in rows if row.startswith("FAIL ")]
    for row in failed:
        log(f"    {row}")
    check(not failed and done.code == 0, f"conformance {vdev} {options}: {len(failed)} rows failed, the first: {failed[:1]}")
    check(len(rows) - skipped >= 70, f"conformance {vdev} {options}: only {len(rows) - skipped} rows were sent")


def frontend(guest: Guest, options: str) -> dict:
    """Runs the frontend, which must succeed, and returns its report."""
    done = guest.run(f"blkif-frontend {options} --json /tmp/report", 120)
    check(done.code == 0, f"blkif-frontend {options} ended with {done.code}: {done.output.strip()[-1500:]}")
    log(f"    {done.output.strip().splitlines()[0]}")
    return json.loads(guest.sh("cat /tmp/report"))
