"""A file is the one that xl sees: a relative path is one of xl's directory, and in a mount namespace of its own xl gets
no other file.

The stock script removes its loop device only where it finds the file under the name that it was made for. So each disk
is detached from where it was attached, as by an administrator who works there; from elsewhere the loop device stays,
with the in-tree driver as with this one."""

from __future__ import annotations

import subprocess

from lib.basics import check, equal, run as command, sh, wait_for
from lib.env import DRIVER, Env, md5
from lib.guest import Guest, vdev_number, without_complaint

BACKENDS = ("rs", "loop")
TIMEOUT = 240
ESTIMATE = 30


def run(env: Env) -> None:
    top = env.fs("ext4")
    sh(f"mkdir -p {top}/pub {top}/priv {top}/only")
    public = env.file("ext4", "pub/x.img", 1 << 20, fill="public")
    private = env.file("ext4", "priv/x.img", 1 << 20, fill="private")
    guest = env.guest()

    def attach(where: str, target: object, access: str = "w") -> subprocess.CompletedProcess[str]:
        return xl(where, "block-attach", guest.name, f"format=raw,vdev=xvdb,access={access},target={target}")

    def got_and_detach(where: str, attached: subprocess.CompletedProcess[str], what: str) -> None:
        equal(attached.returncode, 0, f"{what}: {attached.stderr.strip()}")
        guest.wait_disks("xvdb")
        equal(guest.sh("md5sum </dev/xvdb").split()[0], md5(private), what)
        check(env.backend != "rs" or not env.loops(), f"{what}: a loop device: {env.loops()}")
        detach(where, guest)

    # Relative to where xl is, in any spelling.
    there = f"cd {top}/priv"
    for name in ("x.img", "../priv/x.img"):
        got_and_detach(there, attach(there, name), name)

    # Under this name xl sees one file, and init another.
    over = f"mount --bind {top}/priv {top}/pub"
    done = attach(over, public, "r")
    if env.backend == "rs":
        check(
            done.returncode and f"{public}: the toolstack sees another file" in done.stderr,
            f"not refused by name: [{done.returncode}] {done.stderr.strip()}",
        )
        check(guest.run("[ -e /dev/xvdb ]").code, "the guest has a disk")
        # The driver has let go of what it has opened.
        wait_for(lambda: "medium: refused" in guest.debug_state("xvdb"), 10, "the medium given up")
        sh(f"xl block-detach {guest.name} xvdb >/dev/null 2>&1 || true")
        env.parameter("keep_script", "Y")
        env.backend, env.driver = "loop", DRIVER["rs"]  # here, a loop device is as it should be
        done = attach(over, public, "r")
    got_and_detach(over, done, "what xl sees, by the stock script")

    # There is no such file for init: it is the stock script's.
    only = f"mount --bind {top}/priv {top}/only"
    got_and_detach(only, attach(only, f"{top}/only/x.img"), "a file that only xl sees")
    guest.destroy()


def xl(where: str, *words: str) -> subprocess.CompletedProcess[str]:
    """xl where WHERE has been done, in a mount namespace of its own."""
    return command("unshare", "-m", "sh", "-c", f'{where} && exec xl "$@"', "xl", *words)


def detach(where: str, guest: Guest) -> None:
    without_complaint(xl(where, "block-detach", guest.name, str(vdev_number("xvdb"))))
