"""A disk's directory is removed in the moment of its unbind: no Xen device waits for another for ever.

xenstored is stopped until both have begun: what each of them then waits for is an answer, and the next step is the
race."""

from __future__ import annotations

import os
import signal
import struct
import subprocess

from lib.basics import check, log, read, sh, wait_for
from lib.env import DRIVERS, Env
from lib.toolstack import Directories
from lib.xenstore import RM, message

BACKENDS = ("rs",)
TIMEOUT = 120
ESTIMATE = 25
LONG = 20
ROUNDS = 10
PROCESSORS = (1, 2)
DRIVER = DRIVERS["rs"]


class Stopped:
    """Nothing in xenstore is answered meanwhile."""

    def __init__(self) -> None:
        self.pid = int(sh("pidof xenstored oxenstored").split()[0])

    def __enter__(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGCONT)


def remove(kernel: int, path: str) -> None:
    """Asks xenstored by way of the kernel, which hands in requests in their order, and does not wait for the answer."""
    os.write(kernel, message(RM, path.encode() + b"\0"))


def unbind(name: str) -> subprocess.Popen[str]:
    """Has the driver unbound; returns when that waits for xenstored."""
    process = subprocess.Popen(["bash", "-c", f"echo {name} >{DRIVER}/unbind"], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: "xenbus_watch" in read(f"/proc/{process.pid}/stack"), 20, "unbind to ask xenstored")
    return process


def run(env: Env) -> None:
    guest = env.guest()
    disk = Directories(env, guest, env.file("ext4", "image", 1 << 20), "xvda")
    name = guest.bus_name("xvda")
    stopped, kernel, unbound = Stopped(), os.open("/dev/xen/xenbus", os.O_RDWR), 0
    for number in range(env.count(ROUNDS)):
        disk.add()
        disk.ready()
        wait_for(lambda: env.store.read(f"{disk.back}/state") == "2", 20, f"{name} in InitWait")
        with stopped:
            if number % 2:
                process = unbind(name)
                remove(kernel, disk.back)
            else:
                remove(kernel, disk.back)
                process = unbind(name)
        wait_for(lambda: process.poll() is not None, 20, f"unbind to end in round {number}")
        said = process.communicate()[1]
        check(not said or "No such device" in said, f"unbind: {said}")
        unbound += not said
        wait_for(
            lambda: not os.path.exists(f"/sys/bus/xen-backend/devices/{name}"), 20, f"{name} gone in round {number}"
        )
        disk.remove()
        while os.read(kernel, 4096)[:4] != struct.pack("<I", RM):
            pass
    log(f"the driver was unbound {unbound} times before the device was gone")
    os.close(kernel)
    guest.shutdown()
