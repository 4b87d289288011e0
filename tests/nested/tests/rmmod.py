"""The module is unloaded and loaded again and again: refused while a guest has a disk, whole afterwards."""

from lib.basics import check, equal, log, run as command, sh
from lib.env import Env

BACKENDS = ("rs", "loop")
TIMEOUT = 420
ESTIMATE = 60
CYCLES = 50
WITH_DISK = 10  # in every tenth cycle a guest uses the module


def run(env: Env) -> None:
    image = env.file("ext4", "disk", 8 << 20)
    guest = env.guest(env.disk(image))
    guest.sh("while :; do dd if=/dev/zero of=/dev/xvda bs=64k count=64 oflag=direct; done >/dev/null 2>&1 &")
    refused(env)
    guest.sh("dd if=/dev/xvda of=/dev/null bs=64k count=4 iflag=direct")  # and the refusal did no harm
    guest.destroy()
    guest = env.guest()
    for cycle in range(env.count(CYCLES)):
        done = command("rmmod", env.driver)
        equal(done.returncode, 0, f"rmmod of the unused module ({done.stderr.strip()})")
        check(env.driver not in loaded(), "the module is still there")
        if cycle % WITH_DISK:
            sh(f"modprobe {env.driver}")
            continue
        guest.attach(env.disk(image, "xvdb"))  # udev loads the module
        guest.check_served("xvdb")
        guest.sh(f"echo loaded {cycle} | dd of=/dev/xvdb bs=4096 seek={cycle} conv=sync,fsync iflag=fullblock")
        refused(env)
        guest.detach("xvdb")
        log(f"cycle {cycle} done")
    guest.destroy()


def refused(env: Env) -> None:
    done = command("rmmod", env.driver)
    check(
        done.returncode != 0 and "in use" in done.stderr,
        f"rmmod while in use: {done.returncode} {done.stderr.strip()!r}",
    )
    check(env.driver in loaded(), "the module went away while in use")


def loaded() -> set[str]:
    with open("/proc/modules") as file:
        return {line.split()[0] for line in file}
