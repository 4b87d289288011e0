"""Two guests at once, each verifying what it writes to a file and to a device, do not disturb each other."""

from lib.basics import wait_for
from lib.env import Env

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 300
ESTIMATE = 50
FIO = (
    "fio --name=v --filename=/dev/{vdev} --rw=randrw --bsrange=4k-64k --size=3m --iodepth=8 --ioengine=libaio"
    " --direct=1 --verify=md5 --verify_fatal=1 --do_verify=1 --thread --randseed={seed} --minimal >/tmp/{vdev}.log"
    " 2>&1; echo $? >/tmp/{vdev}.rc"
)


def run(env: Env) -> None:
    guests = []
    for number in range(2):
        disks = [env.disk(env.file("ext4", f"disk{number}", 8 << 20), "xvda"), env.disk(env.device(8, number), "xvdb")]
        guests.append(env.guest(*disks, vcpus=2))
    for number, guest in enumerate(guests):
        for vdev in ("xvda", "xvdb"):
            guest.sh(f"({FIO.format(vdev=vdev, seed=number * 2 + (vdev == 'xvdb'))}) &")
    for guest in guests:
        wait_for(
            lambda: guest.run("[ -s /tmp/xvda.rc ] && [ -s /tmp/xvdb.rc ]").code == 0,
            150,
            f"fio in {guest.name} to end",
        )
        guest.sh("for d in xvda xvdb; do [ $(cat /tmp/$d.rc) = 0 ] || { tail -c 1500 /tmp/$d.log; exit 1; }; done")
    guests[0].destroy()
    guests[1].sh("dd if=/dev/xvda of=/dev/null bs=64k iflag=direct")  # the other goes on when one is gone
    guests[1].shutdown()
