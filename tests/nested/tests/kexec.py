"""A guest starts another kernel by kexec, and has its disks again; the toolstack resets the domain meanwhile."""

from lib.basics import log
from lib.env import Env
from lib.guest import HVM_KERNEL, RAMDISK

BACKENDS = ("rs", "loop")
TIMEOUT = 300
ESTIMATE = 60
PAD = 1 << 20


def run(env: Env) -> None:
    parts = [open(path, "rb").read() for path in (HVM_KERNEL, RAMDISK)]
    kernel = env.file("ext4", "kernel", 0)
    with kernel.open("wb") as file:
        for part in parts:
            file.write(part + b"\0" * (-len(part) % PAD))
    guest = env.guest(env.disk(env.file("ext4", "disk", 8 << 20), "xvda"), env.disk(env.device(8), "xvdb"),
                      env.disk(kernel, "xvdc"), kind="hvm", memory=384)
    skip = -(-len(parts[0]) // PAD)
    guest.sh(f"dd if=/dev/xvdc bs=1M count={skip} of=/tmp/kernel; dd if=/dev/xvdc bs=1M skip={skip} of=/tmp/ramdisk;"
             "kexec -s -l /tmp/kernel --initrd=/tmp/ramdisk --reuse-cmdline", 120)
    guest.sh("echo before | dd of=/dev/xvda bs=4k conv=sync,notrunc,fsync oflag=direct iflag=fullblock; cat /proc/uptime")
    guest.sh("(while dd if=/dev/xvda of=/dev/xvdb bs=64k iflag=direct oflag=direct; do :; done) >/dev/null 2>&1 &")
    guest.kexec()
    log(guest.sh("cat /proc/uptime"))
    guest.check_served("xvda", "xvdb")
    guest.sh("dd if=/dev/xvda bs=4k count=1 iflag=direct | grep -q ^before && dd if=/dev/zero of=/dev/xvdb bs=64k count=16 oflag=direct conv=notrunc")
    guest.shutdown()
