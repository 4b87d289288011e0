"""A file system in user space with one file, `disk`: python3 fuse.py MOUNT SIZE. It does a part only of each read and
write.

Speaks the protocol of /dev/fuse (linux/fuse.h) itself, since dom0 has no libfuse. At its end, when it has been
unmounted, it prints how many reads and writes it has done in part."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
from collections.abc import Callable

PART = (2, 3)  # how much of what it is asked for it does
ROOT, DISK = 1, 2  # nodes
FOPEN_DIRECT_IO = 1
MAX_WRITE = 128 << 10


def part(size: int) -> int:
    """In whole sectors, and never nothing."""
    return max(size * PART[0] // PART[1] // 512 * 512, min(size, 512))


class FileSystem:
    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.reads = self.writes = 0

    def attributes(self, node: int) -> bytes:
        mode, size = (stat.S_IFDIR | 0o755, 0) if node == ROOT else (stat.S_IFREG | 0o600, len(self.data))
        return struct.pack("<6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def init(self, node: int, body: bytes) -> bytes:
        return struct.pack("<IIIIHHIIHHI7I", 7, 31, 0, 0, 16, 16, MAX_WRITE, 1, 0, 0, 0, *[0] * 7)

    def lookup(self, node: int, body: bytes) -> bytes:
        if node != ROOT or body != b"disk\0":
            raise FileNotFoundError(errno.ENOENT, "")
        return struct.pack("<QQQQII", DISK, 0, 3600, 3600, 0, 0) + self.attributes(DISK)

    def get(self, node: int, body: bytes) -> bytes:
        return struct.pack("<QII", 3600, 0, 0) + self.attributes(node)

    def open(self, node: int, body: bytes) -> bytes:
        return struct.pack("<QII", 0, FOPEN_DIRECT_IO, 0)

    def read(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        size = min(size, len(self.data) - offset)
        self.reads += part(size) < size
        return bytes(self.data[offset : offset + part(size)])

    def write(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        self.writes += part(size) < size
        size = part(size)
        self.data[offset : offset + size] = body[40 : 40 + size]
        return struct.pack("<II", size, 0)

    def statfs(self, node: int, body: bytes) -> bytes:
        return struct.pack("<5Q10I", 0, 0, 0, 0, 0, 4096, 255, 4096, *[0] * 7)

    def nothing(self, node: int, body: bytes) -> bytes:
        return b""


CALLS: dict[int, Callable[[FileSystem, int, bytes], bytes]] = {
    1: FileSystem.lookup,
    3: FileSystem.get,
    4: FileSystem.get,
    14: FileSystem.open,
    15: FileSystem.read,
    16: FileSystem.write,
    17: FileSystem.statfs,
    18: FileSystem.nothing,
    20: FileSystem.nothing,
    25: FileSystem.nothing,
    26: FileSystem.init,
    27: FileSystem.open,
    29: FileSystem.nothing,
    34: FileSystem.nothing,
    38: FileSystem.nothing,
}
UNANSWERED = (2, 36, 42)  # forget, interrupt, batch of forgets


def main() -> None:
    mount, size = sys.argv[1:]
    system = FileSystem(int(size))
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    if ctypes.CDLL(None, use_errno=True).mount(b"short", mount.encode(), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    while True:
        try:
            request = os.read(device, MAX_WRITE + 4096)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT):  # the request has been interrupted
                continue
            break  # unmounted
        _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
        if opcode in UNANSWERED:
            continue
        answer, number = b"", 0
        try:
            call = CALLS.get(opcode)
            if call:
                answer = call(system, node, request[40:])
            else:
                number = errno.ENOSYS
        except OSError as error:
            number = error.errno or errno.EIO
        os.write(device, struct.pack("<IiQ", 16 + len(answer), -number, unique) + answer)
    print(system.reads, system.writes)


if __name__ == "__main__":
    main()
