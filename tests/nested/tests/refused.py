"""Files that a guest cannot have: xl fails, prints the file and the reason, and nothing stays behind.

Also the sharing check: one writer or many readers, forced by w!, and allowed again once the other guest is gone.
"""

from __future__ import annotations

import os
from pathlib import Path

from lib.basics import check, equal, sh
from lib.env import Env

BACKENDS = ("rs",)
TIMEOUT = 240
ESTIMATE = 60


def run(env: Env) -> None:
    good = env.file("ext4", "good", 4 << 20, fill="good")
    ext4 = good.parent
    guest = env.guest(env.disk(good))

    def refused(disk: str, *words: str) -> None:
        """Neither attaching nor creating works, and the message has all the words."""
        before = env.backends()
        done = guest.try_attach(disk)
        text = done.stdout + done.stderr
        check(done.returncode != 0, f"xl block-attach {disk} succeeded")
        for word in words:
            check(word in text, f"xl block-attach {disk} does not say {word!r}:\n{text}")
        equal(env.backends(), before, f"backend nodes after the refused {disk}")

    refused(env.disk(ext4 / "missing", "xvdb"), str(ext4 / "missing"))
    (ext4 / "directory").mkdir()
    # Left to itself, libxl would try qemu with a directory.
    refused(f"format=raw,vdev=xvdb,access=w,backendtype=phy,target={ext4 / 'directory'}", "no suitable backend", "xvdb")

    empty = ext4 / "empty"
    empty.touch()
    refused(env.disk(empty, "xvdb"), str(empty), "empty", "truncate")

    immutable = env.file("ext4", "immutable", 1 << 20)
    sh(f"chattr +i {immutable}")
    refused(env.disk(immutable, "xvdb"), str(immutable), "writing", "permission denied")
    sh(f"chattr -i {immutable}")

    read_only = Path("/run/read-only")
    read_only.mkdir()
    sh(f"mount --bind {ext4} {read_only} && mount -o remount,bind,ro {read_only}")
    other = env.file("ext4", "other", 1 << 20)
    refused(env.disk(read_only / "other", "xvdb"), str(read_only / "other"), "read-only file system")
    guest.attach(env.disk(read_only / "other", "xvdb", access="r"))
    guest.detach("xvdb")
    sh(f"umount {read_only}")

    # Sharing. The other name shows that it is the file that counts, not the path.
    os.link(good, ext4 / "alias")
    second = env.guest(env.disk(other))
    for disk in (env.disk(good, "xvdb"), env.disk(ext4 / "alias", "xvdb"), env.disk(good, "xvdb", access="r")):
        done = second.try_attach(disk)
        check(done.returncode != 0, f"{disk} was attached to a second guest")
        text = done.stdout + done.stderr
        check(f"in use by guest {guest.domid} for writing" in text, f"xl does not say who has the file:\n{text}")
    second.attach(env.disk(good, "xvdb", access="w!"))
    second.detach("xvdb")

    # The same file twice in one guest is its own business, as with the stock script.
    guest.attach(env.disk(good, "xvdb", access="r"))
    guest.detach("xvdb")

    # Any number of readers, no writer beside them.
    image = env.file("ext4", "shared", 1 << 20, fill="shared")
    guest.attach(env.disk(image, "xvdc", access="r"))
    second.attach(env.disk(image, "xvdc", access="r"))
    equal(guest.sh("md5sum </dev/xvdc"), second.sh("md5sum </dev/xvdc"), "what both guests read")
    done = second.try_attach(env.disk(image, "xvdd"))
    check("for reading" in done.stdout + done.stderr, "a writer beside readers: " + done.stdout + done.stderr)

    # Free again when the guest that had it is gone.
    guest.shutdown()
    second.attach(env.disk(good, "xvdb"))
    second.detach("xvdb")
    equal(env.loops(), [], "loop devices")
    second.shutdown()
