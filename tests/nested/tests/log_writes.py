"""What a guest has flushed is there wherever the power goes: writes below its disks are recorded, and cut off at every
flush.

dm-log-writes records what has reached the drive's cache between two flushes. The record is played up to each flush and
each mark, as a drive would be found after a cut there; a mark says which of the guest's flushes had been answered by
then. The disks are sparse files on ext4 and XFS, which write their journals only every five minutes here, and a device.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

from lib.basics import check, log, sh
from lib.env import MKFS, Env
from lib.guest import Guest

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 300
ESTIMATE = 60
LONG = 10
ROUNDS = 5  # flushes of each disk
CUTS = 6  # of each disk, at least
WRITES = 3  # before each flush
KINDS = {"ext4": "commit=300", "xfs": "", "device": ""}
SIZE = 16 << 20
BLOCK = 4096
BLOCKS = 64  # that are written: often enough the same again
MIB = 1 << 20
MOUNT = Path("/run/log-writes")
# mkfs.xfs makes file systems below 300 MiB only for those who test them, which it tells from these.
ENVIRONMENT = "TEST_DIR=/ TEST_DEV=/ QA_CHECK_FS=1"
# The record, by drivers/md/dm-log-writes.c.
MAGIC = 0x6A736677736872
SECTOR = 512
FLUSH, DISCARD, MARK = 1, 4, 8


class Disk:
    """A disk with a recorder below it, and what the guest has been told of it."""

    def __init__(self, env: Env, kind: str, number: int) -> None:
        self.kind, self.vdev = kind, f"xvd{'abc'[number]}"
        self.data, self.record, self.copy = (env.device(64, 3 * number + part) for part in range(3))
        self.mount = MOUNT / kind
        if kind != "device":
            sh(f"{ENVIRONMENT} {' '.join(MKFS[kind])} {self.data}; mkdir -p {self.mount}")
        with open(self.data, "rb") as file:
            self.before = file.read()
        self.name = f"xbw{number}"
        sh(
            f"dmsetup create {self.name} --table '0 {len(self.before) // SECTOR} log-writes {self.data} {self.record}';"
            " udevadm settle"
        )
        env.at_end(f"! dmsetup info {self.name} >/dev/null 2>&1 || dmsetup remove --retry {self.name}")
        self.target: str | Path = f"/dev/mapper/{self.name}"
        if kind != "device":
            sh(f"mount -o {KINDS[kind] or 'defaults'} /dev/mapper/{self.name} {self.mount}")
            env.at_end(f"! mountpoint -q {self.mount} || umount {self.mount}")
            self.target = self.mount / "disk"
            with self.target.open("wb") as file:
                file.truncate(SIZE)
            sh(f"sync -f {self.mount}")
        self.mark(0)
        # By block the rounds in which it was written, and those of which the guest knows that they are flushed.
        self.written: dict[int, list[int]] = {}

    def place(self, block: int) -> int:
        """Far apart, so that in a file each needs an allocation of its own."""
        return block * (SIZE // BLOCKS)

    def round(self, guest: Guest, number: int, rng: random.Random) -> None:
        """Some writes and a flush; when the guest has its answer, a mark."""
        blocks = rng.sample(range(BLOCKS), WRITES)
        writes = "; ".join(
            f"yes {text(block, number)} | dd of=/dev/{self.vdev} bs={BLOCK} count=1 seek={self.place(block) // BLOCK}"
            " oflag=direct iflag=fullblock"
            for block in blocks
        )
        guest.sh(f"set -e; {{ {writes}; dd if=/dev/null of=/dev/{self.vdev} conv=notrunc,fsync; }} 2>/dev/null")
        for block in blocks:
            self.written.setdefault(block, []).append(number)
        self.mark(number)

    def mark(self, number: int) -> None:
        """Says in the record that the guest knows of this round; 0 is that the disk is there."""
        sh(f"dmsetup message {self.name} 0 mark {number}")

    def states(self) -> Iterator[tuple[str, int, bytearray]]:
        """Plays the record: where the power goes, the last round that the guest knew to be flushed, and what is on the
        drive."""
        state, known = bytearray(self.before), -1
        with open(self.record, "rb") as file:
            magic, version, entries, size = struct.unpack("<QQQI", file.read(SECTOR)[:28])
            check(
                (magic, version, size) == (MAGIC, 1, SECTOR),
                f"{self.kind}: the record begins with {magic:#x}, {version}, {size}",
            )
            for entry in range(entries):
                header = file.read(SECTOR)
                sector, sectors, flags, length = struct.unpack("<QQQQ", header[:32])
                if flags & MARK:
                    mark = header[32 : 32 + length].rstrip(b"\0").decode()
                    if not mark.isdigit():  # the recorder's own, at its end
                        continue
                    known = int(mark)
                    yield f"mark {mark}", known, state
                    continue
                at = sector * SECTOR
                state[at : at + sectors * SECTOR] = (
                    bytes(sectors * SECTOR) if flags & DISCARD else file.read(sectors * SECTOR)
                )
                if flags & FLUSH and known >= 0:
                    yield f"flush, entry {entry}", known, state
        check(known == max(map(max, self.written.values())), f"{self.kind}: the record ends with mark {known}")

    def examine(self, where: str, known: int, state: bytearray) -> None:
        """After a cut: each block has what the last known round wrote there, or a later one."""
        with open(self.copy, "r+b") as file:
            file.write(state)
            file.flush()
            os.fsync(file.fileno())
        if self.kind == "device":
            self.compare(Path(self.copy), where, known)
            return
        sh(f"mount {self.copy} {self.mount}")
        try:
            self.compare(self.mount / "disk", where, known)
        finally:
            sh(f"umount {self.mount}")

    def compare(self, path: Path, where: str, known: int) -> None:
        with path.open("rb") as file:
            for block, rounds in self.written.items():
                file.seek(self.place(block))
                data = file.read(BLOCK)
                flushed = max((number for number in rounds if number <= known), default=0)
                allowed = [number for number in rounds if number >= flushed] + ([] if flushed else [0])
                check(
                    any(data == content(block, number) for number in allowed),
                    f"{self.kind}: power cut at {where}: block {block} has {data[:24]!r}, written in rounds {rounds},"
                    f" flushed to round {known}",
                )


def text(block: int, number: int) -> str:
    return f"block-{block}-round-{number}"


def content(block: int, number: int) -> bytes:
    """What a block has after a round; 0 is that before the first."""
    line = f"{text(block, number)}\n".encode()
    return (line * (BLOCK // len(line) + 1))[:BLOCK] if number else bytes(BLOCK)


def run(env: Env) -> None:
    sh("modprobe dm-log-writes; modprobe xfs; echo 300000 >/proc/sys/fs/xfs/xfssyncd_centisecs")
    disks = [Disk(env, kind, number) for number, kind in enumerate(KINDS)]
    guest = env.guest(*(env.disk(disk.target, disk.vdev) for disk in disks))
    rng = random.Random(14)
    for number in range(1, env.count(ROUNDS) + 1):
        for disk in disks:
            disk.round(guest, number, rng)
    guest.shutdown()
    for disk in disks:
        if disk.kind != "device":
            sh(f"umount {disk.mount}")
        sh(f"dmsetup remove --retry {disk.name}")
        cuts = 0
        for state in disk.states():
            disk.examine(*state)
            cuts += 1
        check(cuts >= CUTS, f"{disk.kind}: only {cuts} flushes and marks in the record")
        log(f"{disk.kind}: the power went {cuts} times")
