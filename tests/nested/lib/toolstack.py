"""What libxl does for a disk, and its script, without either: as fast as nodes can be written, and with the caller's
patience."""

from __future__ import annotations

import os
from pathlib import Path

from .env import Env
from .guest import Guest, vdev_number


class Directories:
    """The directories of a guest's disk in xenstore, the backend's and the frontend's."""

    def __init__(self, env: Env, guest: Guest, target: str | Path, vdev: str) -> None:
        self.store, self.domid, self.target, self.vdev = env.store, guest.domid, str(target), vdev
        self.number = vdev_number(vdev)
        self.back, self.front = guest.backend(vdev), f"/local/domain/{guest.domid}/device/vbd/{self.number}"

    def add(self) -> None:
        store = self.store
        for path, owner, reader in ((self.front, self.domid, 0), (self.back, 0, self.domid)):
            store.write(path, "")
            store.permit(path, f"n{owner}", f"r{reader}")
        for name, value in (
            ("backend", self.back),
            ("backend-id", "0"),
            ("virtual-device", self.number),
            ("device-type", "disk"),
        ):
            store.write(f"{self.front}/{name}", str(value))
        # Neither end is probed before it has a state.
        for name, value in (
            ("frontend", self.front),
            ("frontend-id", self.domid),
            ("online", 1),
            ("removable", 0),
            ("bootable", 1),
            ("dev", self.vdev),
            ("type", "phy"),
            ("mode", "w"),
            ("device-type", "disk"),
            ("discard-enable", 1),
            ("params", self.target),
            ("script", "/etc/xen/scripts/block"),
            ("state", 1),
        ):
            store.write(f"{self.back}/{name}", str(value))
        store.write(f"{self.front}/state", "1")

    def ready(self) -> None:
        """The script's part, for a device and for a file that has been taken over."""
        if self.target.startswith("/dev/"):
            numbers = os.stat(self.target).st_rdev
            self.store.write(f"{self.back}/physical-device", f"{os.major(numbers):x}:{os.minor(numbers):x}")
        self.store.write(f"{self.back}/hotplug-status", "connected")

    def close(self) -> None:
        self.store.write(f"{self.back}/online", "0")
        self.store.write(f"{self.back}/state", "5")

    def remove(self) -> None:
        for path in (self.back, self.front):
            self.store.remove(path)
