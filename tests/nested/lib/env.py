"""What a test works with: the backend that is being tested, scratch file systems and devices, guests."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

from .basics import Failure, KernelLog, check, read, run, sh, wait_for
from .guest import Guest, vdev_of
from .xenstore import XenStore

DRIVER = {"rs": "xen_blkback_rs", "loop": "xen_blkback", "qdisk": "qdisk"}
# Where their drivers are in sysfs.
DRIVERS = {"rs": "/sys/bus/xen-backend/drivers/xen-blkback-rs", "loop": "/sys/bus/xen-backend/drivers/vbd"}
MODPROBE = Path("/etc/modprobe.d/xen-blkback-rs.conf")
SCRATCH = Path("/mnt/scratch")
DRIVES = {"ext4": "xb-ext4", "xfs": "xb-xfs", "btrfs": "xb-btrfs"}
MKFS = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"], "btrfs": ["mkfs.btrfs", "-q", "-f"]}
FIBMAP = 1  # as in <linux/fs.h>
# `udevadm control --reload` does nothing where udevd takes the message for one of the user 65534: the credentials are
# missing when it was sent before udevd had accepted the connection.
RELOAD_UDEV = "pkill -HUP -x systemd-udevd"
CACHESTAT = 451  # __NR_cachestat
FILE_SYSTEMS = ("ext4", "xfs", "btrfs", "tmpfs")


def drive(serial: str) -> str:
    """The virtio disk that the host gave this serial number."""
    for name in os.listdir("/sys/block"):
        if read(f"/sys/block/{name}/serial") == serial:
            return f"/dev/{name}"
    raise Failure(f"the host gave no drive {serial}")


class PowerCut(BaseException):
    """Ends the first half of a test; the host cuts the power and calls after_power_cut(env, state) in the next boot."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state


