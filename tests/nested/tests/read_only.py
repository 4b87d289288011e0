"""A disk with access=r: the guest cannot write it, not even after blockdev --setrw, and no byte of it changes."""

from lib.basics import check, equal
from lib.env import Env, md5, write_pattern

BACKENDS = ("rs", "loop")  # Debian's qemu refuses read-only disks of PV guests: "Block node is read-only"
TIMEOUT = 180
ESTIMATE = 20
# Succeeds if either kind of write does.
WRITE = (
    "dd if=/dev/zero of=/dev/{0} bs=4096 count=4 oflag=direct || dd if=/dev/zero of=/dev/{0} bs=512 count=1 conv=fsync"
)


def run(env: Env) -> None:
    image = env.file("ext4", "disk", 4 << 20, fill="read only")
    device = env.device(4)
    write_pattern(device, 4 << 20, "read only device")
    want = {"xvda": md5(image), "xvdb": md5(device)}
    guest = env.guest(env.disk(image, "xvda", access="r"), env.disk(device, "xvdb", access="r"))
    for vdev, sum_of_data in want.items():
        equal(guest.sh(f"blockdev --getro /dev/{vdev}").strip(), "1", f"{vdev} announced as read-only")
        equal(guest.sh(f"md5sum </dev/{vdev}").split()[0], sum_of_data, f"{vdev} as the guest reads it")
        guest.fails(WRITE.format(vdev))
        guest.fails(f"blockdev --setrw /dev/{vdev}; " + WRITE.format(vdev))
        mode = env.store.read(f"{guest.backend(vdev)}/mode")
        check(mode == "r", f"mode node of {vdev} is {mode}")
    guest.shutdown()
    equal(md5(image), want["xvda"], "the file's checksum afterwards")
    equal(md5(device), want["xvdb"], "the device's checksum afterwards")
