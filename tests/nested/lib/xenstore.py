"""A client of xenstored: its protocol is four words and a payload, and a process per read would cost 30 ms here."""

from __future__ import annotations

import socket
import struct

DIRECTORY, READ, WATCH, WRITE, RM, SET_PERMS, WATCH_EVENT, ERROR = 1, 2, 4, 11, 13, 14, 15, 16


def message(kind: int, payload: bytes) -> bytes:
    """A request outside of transactions."""
    return struct.pack("<IIII", kind, 0, 0, len(payload)) + payload


class XenStore:
    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect("/run/xenstored/socket")

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise OSError("xenstored closed the connection")
            data += part
        return data

    def _call(self, kind: int, payload: bytes) -> bytes | None:
        self.socket.sendall(message(kind, payload))
        answer, _, _, size = struct.unpack("<IIII", self._receive(16))
        data = self._receive(size)
        if answer == ERROR:
            if data.startswith(b"ENOENT"):
                return None
            raise OSError(f"xenstore: {data!r} for {payload!r}")
        return data

    def read(self, path: str) -> str | None:
        """The value of a node, None when it does not exist."""
        data = self._call(READ, path.encode() + b"\0")
        return None if data is None else data.decode(errors="replace")

    def list(self, path: str) -> list[str]:
        """The names below a node; none when it does not exist."""
        data = self._call(DIRECTORY, path.encode() + b"\0")
        return [name.decode() for name in data.split(b"\0") if name] if data else []

    def write(self, path: str, value: str) -> None:
        self._call(WRITE, path.encode() + b"\0" + value.encode())

    def permit(self, path: str, *permissions: str) -> None:
        """Sets who may do what with a node, as xenstore-chmod(1) has it: first the owner, with what everybody may."""
        self._call(SET_PERMS, b"".join(word.encode() + b"\0" for word in (path, *permissions)))

    def remove(self, path: str) -> None:
        self._call(RM, path.encode() + b"\0")

    def tree(self, path: str) -> dict[str, str]:
        """All nodes below PATH with their values."""
        found: dict[str, str] = {}
        for name in self.list(path):
            below = f"{path}/{name}"
            value = self.read(below)
            if value is not None:
                found[below] = value
                found |= self.tree(below)
        return found

    def values(self, path: str) -> str:
        """The nodes right below PATH on one line, for a log."""
        return " ".join(f"{name}={self.read(f'{path}/{name}')}" for name in self.list(path))


class Writes:
    """Counts the writes below a node, from now on."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect("/run/xenstored/socket")
        payload = path.encode() + b"\0x\0"
        self.socket.sendall(message(WATCH, payload))
        self.socket.setblocking(False)
        self.data = b""
        self.seen = -1  # the first event is of the watch itself

    def count(self) -> int:
        try:
            while part := self.socket.recv(1 << 16):
                self.data += part
        except BlockingIOError:
            pass
        while len(self.data) >= 16:
            kind, _, _, size = struct.unpack_from("<IIII", self.data)
            if len(self.data) < 16 + size:
                break
            self.data = self.data[16 + size :]
            self.seen += kind == WATCH_EVENT
        return max(self.seen, 0)

    def close(self) -> None:
        self.socket.close()
