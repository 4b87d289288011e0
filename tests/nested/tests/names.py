"""A file is the one that xl sees: a relative path is one of xl's directory, and in a mount namespace of its own xl gets no other file."""

from __future__ import annotations

from lib.basics import check, equal, read, run as command, sh, wait_for
from lib.env import DRIVER, Env, md5
from lib.guest import Guest, vdev_number

BACKENDS = ("rs", "loop")
TIMEOUT = 240
ESTIMATE = 30
ONLY_LONG = True
LONG = 1


def run(env: Env) -> None:
    top = env.fs("ext4")
    sh(f"mkdir -p {top}/pub {top}/priv {top}/only")
    public = env.file("ext4", "pub/x.img", 1 << 20, fill="public")
    private = env.file("ext4", "priv/x.img", 1 << 20, fill="private")
    guest = env.guest()
    disk = "format=raw,vdev=xvdb,access={}".format

    # Relative to where xl is, in any spelling.
    for name in ("x.img", "../priv/x.img"):
        done = command("sh", "-c", f"cd {top}/priv && xl block-attach {guest.name} {disk('w')},target={name}")
        equal(done.returncode, 0, f"{name}: {done.stderr.strip()}")
        got(guest, md5(private), name)
        check(env.backend != "rs" or not env.loops(), f"{name}: a loop device: {env.loops()}")
        guest.detach("xvdb")

    # Under this name xl sees one file, and init another.
    def attach(access: str, target: object, over: str = "pub") -> tuple[int, str]:
        done = command("unshare", "-m", "sh", "-c", f"mount --bind {top}/priv {top}/{over} && xl block-attach {guest.name} "
                       f"{disk(access)},target={target}")
        return done.returncode, done.stderr

    code, text = attach("r", public)
    if env.backend == "rs":
        check(code and f"{public}: the toolstack sees another file" in text, f"not refused by name: [{code}] {text.strip()}")
        check(guest.run("[ -e /dev/xvdb ]").code, "the guest has a disk")
        # The driver has let go of what it has opened.
        state = f"/sys/kernel/debug/xen-blkback-rs/vbd-{guest.domid}-{vdev_number('xvdb')}/state"
        wait_for(lambda: "medium: refused" in read(state), 10, "the medium given up")
        sh(f"xl block-detach {guest.name} xvdb >/dev/null 2>&1 || true")
        env.parameter("keep_script", "Y")
        env.backend, env.driver = "loop", DRIVER["rs"]  # here, a loop device is as it should be
        code, text = attach("r", public)
    equal(code, 0, f"with the stock script: {text.strip()}")
    got(guest, md5(private), "what xl sees, by the stock script")
    guest.detach("xvdb")

    # There is no such file for init: it is the stock script's.
    code, text = attach("w", f"{top}/only/x.img", "only")
    equal(code, 0, f"a file that only xl sees: {text.strip()}")
    got(guest, md5(private), "a file that only xl sees")
    guest.destroy()


def got(guest: Guest, want: str, what: str) -> None:
    guest.wait_disks("xvdb")
    equal(guest.sh("md5sum </dev/xvdb").split()[0], want, what)
