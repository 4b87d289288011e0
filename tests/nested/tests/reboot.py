"""A guest that reboots has its disks again, each time in a new domain, and what it wrote is there."""

from lib.env import Env

BACKENDS = ("rs", "loop")
TIMEOUT = 240
ESTIMATE = 40
LONG = 2
ONLY_LONG = True  # the short one is in root_on_file
REBOOTS = 1


def run(env: Env) -> None:
    for kind in ("pv", "pvh", "hvm"):
        guest = env.guest(
            env.disk(env.file("ext4", f"disk-{kind}", 8 << 20), "xvda"),
            env.disk(env.device(8), "xvdb"),
            kind=kind,
            memory=128,
            on_reboot="restart",
        )
        for number in range(env.count(REBOOTS)):
            guest.sh(
                f"for d in xvda xvdb; do echo boot {number} | dd of=/dev/$d bs=4k conv=sync,notrunc,fsync oflag=direct"
                " iflag=fullblock; done"
            )
            guest.keep_reading("xvda")
            guest.reboot()
            guest.check_served("xvda", "xvdb")
            guest.sh(
                f"for d in xvda xvdb; do dd if=/dev/$d bs=4k count=1 iflag=direct | grep -q '^boot {number}' || exit 1;"
                " done"
            )
        guest.shutdown()
