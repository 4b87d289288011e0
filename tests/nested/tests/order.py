"""A barrier waits for what all rings of the disk sent before it, what is sent after it waits for the barrier; nothing
waits for a discard."""

from lib.basics import PACE, check, equal, log, sh, wait_for
from lib.env import Env

BACKENDS = ("rs",)
TIMEOUT = 240
ESTIMATE = 70
SIZE = 30  # MiB
# Milliseconds of a request in each third of the disk; flushes take none.
DELAYS = (1200, 400, 0)
LAYOUTS = ("--queues 1", "--queues 2", "--queues 2 --persistent --abi x86_32")


def run(env: Env) -> None:
    env.parameter("max_queues", 2)
    base = env.device(SIZE)
    third = (SIZE << 11) // len(DELAYS)
    table = "\n".join(
        f"{third * n} {third} delay "
        + " ".join(f"{base} {third * n} {ms}" for ms in (round(delay * PACE), round(delay * PACE), 0))
        for n, delay in enumerate(DELAYS)
    )
    env.hide_from_udev('ENV{DM_NAME}=="xb9"')
    sh(f"echo '{table}' | dmsetup create xb9 && udevadm settle")
    env.at_end("dmsetup remove --retry xb9")
    guest = env.guest(env.disk("/dev/mapper/xb9", "xvda"), frontend=True)
    for layout in LAYOUTS:
        done = guest.run(f"blkif-frontend order {layout} 2>&1")
        log(f"{layout}: {done.output.strip()}")
        check(done.code == 0, f"order {layout}: {done.output.strip()}")
    guest.shutdown()
    dying(env)


def dying(env: Env) -> None:
    """A device goes away while a barrier waits for a request: the barrier is refused then, and whatever has waited for
    it goes on."""
    config = "/sys/kernel/config/nullb/dying"
    env.hide_from_udev('KERNEL=="dying"')
    # Timers (2) answer, after three seconds or more, but before the five with which null_blk gives a request up.
    settings = {
        "size": SIZE,
        "memory_backed": 1,
        "irqmode": 2,
        "completion_nsec": round(min(3 * PACE, 4.5) * 10**9),
        "cache_size": 1,
    }
    sh(
        "modprobe null_blk nr_devices=0; mountpoint -q /sys/kernel/config || mount -t configfs configfs"
        f" /sys/kernel/config; mkdir {config}; "
        + "".join(f"echo {value} >{config}/{name}; " for name, value in settings.items())
        + f"echo 1 >{config}/power; udevadm settle",
        120,
    )
    env.at_end(f"rmdir {config}; rmmod null_blk")
    guest = env.guest(env.disk("/dev/dying", "xvda"), frontend=True)
    guest.sh("rm -f /tmp/end; { blkif-frontend order --dying --queues 2 >/tmp/out 2>&1; echo $? >/tmp/end; } &")
    wait_for(lambda: "waits for a barrier" in guest.debug_state("xvda"), 30, "a barrier that waits")
    sh(f"echo 0 >{config}/power")
    guest.sh("until [ -e /tmp/end ]; do sleep 0.1; done", 60)
    log(guest.sh("cat /tmp/out"))
    equal(guest.sh("cat /tmp/end").strip(), "0", "how the frontend ended")
    guest.shutdown()
