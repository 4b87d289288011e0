"""A running guest's file is replaced or deleted, and its file system becomes read-only: what the guest has goes on, and
nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path

from lib.basics import check, equal, log, read, run as command, sh, wait_for
from lib.env import Env, md5, write_pattern
from lib.guest import Guest

BACKENDS = ("rs",)
TIMEOUT = 240
ESTIMATE = 30
SIZE = 8 << 20
SPARE = 1 << 20  # that directories and the like may take
MOUNT = Path("/mnt/faults")
# The part that keep_verifying() leaves alone.
PART = "dd if=/dev/{} bs=1M count=4 iflag=direct 2>/dev/null | md5sum"


def run(env: Env) -> None:
    device = env.device(64)
    sh(f"mkfs.ext4 -q -F -E lazy_itable_init=0 {device}; mkdir -p {MOUNT}; mount -o errors=remount-ro {device} {MOUNT}")
    env.at_end(f"umount {MOUNT} || true")
    image, reader = make("disk"), make("reader")
    guest = env.guest(env.disk(image), env.disk(reader, "xvdb", access="r"))

    # Not read-only while a guest can write.
    guest.keep_verifying("xvda")
    done = command("mount", "-o", "remount,ro", str(MOUNT))
    check(
        done.returncode and "busy" in done.stderr,
        f"remount,ro under a guest that writes: [{done.returncode}] {done.stderr.strip()}",
    )

    # Replaced: the guest goes on with the file that it has, and the new one is what a new disk gets.
    old = guest.sh(PART.format("xvda"))
    other = make("other")
    new = md5(other)
    other.rename(image)
    guest.attach(env.disk(image, "xvdc"))
    equal(guest.sh("md5sum </dev/xvdc").split()[0], new, "the file that has taken the other's name")
    guest.sh("dd if=/dev/zero of=/dev/xvdc bs=1M count=4 oflag=direct conv=notrunc,fsync")
    guest.stop_verifying("xvda")
    equal(guest.sh(PART.format("xvda")), old, "the file that has lost its name")
    gives_back(guest, "xvda")

    # Deleted: the same, but there is no other.
    guest.keep_verifying("xvdc")
    before = free()
    image.unlink()
    guest.stop_verifying("xvdc")
    check(free() < before + SPARE, "the space of a file in use was given back")
    equal(
        guest.sh(PART.format("xvdc")).split()[0],
        sh(f"head -c {4 << 20} /dev/zero | md5sum").split()[0],
        "the file that was deleted",
    )
    gives_back(guest, "xvdc")

    # Read-only while a guest reads.
    sh(f"mount -o remount,ro {MOUNT}")
    equal(guest.sh("md5sum </dev/xvdb").split()[0], md5(reader), "what is read from a read-only file system")
    sh(f"mount -o remount,rw {MOUNT}")
    guest.detach("xvdb")

    # An error of the file system: no more writes, but reads; and when it has been mended, all that was written before.
    image = make("disk")
    guest.attach(env.disk(image))
    guest.sh("dd if=/dev/urandom of=/dev/xvda bs=1M count=4 iflag=fullblock oflag=direct conv=notrunc,fsync")
    written = guest.sh(PART.format("xvda"))
    guest.keep_verifying("xvda")
    wait_for(lambda: int(read(f"{guest.statistics('xvda')}/wr_req")) > 50, 30, "writes")
    sh(f"echo 1 >/sys/fs/ext4/{os.path.basename(os.path.realpath(device))}/trigger_fs_error")
    guest.stop_verifying("xvda", failed=True)
    guest.fails("dd if=/dev/zero of=/dev/xvda bs=4k count=1 oflag=direct conv=notrunc")
    equal(guest.sh(PART.format("xvda")), written, "what is read after an error of the file system")
    errors = {name: int(read(f"{guest.statistics('xvda')}/{name}")) for name in ("rd_err", "wr_err")}
    check(errors["wr_err"] > 0 and errors["rd_err"] == 0, f"{errors}")
    guest.detach("xvda")
    log(sh(f"umount {MOUNT}; e2fsck -fy {device} || [ $? = 1 ]; mount {device} {MOUNT}"))
    guest.attach(env.disk(image))
    equal(guest.sh(PART.format("xvda")), written, "what was written before the error")
    guest.keep_verifying("xvda")
    guest.stop_verifying("xvda")
    guest.shutdown()


def make(name: str) -> Path:
    path = MOUNT / name
    write_pattern(path, SIZE, name)
    return path


def free() -> int:
    sh("sync")
    state = os.statvfs(MOUNT)
    return state.f_bfree * state.f_frsize


def gives_back(guest: Guest, vdev: str) -> None:
    """A file without a name has its space until the disk is gone, and no longer."""
    before = free()
    guest.detach(vdev)
    wait_for(lambda: free() > before + SIZE - SPARE, 15, f"the space of {vdev}'s file given back")
