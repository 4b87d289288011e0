"""Without a module for the running kernel, or without xen-blkback-rs.conf, the in-tree driver serves: no dom0 is
without a backend."""

from lib.basics import check, equal, read, sh, wait_for
from lib.env import DRIVER, MODPROBE, RELOAD_UDEV, Env

BACKENDS = ("rs",)
TIMEOUT = 180
ESTIMATE = 35


def run(env: Env) -> None:
    image = env.file("ext4", "disk", 8 << 20)
    module = f"/lib/modules/{env.kver}/updates/xen-blkback-rs.ko"
    noticed = f"depmod {env.kver}; {RELOAD_UDEV}"
    back = (
        f"! [ -e /run/xen-blkback-rs.conf ] || mv /run/xen-blkback-rs.conf {MODPROBE}; "
        f"! [ -e /run/xen-blkback-rs.ko ] || mv /run/xen-blkback-rs.ko {module}; {noticed}; "
        "rmmod xen_blkback 2>/dev/null || true"
    )
    env.at_end(back)

    # As after an upgrade of the kernel: the module is another kernel's.
    sh(f"rmmod {env.driver} 2>/dev/null || true; mv {module} /run/; {noticed}")
    served_by_loop(env, image)
    wait_for(
        lambda: any("no module that kernel" in line and env.kver in line for line in env.kernel_log.lines()),
        10,
        "a word in the kernel's log about who serves",
    )
    # One that is there, but that this kernel does not take.
    sh(f"rmmod xen_blkback; echo nothing >{module}; {noticed}")
    served_by_loop(env, image)
    sh(f"rmmod xen_blkback; rm {module}; mv {MODPROBE} /run/; {noticed}")
    served_by_loop(env, image)

    sh(back)
    env.backend, env.driver = "rs", DRIVER["rs"]
    guest = env.guest(env.disk(image))
    equal(guest.served_by("xvda"), DRIVER["rs"], "who serves the disk with the files in place again")
    check("xen_blkback " not in read("/proc/modules"), "the in-tree driver is loaded, too")
    guest.shutdown()


def served_by_loop(env: Env, image: object) -> None:
    env.backend, env.driver = "loop", DRIVER["loop"]
    guest = env.guest(env.disk(str(image)))
    check(env.loops(), "no loop device: who serves the file?")
    guest.sh("dd if=/dev/zero of=/dev/xvda bs=64k count=4 oflag=direct")
    guest.shutdown()
