"""Drives: a medium is the file and not its name, an empty one is none, and both survive another driver instance in any
order of events."""

from __future__ import annotations

import os
from pathlib import Path

from lib.basics import check, equal, sh, wait_for
from lib.env import DRIVERS, Env, md5
from lib.guest import Guest

BACKENDS = ("rs",)
TIMEOUT = 300
ESTIMATE = 60
DRIVER = DRIVERS["rs"]


def run(env: Env) -> None:
    discs = [env.file("ext4", f"d{n}.iso", (n + 1) << 20, fill=f"d{n}") for n in range(4)]
    disk = env.file("ext4", "root", 4 << 20)
    guest = env.guest(
        env.disk(disk),
        *(f"format=raw,vdev={vdev},access=r,devtype=cdrom,target={discs[0]}" for vdev in ("xvdc", "xvdd")),
    )

    def put(vdev: str, params: str | Path) -> None:
        env.store.write(f"{guest.backend(vdev)}/params", str(params))

    def sees(vdev: str, medium: Path | None, what: str) -> None:
        guest.wait_size(vdev, medium.stat().st_size // 512 if medium else 0)
        if medium:
            # In the background: a read that is lost would hold up the guest's shell.
            guest.sh(
                f"rm -f /tmp/{vdev}; (dd if=/dev/{vdev} bs=64k iflag=direct 2>/dev/null | md5sum >/tmp/{vdev}.new; mv"
                f" /tmp/{vdev}.new /tmp/{vdev}) >/dev/null 2>&1 &"
            )
            wait_for(lambda: guest.run(f"[ -e /tmp/{vdev} ]").code == 0, 20, f"{what}: the disc to be read")
            equal(guest.sh(f"cat /tmp/{vdev}").split()[0], md5(medium), what)

    def names() -> list[str]:
        return [guest.bus_name(vdev) for vdev in ("xvda", "xvdc", "xvdd")]

    def rebind(vdev: str) -> None:
        name = guest.bus_name(vdev)
        sh(f"cd {DRIVER}; echo {name} >unbind; echo {name} >bind")

    def reload() -> None:
        sh(
            f"cd {DRIVER}; for name in {' '.join(names())}; do echo $name >unbind; done; cd /; rmmod {env.driver};"
            f" modprobe {env.driver}"
        )

    # A new file under the old name is a new medium, another name of the same one is not.
    new = env.file("ext4", "new.iso", 5 << 20, fill="new")
    os.rename(new, discs[0])
    put("xvdc", f"raw:{discs[0]}")
    sees("xvdc", discs[0], "a new file under the same name")
    link = discs[0].with_name("link.iso")
    link.hardlink_to(discs[0])
    changes = sum("medium changed" in line for line in env.kernel_log.lines())
    put("xvdc", link)

    # What was changed stays so; what was taken out stays out, and something can be put in again.
    put("xvdd", f"raw:{discs[1]}")
    sees("xvdd", discs[1], "changed")
    equal(
        sum("medium changed" in line for line in env.kernel_log.lines()),
        changes + 1,
        "changes, another name not being one",
    )
    rebind("xvdd")
    sees("xvdd", discs[1], "changed, and bound anew")
    put("xvdc", "")
    sees("xvdc", None, "ejected")
    rebind("xvdc")
    put("xvdc", discs[2])
    sees("xvdc", discs[2], "ejected, bound anew, and filled")
    put("xvdc", "raw:")
    put("xvdd", f"raw:{discs[3]}")
    sees("xvdc", None, "ejected")
    reload()
    sees("xvdd", discs[3], "changed, and the module loaded anew")
    put("xvdc", f"raw:{discs[1]}")
    sees("xvdc", discs[1], "ejected, the module loaded anew, and filled")

    # An empty file is an empty drive; so is one whose file has gone while nobody served the disk.
    nothing = env.file("ext4", "nothing", 0)
    put("xvdd", nothing)
    sees("xvdd", None, "an empty file put in")
    rebind("xvdd")
    put("xvdd", discs[2])
    sees("xvdd", discs[2], "an empty file, bound anew, and filled")
    sh(f"echo {names()[2]} >{DRIVER}/unbind")
    discs[2].unlink()
    sh(f"echo {names()[2]} >{DRIVER}/bind")
    sees("xvdd", None, "the file gone while nobody served the disk")
    check(
        any(f"{discs[2]}: cannot be opened for reading: no such file" in line for line in env.kernel_log.lines()),
        "no word of the file that is gone",
    )
    put("xvdd", discs[1])
    sees("xvdd", discs[1], "filled again")
    guest.sh("dd if=/dev/zero of=/dev/xvda bs=64k oflag=direct 2>/dev/null; [ $(blockdev --getsz /dev/xvda) -eq 8192 ]")
    guest.shutdown()

    # A guest of either kind starts with nothing in its drive.
    for kind in ("pv", "pvh"):
        started(env, kind, disk, discs[1])


def started(env: Env, kind: str, disk: Path, disc: Path) -> None:
    guest: Guest = env.new_guest(env.disk(disk), kind=kind, drives=("vdev=xvdc,devtype=cdrom,access=r",))
    done = guest.try_create()
    check(done.returncode == 0, f"{kind}: xl create: {(done.stdout + done.stderr).strip()}")
    guest.attached_after_create()
    equal(
        env.store.read(f"{guest.backend('xvdc')}/hotplug-status"),
        "connected",
        f"{kind}: what the toolstack was told of the empty drive",
    )
    if kind == "pvh":
        guest.shutdown()  # Linux leaves the drives of such a guest to a device model, which it does not have
        return
    wait_for(
        lambda: env.store.read(f"{guest.backend('xvdc')}/sectors") == "0",
        20,
        f"{kind}: the backend to connect the empty drive",
    )
    wait_for(lambda: guest.run("[ -e /sys/class/block/xvdc ]").code == 0, 20, f"{kind}: the drive in the guest")
    equal(guest.sh("cat /sys/class/block/xvdc/size").strip(), "0", f"{kind}: size of the empty drive")
    env.store.write(f"{guest.backend('xvdc')}/params", f"raw:{disc}")
    guest.wait_size("xvdc", disc.stat().st_size // 512)
    equal(guest.sh("md5sum </dev/xvdc").split()[0], md5(disc), f"{kind}: the disc put in")
    guest.shutdown()
