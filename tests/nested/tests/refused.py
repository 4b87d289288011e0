"""Disks that must be refused are, with a reason that xl prints and nothing left behind; allowed sharing works."""

from pathlib import Path

from lib.basics import check, log, run as command, sh, wait_for
from lib.env import Env
from lib.guest import Guest, vdev_number

BACKENDS = ("rs", "loop")
TIMEOUT = 420
ESTIMATE = 85

# The words of which one must be in xl's message (in any case of letters). The peer's are those of Debian's script.
WORDS = {
    "rs": {
        "missing": ["no such file", "failed to stat", "does not exist"],
        "directory": ["directory", "not a", "no suitable"],
        "immutable": ["permission"],
        "read-only file system": ["read-only"],
        "in use": ["in use"],
        "empty": ["empty"],
        "write-protected": ["is read-only, and so i will not"],
    },
    "loop": {
        "missing": ["no such file", "failed to stat"],
        "directory": ["directory", "not a", "no suitable"],
        "immutable": ["losetup", "denied", "permitted"],
        "write-protected": ["is read-only, and so i will not"],
    },
}


def run(env: Env) -> None:
    holder = env.guest()
    other = env.guest()

    def refused(what: str, target: Path, *, guest: Guest = other, access: str = "w", more: str = "") -> None:
        """xl block-attach must fail, say why, and leave no trace."""
        words = WORDS[env.backend][what]
        before = env.backends(), env.loops()
        done = guest.try_attach(more + env.disk(target, "xvdb", access=access))
        text = done.stdout + done.stderr
        log(f"{what}: [{done.returncode}] {text.strip()}")
        check(
            done.returncode != 0 and text.strip(),
            f"{what}: xl block-attach ended with {done.returncode} and said {text!r}",
        )
        check(
            not words or any(word in text.lower() for word in words),
            f"{what}: none of {words} in xl's message: {text.strip()}",
        )
        if env.backends() != before[0]:
            # libxl leaves the directory of a disk that its script refused, whichever script; Debian's complains again.
            command("xl", "block-detach", guest.name, str(vdev_number("xvdb")))
        if env.backend == "rs" and not more:
            check(str(target) in text, f"{what}: xl's message does not name {target}: {text.strip()}")
        wait_for(lambda: (env.backends(), env.loops()) == before, 15, f"{what}: nothing left behind")
        check(guest.run("[ -e /dev/xvdb ]").code != 0, f"{what}: the guest has the disk all the same")

    def allowed(target: str | Path, guest: Guest = other, access: str = "w") -> None:
        guest.attach(env.disk(target, "xvdb", access=access))
        guest.check_served("xvdb")
        guest.sh("dd if=/dev/xvdb of=/dev/null bs=64k iflag=direct")

    def excluded(target: Path, access: str = "w") -> None:
        """Another guest has the file. The stock script compares device numbers in hexadecimal with those of losetup -a,
        which are decimal in Debian 13, and so finds nobody."""
        if env.backend == "rs":
            refused("in use", target, access=access)

    ext4 = env.fs("ext4")
    good = env.file("ext4", "good", 1 << 20, fill="good")

    refused("missing", ext4 / "none")
    (ext4 / "dir").mkdir()
    # libxl sees to it by itself; without the type it would try qemu.
    refused("directory", ext4 / "dir", more="backendtype=phy,")
    frozen = env.file("ext4", "frozen", 1 << 20, fill="frozen")
    sh(f"chattr +i {frozen}")
    refused("immutable", frozen)
    allowed(frozen, access="r")
    other.detach("xvdb")
    sh(f"chattr -i {frozen}")
    golden = env.file("ext4", "golden", 1 << 20, fill="golden")
    golden.chmod(0o444)
    refused("write-protected", golden)
    allowed(golden, access="r")
    other.detach("xvdb")
    if env.backend == "rs":  # losetup takes an empty file
        refused("empty", env.file("ext4", "empty", 0))

    xfs = env.file("xfs", "disk", 1 << 20, fill="on xfs")
    sh(f"mount -o remount,ro {xfs.parent}")
    try:
        if env.backend == "rs":  # losetup makes a device of it that cannot be written, and says nothing
            refused("read-only file system", xfs)
        allowed(xfs, access="r")
        other.detach("xvdb")
    finally:
        sh(f"mount -o remount,rw {xfs.parent}")

    # Sharing. Two names of one file are the same disk.
    link = ext4 / "link"
    link.hardlink_to(good)
    allowed(good, holder)
    excluded(good)
    excluded(link)
    excluded(good, access="r")
    holder.detach("xvdb")
    allowed(good, holder, access="r")
    excluded(good)
    allowed(link, other, access="r")
    other.detach("xvdb")
    holder.detach("xvdb")
    allowed(good)  # and after all this it is free again
    other.detach("xvdb")

    # A device that a guest writes is not to be mounted in dom0; the in-tree driver does not see to it.
    device = env.device(8)
    sh(f"mkfs.ext4 -q -F {device}")
    allowed(device)
    done = command("mount", "-o", "ro,noload", device, "/mnt")
    other.detach("xvdb")
    if done.returncode == 0:
        sh("umount /mnt")
    check(
        env.backend != "rs" or done.returncode != 0,
        f"mount of a guest's device: [{done.returncode}] {done.stderr.strip()}",
    )

    # The same through xl create: no domain stays.
    broken = env.new_guest(env.disk(ext4 / "none", "xvda"))
    done = broken.try_create()
    check(done.returncode != 0, "xl create with a missing file succeeded")
    if env.backend == "rs":
        again = env.new_guest(env.disk(env.file("ext4", "empty", 0), "xvda"))
        done = again.try_create()
        check(
            done.returncode != 0 and "empty" in done.stderr,
            f"xl create with an empty file: {done.returncode} {done.stderr!r}",
        )
    wait_for(lambda: env.domains() == {holder.domid, other.domid}, 20, "no domain left of a failed xl create")
    holder.destroy()
    other.destroy()
