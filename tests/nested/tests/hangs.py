"""Storage hangs while its disks are unbound, bound, quiesced, detached, removed and destroyed, at the same time and in
any order.

Disks of another guest come and go meanwhile in their usual time, files of the hung ones can be read, and when the
storage is back no request has been lost and nothing is left. The storage is a device that is suspended, a file of a
FUSE daemon that is stopped, and a file of an NFS server that is gone."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from lib.basics import PACE, check, log, read, sh, wait_for
from lib.env import DRIVERS, Env
from lib.guest import Guest, vdev_number

BACKENDS = ("rs",)
TIMEOUT = 300
ESTIMATE = 110
PROCESSORS = (1, 2)
LONG = 10
VDEVS = ("xvdb", "xvdc", "xvdd")
DRIVER = DRIVERS["rs"]
MOUNT, FUSE, NFS = Path("/run/hangs"), Path("/run/hangs-fuse"), Path("/run/hangs-nfs")


class Storage:
    """What can hang: one target for each of VDEVS."""

    def __init__(self, name: str, targets: list[str], hang: str, back: str) -> None:
        self.name, self.targets, self._hang, self._back = name, targets, hang, back

    def hang(self) -> None:
        sh(self._hang)

    def back(self) -> None:
        sh(self._back)


def device(env: Env) -> Storage:
    """One disk is the device, the others are files on another one."""
    raw, below = env.device(8, 0), env.device(64, 1)
    sh(f"mkfs.ext4 -q -F {below}; mkdir -p {MOUNT}; mount {below} {MOUNT}")
    env.at_end(f"umount {MOUNT}")
    back = f"dmsetup resume {raw}; dmsetup resume {below}"
    env.at_end(back)
    targets = files(MOUNT)
    return Storage(
        "device", [raw, *targets[1:]], f"for d in {raw} {below}; do dmsetup suspend --noflush --nolockfs $d; done", back
    )


def fuse(env: Env) -> Storage:
    image, said = env.file("ext4", "fuse.img", 64 << 20), Path("/run/hangs-fuse.log")
    sh(f"mkfs.ext4 -q -F {image}; mkdir -p {FUSE}; modprobe -q fuse || true")
    with said.open("w") as output:
        daemon = subprocess.Popen(
            ["fuse2fs", "-f", "-o", "fakeroot", str(image), str(FUSE)], stdout=output, stderr=output
        )
    wait_for(lambda: os.path.ismount(FUSE) or daemon.poll() is not None, 20, f"{FUSE} mounted")
    check(os.path.ismount(FUSE), f"fuse2fs has ended with {daemon.poll()}: {said.read_text()}")
    env.at_end(f"pkill -CONT -x fuse2fs; umount -l {FUSE}")
    return Storage("fuse", files(FUSE), "pkill -STOP -x fuse2fs", "pkill -CONT -x fuse2fs")


def nfs(env: Env) -> Storage:
    shared = env.fs("ext4") / "shared"
    # The kernel's server, to dom0 itself; that of version 3 has no grace period.
    start_server = "rpc.nfsd -N 4 2"
    sh("busybox ip link set lo up; mkdir -p /run/rpcbind; modprobe nfsd; mount -t nfsd nfsd /proc/fs/nfsd; rpcbind -w")
    env.at_end("pkill -x rpc.mountd; pkill -x rpcbind; umount /proc/fs/nfsd")
    sh(
        f"mkdir -p {shared} {NFS}; exportfs -o rw,no_root_squash,no_subtree_check,insecure 127.0.0.1:{shared};"
        f" {start_server}; rpc.mountd -N 4; mount -t nfs -o vers=3,nolock,tcp,hard,timeo=10,retrans=1"
        f" 127.0.0.1:{shared} {NFS}"
    )
    env.at_end(f"umount {NFS}; rpc.nfsd 0; exportfs -au")
    env.at_end(start_server)  # before the umount, which wants to talk to it
    return Storage("nfs", files(NFS), "rpc.nfsd 0", start_server)


def files(directory: Path) -> list[str]:
    names = [str(directory / f"disk{number}") for number in range(len(VDEVS))]
    for name in names:
        with open(name, "wb") as file:
            file.write(bytes(4 << 20))
            os.fsync(file.fileno())
    return names


def start(*argv: str) -> subprocess.Popen[bytes]:
    log(f"$ {' '.join(argv)} &")
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def actions(env: Env, guest: Guest) -> dict[str, Callable[[str], subprocess.Popen[bytes]]]:
    """What may be done to a disk at any moment; each returns at once."""
    return {
        "unbind": lambda vdev: start("sh", "-c", f"echo {guest.bus_name(vdev)} >{DRIVER}/unbind"),
        "bind": lambda vdev: start("sh", "-c", f"echo {guest.bus_name(vdev)} >{DRIVER}/bind"),
        "quiesce": lambda vdev: start("sh", "-c", f"echo 1 >{guest.device(vdev)}/quiesce"),
        "detach": lambda vdev: start("xl", "block-detach", "--force", guest.name, str(vdev_number(vdev))),
        "remove": lambda vdev: start("xenstore-rm", guest.backend(vdev)),
    }


def write(guest: Guest, vdevs: tuple[str, ...] = VDEVS) -> None:
    """A request for each disk, whose end the guest writes down."""
    for vdev in vdevs:
        guest.sh(
            f"rm -f /tmp/{vdev}; {{ dd if=/dev/urandom of=/dev/{vdev} bs=4k count=1 seek=7 oflag=direct; echo $?"
            f" >/tmp/{vdev}; }} >/dev/null 2>&1 &"
        )
        wait_for(lambda: " 1 in flight" in guest.debug_state(vdev), 20, f"a request of {vdev} in flight")


def come_and_go(other: Guest, disk: str) -> float:
    """How long it takes to give another guest a disk and to take it away."""
    began = time.monotonic()
    other.attach(disk)
    other.sh("dd if=/dev/xvdf of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null")
    other.detach("xvdf")
    return time.monotonic() - began


def run(env: Env) -> None:
    rng = random.Random(14)
    other = env.guest()
    disk = env.disk(env.file("ext4", "spare", 4 << 20), "xvdf")
    come_and_go(other, disk)
    usual = come_and_go(other, disk)
    log(f"a disk comes and goes in {usual:.1f} s")
    for make in (device, fuse, nfs):
        storage = make(env)
        for _ in range(env.count(1)):
            one_guest(env, storage, rng, other, disk, usual)
    other.destroy()


def one_guest(env: Env, storage: Storage, rng: random.Random, other: Guest, disk: str, usual: float) -> None:
    log(f"--- {storage.name}")
    guest = env.guest(*(env.disk(target, vdev) for target, vdev in zip(storage.targets, VDEVS, strict=True)))
    do = actions(env, guest)

    def others_live() -> None:
        took = come_and_go(other, disk)
        check(
            took < 2 * usual + 3 * PACE, f"{storage.name}: another guest's disk took {took:.1f} s, usually {usual:.1f}"
        )

    # Unbound and bound again: the guest only waits. One that is quiesced goes on when it is told to.
    storage.hang()
    write(guest)
    for vdev in VDEVS[:2]:
        check(do["unbind"](vdev).wait(10 * PACE) == 0, f"{storage.name}: unbind of {vdev}")
    do["quiesce"](VDEVS[2]).wait(10 * PACE)
    quiesce = f"{guest.device(VDEVS[2])}/quiesce"
    check(read(quiesce) == "draining", f"{storage.name}: a disk with a request in flight is quiesced: {read(quiesce)}")
    check(do["bind"](VDEVS[0]).wait(10 * PACE) == 0, f"{storage.name}: bind of {VDEVS[0]}")
    others_live()
    for vdev in VDEVS:
        guest.debug_state(vdev)  # of those that are bound
    storage.back()
    check(do["bind"](VDEVS[1]).wait(10 * PACE) == 0, f"{storage.name}: bind of {VDEVS[1]}")
    wait_for(lambda: read(quiesce) == "yes", 60, f"{storage.name}: quiesced")
    sh(f"echo 0 >{quiesce}")
    for vdev in VDEVS:
        guest.sh(
            f"n=0; until [ -s /tmp/{vdev} ]; do usleep 50000; n=$((n+1)); [ $n -lt $((1800 * XB_PACE)) ] || exit 9;"
            f" done; read -r r </tmp/{vdev}; exit $r",
            120,
        )
        guest.sh(f"dd if=/dev/{vdev} of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null")  # and it goes on
        guest.check_served(vdev)

    # Everything at the same time, in some order, and the guest destroyed.
    storage.hang()
    write(guest)
    todo = [(action, vdev) for action in ("unbind", "quiesce", "detach", "remove", "unbind", "bind") for vdev in VDEVS]
    rng.shuffle(todo)
    todo.insert(rng.randrange(len(todo)), ("destroy", ""))
    processes = []
    for action, vdev in todo[:12] + [item for item in todo[12:] if item[0] == "destroy"]:
        processes.append(start("xl", "destroy", guest.name) if action == "destroy" else do[action](vdev))
        time.sleep(rng.choice((0, 0, 0.05, 0.3)))  # not waited for: any order may come
    others_live()
    storage.back()
    wait_for(
        lambda: all(process.poll() is not None for process in processes), 60, f"{storage.name}: all commands to end"
    )
    nodes = f"/local/domain/0/backend/vbd/{guest.domid}"
    guest.gone(60)
    sh(f"xenstore-rm {nodes} 2>/dev/null || true")  # of disks that had no driver when the toolstack asked them to go
