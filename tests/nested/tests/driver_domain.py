"""The backend in an unprivileged domain that owns the storage: a guest's disks are a file and a device of that
domain."""

from lib.basics import check, equal
from lib.env import Env, drive

BACKENDS = ("rs", "loop")
TIMEOUT = 300
ESTIMATE = 60

# As dom0's init, without the toolstack's daemons, but with the one that runs the scripts.
START = """set -e; export PATH=/usr/sbin:/usr/bin; mkdir -p /run/lock /run/xen /var/log/xen /srv
ln -snf /proc/self/fd /dev/fd; ln -snf fd/0 /dev/stdin
mknod /dev/loop-control c 10 237 2>/dev/null || true
if [ -d /lib/modules/$(uname -r)/updates ]; then depmod; fi
/usr/lib/systemd/systemd-udevd --daemon
modprobe -a xenfs xen-evtchn xen-gntdev xen-privcmd; mount -t xenfs xenfs /proc/xen
udevadm trigger --action=add --subsystem-match=block --subsystem-match=misc; udevadm settle
mkfs.ext4 -q -F /dev/xvdc; mount -t ext4 /dev/xvdc /srv; truncate -s 16M /srv/disk
[ $XB_PACE = 1 ] || [ ! -e /opt/xb/lib/xl_clock.so ] || export LD_PRELOAD=/opt/xb/lib/xl_clock.so
xl devd"""


def run(env: Env) -> None:
    device = env.device(16)
    storage = env.guest(
        env.disk(drive("xb-root-again"), "xvda", access="r"),
        env.disk(drive("xb-tar"), "xvdb", access="r"),
        env.disk(env.file("ext4", "store", 64 << 20), "xvdc"),
        env.disk(device, "xvdd"),
        name="storage",
        memory=384,
        extra="root=/dev/xvda xb.debian",
        more="driver_domain = 1\n",
    )
    storage.sh(
        f"bash -es <<'END'\n{START}\nEND", 120
    )  # not busybox' shell, which takes its own depmod wherever PATH points
    guest = env.new_guest(
        *(
            f"backend=storage,format=raw,vdev={vdev},access=w,target={target}"
            for vdev, target in (("xvda", "/srv/disk"), ("xvdb", "/dev/xvdd"))
        )
    ).create()
    for number in (51712, 51728):
        served = storage.sh(
            f"basename $(readlink -f /sys/bus/xen-backend/devices/vbd-{guest.domid}-{number}/driver/module)"
        ).strip()
        equal(served, env.driver, f"who serves {number} in the storage domain")
    loops = storage.sh("/usr/sbin/losetup -a")
    check(env.backend != "rs" or not loops, f"loop devices in the storage domain: {loops}")
    guest.sh(
        "for d in xvda xvdb; do dd if=/dev/urandom of=/dev/$d bs=64k count=64 conv=fsync oflag=direct || exit 1; done"
    )
    sums = [guest.sh(f"md5sum </dev/{vdev}").split()[0] for vdev in ("xvda", "xvdb")]
    guest.shutdown()
    storage.sh(
        "n=0; while ls /sys/bus/xen-backend/devices | grep -q vbd; do n=$((n+1)); [ $n -lt $((200 * XB_PACE)) ] || exit"
        " 1; usleep 50000; done"
    )
    equal(
        [line.split()[0] for line in storage.sh("md5sum /srv/disk /dev/xvdd").splitlines()],
        sums,
        "what the storage domain finds",
    )
    if env.backend == "rs":
        storage.sh("rmmod xen_blkback_rs")
    storage.destroy()
