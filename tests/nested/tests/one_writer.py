"""A file that somebody writes to is given to no other writer, by whatever name, whether a guest has it or dom0 itself;
xl says who."""

from __future__ import annotations

import struct
from pathlib import Path

from lib.basics import check, run as command, sh, wait_for
from lib.env import DRIVER, Env
from lib.guest import Guest, vdev_number

BACKENDS = ("rs",)
TIMEOUT = 480
ESTIMATE = 75
MOUNT = "/run/one-writer"


def attach(guest: Guest, target: str | Path, access: str, directory: str | Path = "/") -> tuple[int, str]:
    """xl block-attach in a directory; the exit status and xl's messages."""
    done = command(
        "sh",
        "-c",
        f"cd {directory} && exec xl block-attach {guest.name} format=raw,vdev=xvdb,access={access},target={target}",
    )
    return done.returncode, done.stdout + done.stderr


def refused(guest: Guest, target: str | Path, *words: str, access: str = "w", directory: str | Path = "/") -> None:
    code, text = attach(guest, target, access, directory)
    check(code, f"{target} given to {guest.name} ({access}), but expected {words}")
    for word in (Path(target).name, *words):
        check(word in text, f"{target}: no {word!r} in xl's message: {text.strip()}")
    # libxl leaves the directory of a disk that its script refused.
    sh(f"xl block-detach {guest.name} {vdev_number('xvdb')} >/dev/null 2>&1 || true")


def given(guest: Guest, target: str | Path, access: str) -> None:
    code, text = attach(guest, target, access)
    check(not code, f"{target} not given to {guest.name} ({access}): {text.strip()}")
    guest.wait_disks("xvdb")
    guest.sh("dd if=/dev/xvdb of=/dev/null bs=64k iflag=direct")
    guest.detach("xvdb")


def not_served(env: Env, guest: Guest, device: str, words: str) -> None:
    """A block device is the stock script's: xl does not hear of what the driver finds."""
    command("xl", "block-attach", guest.name, f"phy:{device},xvdb,w")
    wait_for(lambda: any(words in line for line in env.kernel_log.lines()), 20, f"{device} refused, with {words!r}")
    check(guest.run("[ -e /dev/xvdb ]").code, f"{guest.name} has {device}")
    sh(f"xl block-detach --force {guest.name} {vdev_number('xvdb')} >/dev/null 2>&1 || true")


def partition(image: Path, *parts: tuple[int, int]) -> None:
    """Writes a partition table of the MBR's kind: where partitions of Linux start, and how long they are, in
    sectors."""
    entries = b"".join(struct.pack("<4xB3xII", 0x83, *part) for part in parts)
    with image.open("r+b") as file:
        file.write(bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa")


def run(env: Env) -> None:
    top = env.fs("ext4")
    image = env.file("ext4", "shared.img", 8 << 20)
    first, second = env.guest(env.disk(image)), env.guest()
    env.at_end(f"swapoff {top}/swap.img 2>/dev/null || true; umount {MOUNT}* 2>/dev/null || true; losetup -D")
    sh(f"mkdir -p {MOUNT}; : >{MOUNT}.file; ln {image} {top}/hard.img; ln -s shared.img {top}/soft.img")

    # A guest has it.
    sh(f"mount --bind {image} {MOUNT}.file")
    by = f"in use by guest {first.domid} for writing"
    for name in (top / "hard.img", top / "soft.img", f"{MOUNT}.file"):
        refused(second, name, by)
    refused(second, "./shared.img", by, access="r", directory=top)
    sh(f"umount {MOUNT}.file")
    loop = sh(f"losetup -f --show {image}").strip()
    not_served(env, second, loop, by)
    sh(f"losetup -d {loop}")
    # The guest itself may have it twice, also where nobody says which virtual machine it is.
    node = f"/local/domain/{first.domid}/vm"
    vm = env.store.read(node) or ""
    env.store.remove(node)
    given(first, image, "w")
    env.store.write(node, vm)
    first.shutdown()

    # Dom0 has it. What it has just given up is not held against it.
    sh(f"mkfs.ext4 -q -F {image}; mount -o loop {image} {MOUNT}")
    refused(second, image, "/dev/loop", f"mounted on {MOUNT}")
    refused(second, image, "/dev/loop", access="r")
    sh(f"umount {MOUNT}; mount -o loop,ro {image} {MOUNT}")
    refused(second, top / "hard.img", "/dev/loop", f"mounted on {MOUNT}")
    given(second, image, "r")
    sh(f"umount {MOUNT}")
    with image.open("r+b"):
        refused(second, image, "process", "python3")
    given(second, image, "w")

    # A loop device may be given, and its partitions to two guests, but not the file besides.
    partition(image, (2048, 4096), (6144, 4096))
    loop = sh(f"losetup -P -f --show {image}; udevadm settle").strip()
    env.backend, env.driver = "loop", DRIVER["rs"]  # here, a loop device is as it should be
    third = env.guest(f"phy:{loop}p1,xvda,w")
    command("xl", "block-attach", second.name, f"phy:{loop}p2,xvdc,w")
    second.wait_disks("xvdc")
    second.sh("dd if=/dev/zero of=/dev/xvdc bs=64k oflag=direct 2>/dev/null; true")
    not_served(env, second, loop, f"{image}: already in use by guest {third.domid}")
    second.detach("xvdc")
    third.shutdown()
    sh(f"losetup -d {loop}")
    env.backend = "rs"

    swap = env.file("ext4", "swap.img", 8 << 20, fill="swap")
    sh(f"chmod 600 {swap}; mkswap {swap} >/dev/null 2>&1; swapon {swap}")
    for access in ("w", "r"):
        refused(second, swap, "swap", access=access)
    sh(f"swapoff {swap}")
    given(second, swap, "w")
    second.destroy()