class Env:
    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.driver = DRIVER[backend]
        self.store = XenStore()
        self.kernel_log = KernelLog()
        self.guests: list[Guest] = []
        self.undo: list[str] = []
        self.kver = os.uname().release

    @staticmethod
    def count(cycles: int) -> int:
        """How often a loop goes round: XB_LOOPS, a factor that the runner hands on, makes loops shorter or longer."""
        return max(1, round(cycles * float(os.environ.get("XB_LOOPS", "1"))))

    @classmethod
    def long(cls) -> bool:
        """Whether there is time for the long form of a test."""
        return cls.count(1) > 1

    # Storage.

    def fs(self, kind: str, *, fresh: bool = True, options: str = "") -> Path:
        """A scratch file system of this kind, made at its first use in a boot; fresh=False keeps what a boot before
        this one left on it. OPTIONS are for a mount of its own (a test that asks for some unmounts it, too)."""
        mount = SCRATCH / kind
        mount.mkdir(parents=True, exist_ok=True)
        if os.path.ismount(mount):
            if not options:
                return mount
            sh(f"umount {mount}")
        if kind == "tmpfs":
            sh(f"mount -t tmpfs -o size=256M tmpfs {mount}")
            return mount
        device = drive(DRIVES[kind])
        if fresh:
            sh(" ".join([*MKFS[kind], device]))
        sh(f"mount -t {kind} {'-o ' + options if options else ''} {device} {mount}")
        return mount

    def unmount(self, kind: str) -> None:
        sh(f"umount {SCRATCH / kind}")

    def device(self, megabytes: int = 64, number: int = 0) -> str:
        """A block device: a slice of the spare drive under device mapper, so that a test can have several. Number 0
        starts at the drive's beginning, each further one 64 MiB later."""
        name = f"xb{number}"
        check(megabytes <= 64, "a slice is 64 MiB at most")
        sh(
            f"dmsetup info {name} >/dev/null 2>&1 && dmsetup remove --retry {name}; "
            f"dmsetup create {name} --table '0 {megabytes * 2048} linear {self.raw_device()} {number * 64 * 2048}'; "
            "udevadm settle"
        )
        return f"/dev/mapper/{name}"

    @staticmethod
    def hide_from_udev(match: str) -> None:
        """Keeps udev, until the next boot, from reading devices that MATCH, in its language: slow ones would take it
        minutes."""
        rules = Path("/run/udev/rules.d/56-hidden.rules")
        rules.parent.mkdir(parents=True, exist_ok=True)
        flags = (
            "DM_UDEV_DISABLE_DISK_RULES_FLAG",
            "DM_UDEV_DISABLE_OTHER_RULES_FLAG",
            "UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG",
        )
        rule = f"{match}, " + ", ".join(f'ENV{{{flag}}}="1"' for flag in flags)
        if rule not in read(rules):
            with rules.open("a") as file:
                file.write(f"{rule}\n")
        sh(f"{RELOAD_UDEV}; udevadm settle")

    @staticmethod
    def reload(device: str, table: str) -> None:
        """Gives a device mapper device another table, one line for each target, while it is in use."""
        sh(f"dmsetup suspend {device}; echo '{table}' | dmsetup reload {device}; dmsetup resume {device}")

    def raw_device(self) -> str:
        """The spare drive itself, of 1 GiB."""
        return drive("xb-bdev")

    def file(self, kind: str, name: str, size: int, *, fill: str | None = None) -> Path:
        """A file of SIZE bytes: sparse, or filled with pseudo-random data that FILL determines."""
        path = self.fs(kind) / name
        if fill is None:
            with path.open("wb") as file:
                file.truncate(size)
        else:
            write_pattern(path, size, fill)
        return path

    def disk(self, target: str | Path, vdev: str = "xvda", *, access: str = "w") -> str:
        """A disk as an administrator writes it: phy: for a device, format=raw for a file; qdisk must be asked for."""
        qdisk = "backendtype=qdisk," if self.backend == "qdisk" else ""
        if str(target).startswith("/dev/") and not qdisk:
            return f"phy:{target},{vdev},{access}"
        return f"format=raw,vdev={vdev},access={access},{qdisk}target={target}"

    def guest(self, *disks: str, **config: Any) -> Guest:
        """A guest that is created and ready, its disks served by the backend under test."""
        guest = self.new_guest(*disks, **config).create()
        guest.check_served(*(vdev_of(disk) for disk in disks))
        return guest

    def new_guest(self, *disks: str, **config: Any) -> Guest:
        """A guest that is configured only."""
        guest = Guest(self, list(disks), **config)
        self.guests.append(guest)
        return guest

    # Dom0.

    def domains(self) -> set[int]:
        """All domains but dom0, dying ones too. Asks Xen: xenstore no longer has one whose pages are still mapped."""
        done = run_quiet("xl", "list")
        return {int(line.split()[-5]) for line in done.splitlines()[1:]} - {0}

    def backends(self) -> list[str]:
        """What is left of disks in dom0's part of xenstore."""
        found = []
        for kind in ("vbd", "qdisk", "vbd3"):
            top = f"/local/domain/0/backend/{kind}"
            for domain in self.store.list(top):
                found += [f"{top}/{domain}/{device}" for device in self.store.list(f"{top}/{domain}")]
        return found

    def loops(self) -> list[str]:
        """Loop devices in use, as losetup -a lists them."""
        return [line for line in run_quiet("losetup", "-a").splitlines() if line]

    def qemus(self) -> list[str]:
        names = {pid: read(f"/proc/{pid}/comm") for pid in os.listdir("/proc") if pid.isdigit()}
        return [f"{pid} {name}" for pid, name in names.items() if "qemu" in name]

    def look_around(self) -> None:
        """While guests run: a disk of ours needs no loop device and no process."""
        if self.backend == "rs":
            check(not self.loops(), f"loop devices in use: {self.loops()}")
        # An HVM guest has one as its device model.
        if self.backend != "qdisk" and not any(guest.kind == "hvm" and guest.domid for guest in self.guests):
            check(not self.qemus(), f"qemu is running: {self.qemus()}")

    def leftovers(self) -> list[str]:
        """What a test must not leave behind; empty when all is well."""
        problems = []

        def gone(what: str, get: Any) -> None:
            try:
                wait_for(lambda: not get(), 15, what)
            except Failure:
                problems.append(f"left behind: {what}: {get()}")

        gone("domains", self.domains)
        gone("backend nodes", self.backends)
        gone("loop devices", self.loops)
        gone("qemu processes", self.qemus)
        gone(
            "devices on the xen-backend bus",
            lambda: [d for d in os.listdir("/sys/bus/xen-backend/devices") if d.startswith("vbd-")],
        )
        problems += [f"dmesg: {line}" for line in self.kernel_log.bad()]
        return problems

    def clean_up(self) -> None:
        """After a test, passed or not: destroys its guests, empties the scratch file systems, removes slices."""
        for guest in self.guests:
            guest.close()
        for domain in self.domains():
            run("xl", "destroy", str(domain))

    def at_end(self, script: str) -> None:
        """Runs SCRIPT after the test, passed or not, when its guests are gone; the last one comes first."""
        self.undo.append(script)

    def parameter(self, name: str, value: object, driver: str = "") -> None:
        """Sets a parameter of the backend's module (or of another one) until the test ends: the next one may find it
        loaded."""
        directory = f"/sys/module/{driver or self.driver}/parameters"
        sh(f"modprobe -i {driver or self.driver}")
        self.at_end(f"! [ -e {directory}/{name} ] || echo {read(f'{directory}/{name}')} >{directory}/{name}")
        sh(f"echo {value} >{directory}/{name}")

    def empty_scratch(self) -> None:
        for script in reversed(self.undo):
            sh(script)
        for kind in FILE_SYSTEMS:
            mount = SCRATCH / kind
            if os.path.ismount(mount):
                for path in mount.iterdir():
                    run_quiet("chattr", "-i", str(path)) if kind != "tmpfs" else None
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)
        for line in run_quiet("dmsetup", "ls").splitlines():
            if re.match(r"xb\d", line):
                run_quiet("dmsetup", "remove", "--retry", line.split()[0])

    def power_cut(self, **state: Any) -> None:
        """Asks the host to kill the machine now; does not return."""
        raise PowerCut(state)


