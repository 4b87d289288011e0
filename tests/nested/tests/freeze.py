"""A file system that is frozen under a guest's writes holds up those alone: reads of the same ring go on."""

from lib.basics import check, equal, log, read, sh, wait_for
from lib.env import Env

BACKENDS = ("rs",)
TIMEOUT = 200
ESTIMATE = 40
KINDS = ("ext4", "xfs")
TIMES = 8
LONG = 10
FIO = (
    "fio --filename=/dev/{0} --ioengine=libaio --direct=1 --bs=4k --time_based --runtime=1000 --size=8m "
    "--name=w --rw=randwrite --iodepth=12 --name=r --rw=randread --iodepth=2 >/tmp/{0} 2>&1 & echo $! >/tmp/{0}.pid"
)


def run(env: Env) -> None:
    vdevs = dict(zip(KINDS, ("xvda", "xvdb")))
    guest = env.guest(*(env.disk(env.file(kind, "disk", 16 << 20, fill=kind), vdev) for kind, vdev in vdevs.items()))
    for kind, vdev in vdevs.items():
        mount, statistics = env.fs(kind), guest.statistics(vdev)
        env.at_end(f"fsfreeze -u {mount} 2>/dev/null || true")
        guest.sh(FIO.format(vdev))

        def done(name: str) -> int:
            return int(read(f"{statistics}/{name}"))

        for _ in range(env.count(TIMES)):
            writes = done("wr_req")
            wait_for(lambda: done("wr_req") > writes + 20, 20, "writes to go on")
            sh(f"fsfreeze -f {mount}")
            writes = done("wr_req")
            for _ in range(3):
                reads = done("rd_req")
                wait_for(lambda: done("rd_req") > reads + 5, 15, f"reads of a file on {kind} that is frozen to go on")
            check(done("wr_req") <= writes + 12, f"{done('wr_req') - writes} writes to a file on {kind} that is frozen")
            sh(f"fsfreeze -u {mount}")
        log(f"{kind}: frozen {env.count(TIMES)} times; {done('rd_req')} reads, {done('wr_req')} writes")
        text = guest.sh(
            f"kill -INT $(cat /tmp/{vdev}.pid); while kill -0 $(cat /tmp/{vdev}.pid) 2>/dev/null; do sleep 0.1; done; "
            f"grep err= /tmp/{vdev}"
        )
        equal(text.count("err= 0"), 2, f"jobs without an error, of {text}")
    guest.shutdown()
