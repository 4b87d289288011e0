"""mkfs, fill, fsck in a guest on files of all four file systems and on a device; checksums agree with dom0's."""

from lib.basics import equal, log
from lib.env import FILE_SYSTEMS, Env, md5

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 300
ESTIMATE = 60
SIZE = 28 << 20


def run(env: Env) -> None:
    targets = {kind: str(env.file(kind, "disk", SIZE)) for kind in FILE_SYSTEMS} | {"device": env.device(28)}
    vdevs = {name: f"xvd{'abcde'[number]}" for number, name in enumerate(targets)}
    guest = env.guest(*(env.disk(targets[name], vdevs[name]) for name in targets))
    guest.sh("modprobe ext4")
    # What is written comes from the guest's memory, so that a write that is lost or misplaced cannot go unseen.
    guest.sh(
        "for n in 1 2 3; do dd if=/dev/urandom of=/tmp/f$n bs=1000 count=1500; done; cd /tmp; md5sum f1 f2 f3"
        " >/tmp/sums"
    )
    sums: dict[str, str] = {}
    for name, vdev in vdevs.items():
        guest.sh(
            f"mkfs.ext4 -q -F /dev/{vdev} && mount /dev/{vdev} /mnt && mkdir /mnt/d && cp /tmp/f? /mnt/ &&"
            " for n in 1 2 3; do cat /tmp/f1 /tmp/f2 /tmp/f3 >/mnt/d/all$n; done; rm /mnt/d/all2; umount /mnt"
        )
        guest.sh(f"fsck.ext4 -fn /dev/{vdev}")
        guest.sh(
            f"echo 3 >/proc/sys/vm/drop_caches; mount -r /dev/{vdev} /mnt && cd /mnt && md5sum -c /tmp/sums && cmp"
            " d/all1 d/all3; r=$?; cd /; umount /mnt; exit $r"
        )
        sums[name] = guest.sh(f"md5sum </dev/{vdev}").split()[0]
    for name, vdev in vdevs.items():
        if vdev != "xvda":
            guest.detach(vdev)
            equal(md5(targets[name]), sums[name], f"{name}: checksum from dom0 after detach")
    guest.shutdown()
    name = next(name for name, vdev in vdevs.items() if vdev == "xvda")
    equal(md5(targets[name]), sums[name], f"{name}: checksum from dom0 after shutdown")
    log(f"{sums}")
