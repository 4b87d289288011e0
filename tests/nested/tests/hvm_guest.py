"""An HVM guest, which qemu emulates disks for until its own driver takes over, boots from a file and from a device
through us.

Its CD drive is qemu's, as xl has it for HVM guests: a disc is put in and taken out there. One of them starts another
kernel by kexec; the toolstack resets the domain and makes its disks anew."""

from pathlib import Path

from lib.basics import check, equal, sh
from lib.env import Env
from lib.guest import HVM_KERNEL, RAMDISK, Guest
from tests.root_on_file import boot_from

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 400
ESTIMATE = 100
PAD = 1 << 20


def run(env: Env) -> None:
    discs = [env.file("xfs", f"disc{number}", 2 << 20, fill=f"disc {number}") for number in range(2)]

    def change_disc(guest: Guest) -> None:
        drive = f"/local/domain/0/backend/qdisk/{guest.domid}/5632/params"
        for act, params in (
            (f"cd-insert {guest.name} hdc {discs[1]}", f"aio:{discs[1]}"),
            (f"cd-eject {guest.name} hdc", ""),
        ):
            said = sh(f"xl {act} 2>&1")
            check("error" not in said.lower(), f"xl {act}: {said}")
            equal(env.store.read(drive), params, f"what is in the drive after xl {act}")
            guest.check_served("xvda")
        guest.sh("dd if=/dev/xvda of=/dev/null bs=64k count=4 iflag=direct")

    parts = [Path(path).read_bytes() for path in (HVM_KERNEL, RAMDISK)]
    kernel = env.file("ext4", "kernel", 0)
    kernel.write_bytes(b"".join(part + b"\0" * (-len(part) % PAD) for part in parts))
    skip = -(-len(parts[0]) // PAD)

    def kexec(guest: Guest) -> None:
        change_disc(guest)
        guest.wait_disks("xvdb")
        guest.sh(
            f"dd if=/dev/xvdb bs=1M count={skip} of=/tmp/kernel; dd if=/dev/xvdb bs=1M skip={skip} of=/tmp/ramdisk;"
            "kexec -s -l /tmp/kernel --initrd=/tmp/ramdisk --reuse-cmdline",
            120,
        )
        guest.keep_reading("xvda")
        guest.kexec()
        guest.check_served("xvda", "xvdb")

    drive = f"format=raw,vdev=hdc,access=r,devtype=cdrom,target={discs[0]}"
    boot_from(
        env, env.file("ext4", "root", 64 << 20), kexec, kind="hvm", memory=384, drives=(drive, env.disk(kernel, "xvdb"))
    )
    boot_from(env, env.device(64), change_disc, kind="hvm", drives=(drive,))
