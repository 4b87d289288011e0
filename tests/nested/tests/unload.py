"""rmmod: refused while a disk is in use, clean otherwise, 50 times in a row with a disk served in between."""

from __future__ import annotations

from lib.basics import check, read, run as command, wait_for
from lib.env import Env

BACKENDS = ("rs", "loop")
TIMEOUT = 300
ESTIMATE = 60


def run(env: Env) -> None:
    image = env.file("ext4", "disk", 4 << 20, fill="disk")
    guest = env.guest(env.disk(image))
    done = command("rmmod", env.driver)
    check(done.returncode != 0 and "in use" in done.stderr, f"rmmod with a disk in use: {done.returncode} {done.stderr}")
    guest.sh("dd if=/dev/xvda of=/dev/null bs=64k iflag=direct")
    guest.shutdown()

    def loaded() -> bool:
        return any(line.split()[0] == env.driver for line in read("/proc/modules").splitlines())

    def unload() -> bool:
        """The last reference goes a moment after the device does."""
        return command("rmmod", env.driver).returncode == 0

    for _ in range(50):
        wait_for(unload, 10, f"{env.driver} unloaded")
        check(not loaded(), f"{env.driver} is still there after rmmod")
        check(command("modprobe", env.driver).returncode == 0, f"modprobe {env.driver} failed")
    # And it still works.
    env.guest(env.disk(image)).shutdown()
