"""The driver is replaced under running guests: by the in-tree one and back, and by itself, as in an upgrade."""

from lib.basics import PACE, check, equal, log, read, run as command, sh, wait_for
from lib.env import DRIVER, DRIVERS, Env
from lib.guest import Guest

BACKENDS = ("rs", "loop")
TIMEOUT = 300
ESTIMATE = 60
LONG = 10
LAYOUTS = (
    "--abi native",
    "--abi x86_32 --ring-order 2",
    "--abi native --persistent",
    "--abi native --queues 2 --ring-order 1 --indirect 32 --persistent",
)
SWAPS = 2
SLOW = min(
    round(6000 * PACE), 30000
)  # milliseconds that a request of the slow device takes: less than our driver waits for another
FIO = (
    "fio --name=b --filename=/dev/{vdev} --rw=randrw --bsrange=4k-64k --size=2m --iodepth=4 --thinktime=20000"
    " --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --thread --minimal"
)


def quiesce(guest: Guest, vdev: str) -> None:
    """The in-tree driver does not wait for requests of a driver before it: they have to be done when it comes."""
    path = f"{guest.device(vdev)}/quiesce"
    sh(f"echo 1 >{path}")
    wait_for(lambda: read(path) == "yes", 30, f"{vdev} quiesced")


def unbind(guest: Guest, vdev: str, backend: str) -> None:
    sh(f"echo {guest.bus_name(vdev)} >{DRIVERS[backend]}/unbind")
    equal(guest.served_by(vdev), "nobody", f"who serves the unbound {vdev}")


def bind(guest: Guest, vdev: str, backend: str) -> None:
    sh(f"echo {guest.bus_name(vdev)} >{DRIVERS[backend]}/bind")
    served(guest, vdev, backend)


def only_its_own(guest: Guest, vdev: str) -> None:
    """A disk that the other driver has is not taken from it, and one that there is not, or that is none, is refused."""
    disk = guest.bus_name(vdev)
    for name, file, reason in (
        (disk, "unbind", "No such device"),
        (disk, "bind", "busy"),
        ("vbd-0-0", "unbind", "No such device"),
        ("vbd-0-0", "bind", "No such device"),
        (f"console-{guest.domid}-0", "bind", "No such device"),
    ):
        done = command("bash", "-c", f"echo {name} >{DRIVERS['rs']}/{file}")
        check(reason in done.stderr, f"echo {name} >{file}: {done.stderr or 'no error'}")
    equal(
        guest.env.store.read(f"/local/domain/0/error/backend/console/{guest.domid}/0/error"),
        None,
        "what is said of the console",
    )
    served(guest, vdev, "loop")


def served(guest: Guest, vdev: str, backend: str) -> None:
    """The driver has taken the disk over, and does requests."""
    equal(guest.served_by(vdev), DRIVER[backend], f"who serves {vdev}")
    statistics = guest.statistics(vdev)

    def done() -> int:
        return sum(int(read(f"{statistics}/{name}", "0")) for name in ("rd_req", "wr_req"))

    before = done()
    wait_for(lambda: done() > before, 30, f"{vdev}: requests done by {DRIVER[backend]}")


def in_flight(env: Env, guest: Guest) -> None:
    """The in-tree driver lets go of a ring only when the requests in flight have ended, some time after the unbind."""
    slow, base = "/dev/mapper/xb9", env.device(8, 2)
    # Only in its middle: udev looks at both ends.
    sh(
        f"modprobe -i xen_blkback; printf '0 8192 linear {base} 0\n8192 4096 delay {base} 8192 {SLOW}\n12288 4096"
        f" linear {base} 12288\n' | dmsetup create xb9; udevadm settle"
    )
    env.at_end("dmsetup remove --retry xb9")
    guest.attach(env.disk(slow, "xvdc"))
    device = guest.bus_name("xvdc")
    sh(f"echo {device} >{DRIVERS['rs']}/unbind; echo {device} >{DRIVERS['loop']}/bind")
    wait_for(
        lambda: env.store.read(f"{guest.backend('xvdc')}/state") == "4",
        20,
        "the slow disk connected to the in-tree driver",
    )
    guest.sh(
        "{ dd if=/dev/xvdc of=/dev/null bs=4k skip=1024 count=1 iflag=direct; echo $? >/tmp/slow; } >/dev/null 2>&1 &"
    )
    wait_for(
        lambda: int(read(f"/sys/bus/xen-backend/devices/{device}/statistics/rd_req", "0")) > 0,
        20,
        "a request in flight",
    )
    sh(f"echo {device} >{DRIVERS['loop']}/unbind; echo {device} >{DRIVERS['rs']}/bind")
    guest.sh("until [ -s /tmp/slow ]; do usleep 50000; done; read -r r </tmp/slow; exit $r")
    guest.sh("dd if=/dev/xvdc of=/dev/null bs=4k count=1 iflag=direct")  # and it goes on
    equal(guest.served_by("xvdc"), DRIVER["rs"], "who serves the slow disk")
    check(
        any("waits for the requests of the driver" in line for line in env.kernel_log.lines()), "nothing was in flight"
    )