def run_quiet(*argv: str) -> str:
    return subprocess.run(argv, text=True, capture_output=True, stdin=subprocess.DEVNULL).stdout


def cached_pages(path: Path) -> int:
    """How many pages of a file are in dom0's page cache."""
    everything, counts = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    with path.open("rb") as file:
        check(ctypes.CDLL(None).syscall(CACHESTAT, file.fileno(), everything, counts, 0) == 0, f"cachestat {path}")
    return counts[0]


def block_of(path: Path, block: int) -> int:
    """Where on its device a block of a file is, in blocks of its file system."""
    with path.open("rb") as file:
        return struct.unpack("i", fcntl.ioctl(file, FIBMAP, struct.pack("i", block)))[0]


def write_pattern(target: str | Path, size: int, seed: str) -> None:
    """Writes SIZE bytes to a new file, or to a device, and to the disk below it. They depend on SEED and on where they
    are: a misplaced sector is found."""
    block = 1 << 16
    with open(target, "wb") as file:
        file.writelines(pattern(seed, at, min(block, size - at)) for at in range(0, size, block))
        file.flush()
        os.fsync(file.fileno())


def pattern(seed: str, at: int, size: int) -> bytes:
    return hashlib.shake_128(f"{seed}:{at}".encode()).digest(size)


def md5(path: str | Path) -> str:
    """A checksum made from dom0, past anything that dom0 may have cached of a device."""
    digest = hashlib.md5()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()
