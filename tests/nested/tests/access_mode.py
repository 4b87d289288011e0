"""A disk's access is the one with which its file was opened, whatever becomes of the node `mode`; `w!` shares a file
with anybody."""

from __future__ import annotations

from lib.basics import check, equal, read, sh, wait_for
from lib.env import Env, md5
from lib.guest import Guest, vdev_number

BACKENDS = ("rs",)
TIMEOUT = 120
ESTIMATE = 20
MOUNT = "/run/access-mode"


def run(env: Env) -> None:
    image = env.file("ext4", "image", 4 << 20, fill="image")
    before = md5(image)
    guest = env.guest(env.disk(env.file("ext4", "root", 1 << 20)))
    # As a toolstack would, but with the node changed before the script reports.
    for vdev, first, then in (("xvdb", "r", "w"), ("xvdc", "w", "r")):
        begin(env, guest, vdev, str(image), first)
        back = guest.backend(vdev)
        env.store.write(f"{back}/mode", then)
        env.store.write(f"{back}/hotplug-status", "connected")
        guest.wait_disks(vdev)
        equal(read(f"{guest.device(vdev)}/mode"), first, f"{vdev}: the mode")
        info = int(env.store.read(f"{back}/info") or "0")
        equal(bool(info & 4), first == "r", f"{vdev}: read-only for the guest")
        write = f"dd if=/dev/zero of=/dev/{vdev} bs=64k count=1 oflag=direct conv=notrunc"
        if first == "r":
            guest.fails(write)
            equal(md5(image), before, "the image that is read only")
        else:
            guest.sh(write)
            check(md5(image) != before, "a write to the writable disk has not arrived")
        end(env, guest, vdev)

    sh(f"mkfs.ext4 -q -F {image}; mkdir -p {MOUNT}; mount -o loop {image} {MOUNT}")
    env.at_end(f"umount {MOUNT} 2>/dev/null || true")
    begin(env, guest, "xvdd", str(image), "w!")
    equal(env.store.read(f"{guest.backend('xvdd')}/hotplug-error"), None, "w!: what is wrong")
    env.store.write(f"{guest.backend('xvdd')}/hotplug-status", "connected")
    guest.wait_disks("xvdd")
    guest.sh("dd if=/dev/xvdd of=/dev/null bs=64k iflag=direct")
    end(env, guest, "xvdd")
    sh(f"umount {MOUNT}")
    guest.destroy()


def begin(env: Env, guest: Guest, vdev: str, image: str, mode: str) -> None:
    """The directories of a disk, and the driver's first step."""
    back, front = guest.backend(vdev), f"/local/domain/{guest.domid}/device/vbd/{vdev_number(vdev)}"
    nodes = {
        front: {
            "backend": back,
            "backend-id": "0",
            "virtual-device": str(vdev_number(vdev)),
            "device-type": "disk",
            "state": "1",
        },
        back: {
            "frontend": front,
            "frontend-id": str(guest.domid),
            "online": "1",
            "params": image,
            "type": "phy",
            "mode": mode,
            "script": "/etc/xen/scripts/block",
            "dev": vdev,
            "device-type": "disk",
            "removable": "0",
            "state": "1",
        },
    }
    for directory, values in nodes.items():
        for node in ("state", *values):  # the first one makes the directory
            env.store.write(f"{directory}/{node}", values[node] if node != "state" else "0")
        owner, reader = (guest.domid, 0) if directory == front else (0, guest.domid)
        sh(f"xenstore-chmod -r {directory} n{owner} r{reader}")
    for directory in (front, back):
        env.store.write(f"{directory}/state", "1")
    wait_for(lambda: env.store.read(f"{back}/state") == "2", 20, f"{vdev}: the driver to be ready")


def end(env: Env, guest: Guest, vdev: str) -> None:
    back, front = guest.backend(vdev), f"/local/domain/{guest.domid}/device/vbd/{vdev_number(vdev)}"
    env.store.write(f"{back}/online", "0")
    env.store.write(f"{back}/state", "5")
    wait_for(lambda: env.store.read(f"{back}/state") in ("6", None), 20, f"{vdev}: the disk closed")
    env.store.remove(front)
    env.store.remove(back)
