"""Several queues and rings of several pages, alone and together, each with verified traffic, and again after a
reboot."""

from lib.basics import equal
from lib.env import Env

BACKENDS = ("rs", "loop")
TIMEOUT = 240
ESTIMATE = 70
FIO = (
    "fio --name=v --filename=/dev/{0} --rw=randrw --size=3m --bsrange=512-256k --iodepth=48 --numjobs={1}"
    " --offset_increment=3m --ioengine=libaio --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --verify_dump=0"
    " --thread --minimal >/tmp/fio 2>&1 || {{ tail -c 1500 /tmp/fio; exit 1; }}"
)


def run(env: Env) -> None:
    image, device = env.file("ext4", "disk", 16 << 20), env.device(16)
    # dom0 may have one processor only, and offers as many queues.
    env.parameter("max_queues", 4)
    for vcpus, order in ((2, 0), (1, 4), (2, 2)):
        # With persistent grants the frontend keeps 64 MiB for a ring of 16 pages.
        guest = env.guest(
            env.disk(image, "xvda"),
            env.disk(device, "xvdb"),
            vcpus=vcpus,
            memory=512,
            extra=f"xen_blkfront.max_ring_page_order={order}",
        )
        for vdev in ("xvda", "xvdb"):
            front = env.store.read(f"{guest.backend(vdev)}/frontend")
            equal(env.store.read(f"{front}/multi-queue-num-queues") or "1", str(vcpus), f"queues of {vdev}")
            equal(env.store.read(f"{front}/ring-page-order") or "0", str(order), f"ring order of {vdev}")
            guest.sh(FIO.format(vdev, vcpus), timeout=100)
        guest.shutdown()
