"""What `make bench` measures, inside dom0: the same loads on every way to serve a disk, one after the other.

Prints a line "@R {json}" for each load on each set-up. What a request costs is what all of dom0 used meanwhile
(interrupts and helpers included), less what starting and ending the load costs without requests. What a write leaves in
dom0's page cache is written back before the account is closed."""

from __future__ import annotations

import argparse
import base64
import ctypes
import glob
import json
import os
import random
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.basics import Failure, check, sh, silence, wait_for
from lib.env import Env
from lib.guest import Guest, vdev_number
from lib.port import port

MOUNT = Path("/mnt/bench")
FILE = MOUNT / "disk"
SIZE = 192  # MiB of each disk
FIO = (
    "fio --name=b --filename={target} --rw={rw} --bs={bs} --iodepth={depth} --number_ios={count} --size={size}m"
    " --direct=1 --ioengine=libaio --norandommap --randrepeat=1 --thread --minimal --terse-version=3"
)
# Places in fio's terse output, version 3 (fio(1), TERSE OUTPUT): runtime, and mean completion latency.
FIO_RUNTIME, FIO_LATENCY, FIO_WRITE = 8, 15, 41


@dataclass(frozen=True)
class Load:
    name: str
    rw: str
    bs: str
    depth: int
    count: int  # of requests


LOADS = (
    Load("4k read q1", "randread", "4k", 1, 2000),
    Load("4k read q32", "randread", "4k", 32, 2000),
    Load("4k write q1", "randwrite", "4k", 1, 2000),
    Load("4k write q32", "randwrite", "4k", 32, 2000),
    Load("64k read q32", "randread", "64k", 32, 1000),
    Load("1M read q8", "read", "1m", 8, 140),
    Load("1M write q8", "write", "1m", 8, 140),
)
NO_LOAD = Load("none", "randread", "4k", 1, 0)


@dataclass(frozen=True)
class RingLoad:
    """A load of the ring-level frontend."""

    name: str
    options: str
    count: int


RING_LOADS = (
    RingLoad("ring 4k read q32", "--depth 32 --size 4 --batch 8", 24000),
    RingLoad("ring 4k write q32", "--depth 32 --size 4 --batch 8 --reads 0", 24000),
    RingLoad("ring 4k read q32 persistent", "--depth 32 --size 4 --batch 8 --persistent", 24000),
    RingLoad("ring 4k write q32 persistent", "--depth 32 --size 4 --batch 8 --reads 0 --persistent", 24000),
    RingLoad("ring 64k read q16", "--depth 16 --size 64 --batch 4 --indirect 32", 1600),
    RingLoad("ring 64k read q16 persistent", "--depth 16 --size 64 --batch 4 --indirect 32 --persistent", 1600),
)


@dataclass(frozen=True)
class Setup:
    name: str
    module: str  # which backend serves vbd; "" for none
    disk: str  # as in an xl.cfg, without its name
    before: str = ""
    after: str = ""


RS, IN_TREE = "xen-blkback-rs", "xen-blkback"
SETUPS = (
    Setup("rs, file", RS, f"format=raw,target={FILE}"),
    Setup("rs, RAM disk", RS, "format=raw,target=/dev/ram1"),
    Setup("rs, null_blk", RS, "format=raw,target=/dev/nullb0"),
    Setup("in-tree, RAM disk", IN_TREE, "format=raw,target=/dev/ram1"),
    Setup("in-tree, null_blk", IN_TREE, "format=raw,target=/dev/nullb0"),
    Setup("in-tree + loop, file", IN_TREE, f"format=raw,target={FILE}"),
    Setup(
        "in-tree + direct loop, file",
        IN_TREE,
        "format=raw,target=/dev/loop7",
        f"losetup --direct-io=on /dev/loop7 {FILE}",
        "losetup -d /dev/loop7",
    ),
    Setup("qdisk, file", "", f"format=raw,backendtype=qdisk,target={FILE}"),
)
DOM0 = (
    ("fio in dom0, file", str(FILE)),
    ("fio in dom0, RAM disk", "/dev/ram1"),
    ("fio in dom0, null_blk", "/dev/nullb0"),
)
PLACES = [setup.name for setup in SETUPS] + [name for name, _ in DOM0]  # in tables


