"""An HVM guest, which qemu emulates disks for until its own driver takes over, boots from a file and from a device through us.

Its CD drive is qemu's, as xl has it for HVM guests: a disc is put in and taken out there.
"""

from lib.basics import check, equal, sh
from lib.env import Env
from lib.guest import Guest
from tests.root_on_file import boot_from

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 300
ESTIMATE = 70


def run(env: Env) -> None:
    discs = [env.file("xfs", f"disc{number}", 2 << 20, fill=f"disc {number}") for number in range(2)]

    def change_disc(guest: Guest) -> None:
        drive = f"/local/domain/0/backend/qdisk/{guest.domid}/5632/params"
        for act, params in ((f"cd-insert {guest.name} hdc {discs[1]}", f"aio:{discs[1]}"), (f"cd-eject {guest.name} hdc", "")):
            said = sh(f"xl {act} 2>&1")
            check("error" not in said.lower(), f"xl {act}: {said}")
            equal(env.store.read(drive), params, f"what is in the drive after xl {act}")
            guest.check_served("xvda")
        guest.sh("dd if=/dev/xvda of=/dev/null bs=64k count=4 iflag=direct")

    for target in (env.file("ext4", "root", 64 << 20), env.device(64)):
        boot_from(env, target, change_disc, kind="hvm", drives=(f"format=raw,vdev=hdc,access=r,devtype=cdrom,target={discs[0]}",))