def run(env: Env) -> None:
    # The first one that is loaded takes the new disks.
    own, other = env.backend, "loop"
    sh(f"modprobe {env.driver}; modprobe -i xen_blkback")
    env.at_end(f"rmmod xen_blkback {env.driver} 2>/dev/null || true")
    for driver in {DRIVER[own], DRIVER[other]}:
        env.parameter("max_queues", 2, driver)
    image = env.file("ext4", "disk", 32 << 20)
    linux = env.guest(env.disk(env.device(32), "xvda"), env.disk(image, "xvdb"))
    ring = env.guest(env.disk(env.device(32, 1), "xvda"), frontend=True)
    for vdev in ("xvda", "xvdb"):
        linux.sh(
            f"{{ while [ ! -e /tmp/stop ]; do {FIO.format(vdev=vdev)} || {{ echo failed; break; }}; done >/tmp/{vdev}"
            f" 2>&1; touch /tmp/{vdev}.end; }} &"
        )

    for layout in LAYOUTS if env.long() else LAYOUTS[-1:]:
        ring.sh(
            "rm -f /tmp/end /tmp/stop; { blkif-frontend verify --requests 1000000 --until /tmp/stop --area 2 --depth"
            f" 4 {layout} >/tmp/log 2>&1; echo $? >/tmp/end; }} &"
        )
        wait_for(lambda: env.store.read(f"{ring.backend('xvda')}/state") == "4", 30, f"the frontend with {layout}")
        now = own
        for _ in range(2 * env.count(SWAPS // 2)):
            to = other if now == own else own
            for guest in (linux, ring):
                if now == "rs":
                    quiesce(guest, "xvda")
                unbind(guest, "xvda", now)
                bind(guest, "xvda", to)
            now = to
        unbind(linux, "xvdb", own)
        bind(linux, "xvdb", own)
        ring.sh("touch /tmp/stop; until [ -e /tmp/end ]; do usleep 20000; done")
        text = ring.sh("cat /tmp/log /tmp/end").splitlines()
        log(f"{layout}: {text[-2]}")
        equal(text[-1], "0", f"verify {layout}: {text}")
        equal(now, own, "the last swap")

    if own == "rs":
        # The in-tree driver can go on with a file if somebody gives it a loop device.
        node = f"{linux.backend('xvdb')}/physical-device"
        quiesce(linux, "xvdb")
        unbind(linux, "xvdb", own)
        loop = sh(f"losetup -f --show {image}").strip()
        env.store.write(node, sh(f"stat -c %t:%T {loop}").strip())
        bind(linux, "xvdb", other)
        only_its_own(linux, "xvdb")
        unbind(linux, "xvdb", other)
        sh(f"losetup -d {loop}")
        env.store.remove(node)
        bind(linux, "xvdb", own)
        sh("rmmod xen_blkback")
        for guest, vdev in ((linux, "xvda"), (linux, "xvdb"), (ring, "xvda")):
            unbind(guest, vdev, own)
        sh(f"rmmod {env.driver}; modprobe {env.driver}")  # an upgrade: loading takes over all disks that nobody serves
        for vdev in ("xvda", "xvdb"):
            served(linux, vdev, own)

    linux.sh("touch /tmp/stop")
    for vdev in ("xvda", "xvdb"):
        said = linux.sh(
            f"until [ -e /tmp/{vdev}.end ]; do usleep 20000; done; cat /tmp/{vdev}; dmesg | grep -i 'error, dev xvd' ||"
            " true"
        )
        check("failed" not in said and "rror" not in said, f"{vdev}: {said}")
        log(f"{vdev}: {said.count(chr(10))} rounds of fio")
    if own == "rs":
        in_flight(env, linux)
    for guest in (linux, ring):
        guest.shutdown()
