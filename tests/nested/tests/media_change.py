"""The medium in a CD drive of a PV guest is changed and taken out by a changed `params` node, which no other backend
follows."""

from lib.basics import check, equal, log, sh, wait_for
from lib.env import Env, md5
from lib.guest import Guest

BACKENDS = ("rs",)
TIMEOUT = 180
ESTIMATE = 25


def run(env: Env) -> None:
    discs = [env.file("ext4", f"disc{number}", (number + 1) << 20, fill=f"disc {number}") for number in range(3)]
    guest = env.guest(
        env.disk(env.file("ext4", "disk", 8 << 20), "xvda"),
        f"format=raw,vdev=xvdc,access=r,devtype=cdrom,target={discs[0]}",
    )
    node = f"{guest.backend('xvdc')}/params"

    def holds(number: int) -> None:
        guest.wait_size("xvdc", (number + 1) << 11)
        equal(guest.sh("md5sum </dev/xvdc").split()[0], md5(discs[number]), f"disc {number}, read in the guest")

    holds(0)
    guest.fails("dd if=/dev/zero of=/dev/xvdc bs=4k count=1 oflag=direct")
    # As libxl writes it, and as a script would; each time in the middle of reading.
    for number, value in ((1, f"raw:{discs[1]}"), (2, str(discs[2])), (0, str(discs[0]))):
        guest.sh("dd if=/dev/xvdc of=/dev/null bs=64k iflag=direct >/dev/null 2>&1 &")
        env.store.write(node, value)
        holds(number)
    env.store.write(node, "")
    guest.wait_size("xvdc", 0)
    guest.fails("dd if=/dev/xvdc of=/dev/null bs=4k count=1 iflag=direct; [ $(blockdev --getsz /dev/xvdc) -gt 0 ]")
    env.store.write(node, str(discs[1]))
    holds(1)

    # What cannot be put in leaves in what there is, and says so.
    for bad, words in (("/mnt/scratch/ext4/none", "no such file"), ("/mnt/scratch/ext4", "only a regular file")):
        env.store.write(node, bad)
        wait_for(lambda: any(words in line for line in env.kernel_log.lines()), 10, f"the log to say {words!r}")
        holds(1)
    log(f"error node: {env.store.read(f'/local/domain/0/error/backend/vbd/{guest.domid}/51744/error')}")
    # A disk that is no drive keeps what it has.
    env.store.write(f"{guest.backend('xvda')}/params", str(discs[0]))
    guest.sh("dd if=/dev/zero of=/dev/xvda bs=1M count=8 oflag=direct && [ $(blockdev --getsz /dev/xvda) -eq 16384 ]")
    equal(md5(discs[0]), guest_md5(guest, discs[0], node, env), "the disc after a write to the disk")
    check(sh("losetup -a") == "", "a loop device is in use")
    guest.shutdown()


def guest_md5(guest: Guest, disc: object, node: str, env: Env) -> str:
    env.store.write(node, str(disc))
    guest.wait_size("xvdc", 1 << 11)
    return guest.sh("md5sum </dev/xvdc").split()[0]
