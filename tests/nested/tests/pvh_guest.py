"""A PVH guest, whose frontend runs in a hardware virtual machine, reads and writes a file and a device."""

from lib.env import Env

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 200
ESTIMATE = 25


def run(env: Env) -> None:
    image, device = env.file("ext4", "disk", 8 << 20), env.device(8)
    guest = env.guest(env.disk(image, "xvda"), env.disk(device, "xvdb"), kind="pvh", memory=128)
    for vdev in ("xvda", "xvdb"):
        guest.sh(f"dd if=/dev/urandom of=/tmp/data bs=64k count=40; dd if=/tmp/data of=/dev/{vdev} bs=64k oflag=direct &&"
                 f" dd if=/dev/{vdev} bs=64k count=40 iflag=direct | cmp - /tmp/data")
    guest.shutdown()
