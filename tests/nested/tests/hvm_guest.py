"""An HVM guest, which qemu emulates disks for until its own driver takes over, boots from a file and from a device through us."""

from lib.env import Env
from tests.root_on_file import boot_from

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 300
ESTIMATE = 60


def run(env: Env) -> None:
    disc = env.file("xfs", "disc", 2 << 20, fill="disc")
    for target in (env.file("ext4", "root", 64 << 20), env.device(64)):
        # The drive is qemu's, as xl has it for HVM guests.
        boot_from(env, target, kind="hvm", drives=(f"format=raw,vdev=hdc,access=r,devtype=cdrom,target={disc}",))
