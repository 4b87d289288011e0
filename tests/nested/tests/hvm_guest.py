"""An HVM guest, which qemu emulates disks for until its own driver takes over, boots from a file and from a device through us."""

from lib.basics import check, equal, sh
from lib.env import Env
from tests.root_on_file import TEMPLATE

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 300
ESTIMATE = 60


def run(env: Env) -> None:
    for target in (str(env.file("ext4", "root", 64 << 20)), env.device(64)):
        sh(f"dd if={TEMPLATE} of={target} bs=1M conv=fsync status=none")
        disc = env.file("xfs", "disc", 2 << 20, fill="disc")
        guest = env.guest(env.disk(target), kind="hvm", extra="root=/dev/xvda", drives=(f"format=raw,vdev=hdc,access=r,devtype=cdrom,target={disc}",))
        check("/dev/xvda / ext4 rw" in guest.sh("cat /proc/mounts"), "the guest's root is not on its disk")
        guest.sh("dd if=/dev/urandom of=/file bs=64k count=32; sync; echo 3 >/proc/sys/vm/drop_caches")
        want = guest.sh("md5sum </file").split()[0]
        guest.sh("mount -o remount,ro /")
        guest.shutdown()
        equal(sh(f"fsck.ext4 -fn {target} >/dev/null && debugfs -R 'cat /file' {target} 2>/dev/null | md5sum").split()[0], want,
              "checksum of the guest's file, read from dom0")
