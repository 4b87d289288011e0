"""Storage with sectors of 4096 bytes: a device shows them to the guest; a file on it still takes requests of 512
bytes."""

from lib.basics import check, equal, log, read, sh
from lib.env import Env

BACKENDS = ("rs", "loop")
TIMEOUT = 240
ESTIMATE = 60
FIO = (
    "fio --name=v --filename=/dev/{0} --rw=randrw --size={1} --bsrange={2} --iodepth=16 --ioengine=libaio --direct=1"
    " --verify=crc32c --do_verify=1 --verify_fatal=1 --verify_dump=0 --thread --minimal >/tmp/fio 2>&1 || {{ tail -c"
    " 1500 /tmp/fio; exit 1; }}"
)


def run(env: Env) -> None:
    mount = "/mnt/4k"
    sh("modprobe null_blk nr_devices=2 bs=4096 gb=1 memory_backed=1 && udevadm settle")
    env.at_end("rmmod null_blk")
    sh(
        f"mkfs.ext4 -q -F -b 4096 /dev/nullb1 && mkdir -p {mount} && mount /dev/nullb1 {mount} && truncate -s 32M"
        f" {mount}/disk"
    )
    env.at_end(f"umount {mount}")
    guest = env.guest(env.disk("/dev/nullb0", "xvda"), env.disk(f"{mount}/disk", "xvdb"))
    sizes = {
        vdev: [int(guest.sh(f"cat /sys/block/{vdev}/queue/{kind}_block_size")) for kind in ("logical", "physical")]
        for vdev in ("xvda", "xvdb")
    }
    log(f"logical and physical block size: {sizes}")
    equal(sizes["xvda"], [4096, 4096], "block sizes of the device")
    guest.fails(
        "fio --name=small --filename=/dev/xvda --rw=read --bs=512 --size=512 --direct=1 --ioengine=libaio --minimal"
    )
    guest.sh(FIO.format("xvda", "12m", "4k-256k"), timeout=90)
    if env.backend == "rs":  # a loop device takes over the size of the storage below it
        equal(sizes["xvdb"], [512, 4096], "block sizes of the file")
        buffered = f"{guest.statistics('xvdb')}/buffered_req"
        guest.sh(FIO.format("xvdb", "12m", "4k-256k"), timeout=90)
        equal(read(buffered).strip(), "0", "buffered requests when all were aligned")
        guest.sh(FIO.format("xvdb", "1m", "512-3584"), timeout=90)
        check(int(read(buffered)) > 0, "no buffered request when most were not aligned")
        said = [
            line
            for line in env.kernel_log.lines()
            if "using buffered I/O for requests that direct I/O cannot do" in line
        ]
        equal(len(said), 1, "lines in the log about buffered I/O")
    guest.sh(FIO.format("xvdb", "12m", "4k-256k"), timeout=90)
    guest.shutdown()

    # A frontend that does not go by the size: its requests are refused or done, and nothing else happens.
    odd = env.guest(env.disk("/dev/nullb0", "xvda"), frontend=True)
    odd.sh(
        f"blkif-frontend conformance --backend {env.backend} --vdev xvda >/tmp/out 2>&1 || {{ grep -v ^ok /tmp/out;"
        " exit 1; }",
        timeout=120,
    )
    odd.shutdown()
