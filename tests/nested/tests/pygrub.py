"""pygrub reads the kernel of a PV guest out of a raw file, and the guest then boots from that file."""

import shutil
from pathlib import Path

from lib.basics import check, sh
from lib.env import Env
from lib.guest import KERNEL, RAMDISK

BACKENDS = ("rs", "loop")
TIMEOUT = 240
ESTIMATE = 45
TREE = Path("/run/xb-pygrub")


def run(env: Env) -> None:
    grub = TREE / "boot/grub"
    grub.mkdir(parents=True)
    env.at_end(f"rm -rf {TREE}")
    shutil.copy(KERNEL, TREE / "boot/vmlinux")
    shutil.copy(RAMDISK, TREE / "boot/initrd")
    (grub / "grub.cfg").write_text(
        "set default=0\nset timeout=0\nmenuentry 'guest' {\n  set root='(hd0)'\n"
        "  linux /boot/vmlinux console=hvc0 from.grub\n  initrd /boot/initrd\n}\n"
    )
    image = env.file("ext4", "bootable", 192 << 20)
    sh(f"mkfs.ext2 -q -F -d {TREE} {image}", timeout=120)
    guest = env.guest(env.disk(image), bootloader="pygrub")
    check("from.grub" in guest.sh("cat /proc/cmdline"), "the guest was not booted by pygrub")
    guest.sh("modprobe ext4 && mount -t ext4 /dev/xvda /mnt && touch /mnt/seen && umount /mnt")
    guest.shutdown()
    check("seen" in sh(f"debugfs -R 'ls /' {image} 2>/dev/null"), "what the guest wrote is not in the file")
