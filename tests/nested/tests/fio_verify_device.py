"""fio with checksums in every block, 512 bytes to 1 MiB, one and many in flight, on a block device, by two vCPUs."""

from lib.env import Env
from tests.fio_verify import fio

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 200
ESTIMATE = 35


def run(env: Env) -> None:
    guest = env.guest(env.disk(env.device(64)), vcpus=2)
    fio(guest, "xvda")
    guest.shutdown()
