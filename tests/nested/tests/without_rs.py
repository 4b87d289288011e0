"""Without xen-blkback-rs.conf everything is as before: the in-tree driver serves the disk, a file through a loop device."""

from lib.basics import check, equal, sh
from lib.env import DRIVER, MODPROBE, Env

BACKENDS = ("rs",)
TIMEOUT = 180
ESTIMATE = 25


def run(env: Env) -> None:
    image = env.file("ext4", "disk", 8 << 20)
    module = f"/lib/modules/{env.kver}/updates/xen-blkback-rs.ko"
    # `udevadm control --reload` succeeds and does nothing where udevd takes the message for one of the user 65534: the
    # credentials are missing when it was sent before udevd had accepted the connection.
    noticed = f"depmod {env.kver}; pkill -HUP -x systemd-udevd"
    back = f"! [ -e /run/xen-blkback-rs.ko ] || {{ mv /run/xen-blkback-rs.conf {MODPROBE}; mv /run/xen-blkback-rs.ko {module}; {noticed}; " \
           "rmmod xen_blkback 2>/dev/null || true; }"
    env.at_end(back)
    sh(f"rmmod {env.driver} 2>/dev/null || true; mv {MODPROBE} {module} /run/; {noticed}")
    env.backend, env.driver = "loop", DRIVER["loop"]
    guest = env.guest(env.disk(image))
    check(env.loops(), "no loop device: who serves the file?")
    guest.sh("dd if=/dev/zero of=/dev/xvda bs=64k count=4 oflag=direct")
    guest.shutdown()

    sh(back)
    env.backend, env.driver = "rs", DRIVER["rs"]
    guest = env.guest(env.disk(image))
    equal(guest.served_by("xvda"), DRIVER["rs"], "who serves the disk with the file in place again")
    guest.shutdown()