class HostAccount:
    """The processor time that dom0's processor has had, from the host that emulates it. Xen's own account loses some at
    random where the machine has two processors, up to two thirds of a load."""

    def __init__(self) -> None:
        self.port = port("xb.clock")

    def nanoseconds(self) -> int:
        os.write(self.port, b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            answer += os.read(self.port, 64)
        return int(answer)


class XenAccount:
    """The processor time that dom0 has used, from Xen by way of libxenstat (xenstat.h)."""

    def __init__(self) -> None:
        self.lib = ctypes.CDLL(glob.glob("/usr/lib/*/libxenstat.so.*")[0])
        for name in ("xenstat_init", "xenstat_get_node", "xenstat_node_domain"):
            getattr(self.lib, name).restype = ctypes.c_void_p
        self.lib.xenstat_domain_cpu_ns.restype = ctypes.c_ulonglong
        self.handle = ctypes.c_void_p(self.lib.xenstat_init())
        check(self.handle.value, "libxenstat does not open Xen's interface")

    def nanoseconds(self) -> int:
        node = ctypes.c_void_p(self.lib.xenstat_get_node(self.handle, 0))
        check(node.value, "libxenstat knows nothing about this machine")
        domain = ctypes.c_void_p(self.lib.xenstat_node_domain(node, 0))
        used = self.lib.xenstat_domain_cpu_ns(domain)
        self.lib.xenstat_free_node(node)
        return used


def fixed_work() -> None:
    """What dom0 does for a disk, too: compute, move memory, enter kernel and hypervisor."""
    for _ in range(5):
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
        for _ in range(20):
            bytes(1 << 16).translate(bytes(range(256)))
            sum(range(500))
            os.sched_yield()


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.env = Env("rs")
        self.account = XenAccount() if options.exact else HostAccount()
        self.module = ""
        self.unit = 1.0
        self.unit = self.pace()

    def run(self) -> None:
        sh(
            f"modprobe -a null_blk loop; modprobe brd rd_nr=2 rd_size={(SIZE + 48) << 10}; mkfs.ext4 -q -F -b 4096 -E"
            f" lazy_itable_init=0,lazy_journal_init=0 /dev/ram0; mkdir -p {MOUNT}; mount /dev/ram0 {MOUNT}; udevadm"
            f" settle; dd if=/dev/urandom of={FILE} bs=1M count={SIZE} 2>/dev/null; dd if=/dev/urandom of=/dev/ram1"
            f" bs=1M count={SIZE + 48} 2>/dev/null; sync"
        )
        self.announce("kernel")
        fio = self.guest("fio")
        ring = self.guest("ring", frontend=True)
        for round in range(self.options.repeat):
            # In another order each time, so that a drift of the machine, or what one leaves to the next, shows as
            # spread.
            for setup in random.Random(round).sample(SETUPS, len(SETUPS)):
                if self.chosen(setup.name):
                    self.one(setup, round, fio, ring)
            for name, target in DOM0:
                if self.chosen(name):
                    # The first time fio is read from its disk.
                    self.fio(name, round, partial(sh, timeout=600), target, unmeasured=1)
        self.env.clean_up()

    def guest(self, name: str, *disks: str, frontend: bool = False) -> Guest:
        """A guest, on the last processor: the first one is dom0's, and the only one in an exact machine."""
        more = "" if self.options.exact else 'cpus = "1"\n'
        return self.env.new_guest(*disks, name=name, memory=256, frontend=frontend, more=more).create()

    def chosen(self, name: str) -> bool:
        return not self.options.only or any(word in name for word in self.options.only)

    def one(self, setup: Setup, round: int, fio: Guest, ring: Guest) -> None:
        self.load(setup.module)
        sh(f"sync; echo 3 >/proc/sys/vm/drop_caches; {setup.before or chr(58)}")
        with self.attached(fio, setup) as fio:
            self.fio(setup.name, round, partial(fio.sh, timeout=600), "/dev/xvdb")
        if any(self.wanted(load.name) for load in RING_LOADS):
            with self.attached(ring, setup) as ring:
                self.ring(ring, setup, round)
        sh(setup.after or "true")

    @contextmanager
    def attached(self, guest: Guest, setup: Setup) -> Iterator[Guest]:
        """A guest that has the disk: the given one, or, since libxl starts no qemu for a disk that is attached, a new
        one."""
        disk = f"vdev=xvdb,access=w,{setup.disk}"
        if not setup.module:
            self.env.backend = "qdisk"  # which may have a qemu
            own = self.guest(f"{guest.name}-qdisk", disk, frontend=guest.frontend)
            yield own
            own.shutdown()
            self.env.backend = "rs"
            return
        done = guest.try_attach(disk)
        check(done.returncode == 0, f"xl block-attach {disk}: {done.stderr.strip()}")
        guest.wait_disks("xvdb")
        yield guest
        done = subprocess.run(
            ["xl", "block-detach", guest.name, str(vdev_number("xvdb"))], text=True, capture_output=True
        )
        path = f"/local/domain/0/backend/vbd/{guest.domid}/{vdev_number('xvdb')}"
        wait_for(lambda: not guest.env.store.read(f"{path}/frontend"), 30, f"{disk} detached ({done.stderr.strip()})")

    def load(self, module: str) -> None:
        if module and module != self.module:
            for other in (RS, IN_TREE):
                sh(f"rmmod {other.replace('-', '_')} 2>/dev/null || true")
            sh(f"modprobe -i {module}")
            self.module = module

    def fio(self, setup: str, round: int, run: Callable[[str], str], target: str, unmeasured: int = 0) -> None:
        """All loads of fio; RUN is the shell they run in. The first UNMEASURED runs are for the caches."""
        idle: list[float] = []
        for load in (*[NO_LOAD] * (unmeasured + 3), *filter(lambda load: self.wanted(load.name), LOADS)):
            text, used, pace = self.measured(
                load.name,
                load.count,
                run,
                FIO.format(target=target, size=SIZE, rw=load.rw, bs=load.bs, depth=load.depth, count=load.count or 1),
            )
            if load is NO_LOAD:
                idle.append(used)
                continue
            words = next(line for line in text.splitlines() if line.startswith("3;")).split(";")
            at = FIO_WRITE if "write" in load.rw else 0
            percentile = next(word for word in words[at + 17 : at + 37] if word.startswith("99.0"))
            self.result(
                setup,
                load.name,
                round,
                used - statistics.median(idle[unmeasured:]),
                load.count,
                load.count / (float(words[FIO_RUNTIME + at]) / 1000 or 0.001) * pace,
                float(words[FIO_LATENCY + at]) / pace,
                float(percentile.partition("=")[2]) / pace,
            )

    def ring(self, guest: Guest, setup: Setup, round: int) -> None:
        backend = self.env.store.read(f"/local/domain/{guest.domid}/device/vbd/{vdev_number('xvdb')}/backend")
        for load in filter(lambda load: self.wanted(load.name), RING_LOADS):
            if "--indirect" in load.options and not self.env.store.read(f"{backend}/feature-max-indirect-segments"):
                continue
            if "--persistent" in load.options and setup.module == "":
                continue
            figures = []
            for requests in (1, load.count):
                text, used, pace = self.measured(
                    load.name,
                    requests,
                    partial(guest.sh, timeout=120),
                    f"blkif-frontend load --vdev xvdb {load.options} --area {SIZE} --seconds 60 --requests {requests}"
                    " --json /tmp/r >/tmp/out 2>&1 || { cat /tmp/out; exit 1; }; cat /tmp/r",
                )
                figures.append((used, json.loads(text)))
            (idle, few), (used, report) = figures
            count = report["requests"] - few["requests"]
            self.result(
                setup.name,
                load.name,
                round,
                used - idle,
                count,
                report["requests_per_second"] * pace,
                report["latency_us"]["mean"] / pace,
                report["latency_us"]["percentiles"]["p99"] / pace,
            )

    def measured(self, load: str, requests: int, run: Callable[[str], str], script: str) -> tuple[str, float, float]:
        """What SCRIPT says, the processor time that dom0 uses meanwhile at the boot's pace, and the pace."""
        pace = self.pace()
        self.announce("start")
        before = self.account.nanoseconds()
        text = run(script)
        if "write" in load:
            os.sync()  # what is only in dom0's page cache then has not cost yet what it costs
        used = self.account.nanoseconds() - before
        self.announce("end", load, requests)
        pace = (pace + self.pace()) / 2
        return text, used / pace, pace

    def pace(self) -> float:
        """How long the same work takes now, with that of the boot's beginning as the unit. Times are divided by it:
        under emulation the processor is not our own, and its speed changes by half within minutes."""
        if self.options.exact:
            return 1.0
        times = []
        for _ in range(5):
            before = self.account.nanoseconds()
            fixed_work()
            times.append(self.account.nanoseconds() - before)
        return statistics.median(times) / self.unit

    def announce(self, at: str, load: str = "", requests: int = 0) -> None:
        """Tells the host where what is to be profiled begins and ends, and where functions are then."""
        if not self.options.announce:
            return
        if at in ("start", "end"):
            print("@P " + json.dumps({"at": at}), flush=True)
            time.sleep(0.2)
        if at in ("kernel", "end"):
            lines = Path("/proc/kallsyms").read_text().splitlines()
            chosen = [line for line in lines if ("[" in line) == (at == "end") and line.split()[1] in "tTwW"]
            symbols = base64.b64encode(zlib.compress("\n".join(chosen).encode(), 1)).decode()
            print(
                "@P " + json.dumps({"at": f"{at} symbols", "load": load, "requests": requests, "symbols": symbols}),
                flush=True,
            )

    def wanted(self, load: str) -> bool:
        names = {load.name for load in (*LOADS, *RING_LOADS)}
        return not self.options.loads or any(
            word == load or (word not in names and word in load) for word in self.options.loads
        )

    def result(
        self, setup: str, load: str, round: int, used: float, count: int, rate: float, mean: float, p99: float
    ) -> None:
        line = {
            "setup": setup,
            "place": PLACES.index(setup),
            "load": load,
            "round": round,
            "requests": count,
            "cpu_ns": used / count,
            "per_second": rate,
            "latency_us": mean,
            "p99_us": p99,
        }
        print("@R " + json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--announce", action="store_true")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--loads", nargs="*", default=[])
    options = parser.parse_args()
    silence()
    start = time.monotonic()
    try:
        Bench(options).run()
    except Failure as failure:
        print(f"bench: {failure}", flush=True)
        sys.exit(1)
    print(f"measured in {time.monotonic() - start:.0f} s of dom0's time", flush=True)


main()
