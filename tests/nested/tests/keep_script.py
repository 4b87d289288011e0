"""With keep_script, or without our helper, the stock script makes a loop device of a file, which no data go through."""

from pathlib import Path

from lib.basics import check, equal, read, sh, wait_for
from lib.env import DRIVER, Env
from lib.guest import Guest

BACKENDS = ("rs",)
TIMEOUT = 180
ESTIMATE = 35
HELPER = "/etc/xen/scripts/block-rs"
SIZE = 8 << 20
MOVED = (1 << 20) // 512  # sectors that the guest writes, and reads


def run(env: Env) -> None:
    env.parameter("keep_script", "Y")
    env.backend, env.driver = "loop", DRIVER["rs"]  # a loop device is as it should be here
    image, other = env.file("ext4", "disk", SIZE), env.file("xfs", "other", SIZE)
    guest = env.guest(env.disk(image))
    is_handle(guest, "xvda", image)

    # The stock script finds no other guest: see the test refused.
    second = env.guest(memory=128)
    second.try_attach(env.disk(image, "xvdb"))
    wait_for(
        lambda: any(
            f"{image}: already in use by guest {guest.domid} for writing" in line for line in env.kernel_log.lines()
        ),
        15,
        "the file refused",
    )
    check(second.run("[ -e /dev/xvdb ]").code, "another guest has the file, too")
    second.destroy()

    # The administrator's own loop device is a block device like any other, also where it is all of a file.
    loop = sh(f"losetup -f --show {other}").strip()
    env.at_end(f"losetup -d {loop} 2>/dev/null || true")
    guest.attach(env.disk(loop, "xvdb"))
    check(f"block device 7:{loop[-1]}" in guest.debug_state("xvdb"), f"the disk on {loop}: {guest.debug_state('xvdb')}")
    guest.detach("xvdb")
    sh(f"losetup -d {loop}")

    # Without the parameter, and without the helper.
    sh(f"echo N >/sys/module/{env.driver}/parameters/keep_script; mv {HELPER} {HELPER}-away")
    env.at_end(f"[ ! -e {HELPER}-away ] || mv {HELPER}-away {HELPER}")
    guest.attach(env.disk(other, "xvdb"))
    check(any(f"{HELPER} is not installed" in line for line in env.kernel_log.lines()), "no word about the helper")
    is_handle(guest, "xvdb", other)
    guest.detach("xvdb")
    guest.destroy()
    wait_for(lambda: not env.loops(), 15, "the loop devices gone")
    equal(other.read_bytes()[:13], b"through xvdb\n", "what is in the file")


def sectors(loop: str) -> tuple[int, int]:
    """How many a device has read and written (Documentation/block/stat.rst)."""
    words = read(Path("/sys/block", Path(loop).name, "stat")).split()
    return int(words[2]), int(words[6])


def is_handle(guest: Guest, vdev: str, image: Path) -> None:
    """The file has a loop device, and the guest's data do not go through it; the file's new size is seen without a word
    to it."""
    loop = sh(f"losetup -n -O NAME -j {image}").strip()
    check(loop, f"{image} has no loop device")
    read_before, written_before = sectors(loop)
    check(f"medium: file {image} on" in guest.debug_state(vdev), f"the medium: {guest.debug_state(vdev)}")
    guest.sh(
        f"yes through {vdev} | dd of=/dev/{vdev} bs=64k count=16 oflag=direct iflag=fullblock; dd if=/dev/{vdev}"
        " of=/dev/null bs=64k count=16 iflag=direct"
    )
    # dom0's udev may look at what the device is.
    read_after, written_after = sectors(loop)
    check(read_after - read_before < MOVED, f"{loop} has read {read_after - read_before} sectors")
    equal(written_after, written_before, f"sectors that {loop} has written")
    sh(f"truncate -s {2 * SIZE} {image}")
    guest.wait_size(vdev, 2 * SIZE // 512)
