"""A frontend connects and disconnects again and again, as guests do that reboot; dom0 has afterwards what it had
before."""

from lib.basics import equal, log
from lib.env import Env
from lib.leaks import handles, mapped, no_more, no_more_handles, used

BACKENDS = ("rs", "loop")
TIMEOUT = 400
ESTIMATE = 50
LONG = 32  # a thousand connections
WARM_UP, CYCLES = 10, 32
LAYOUTS = (
    "--abi native",
    "--abi x86_32 --ring-order 2",
    "--abi native --queues 2 --persistent",
    "--abi native --ring-order 4 --indirect 32",
)


def run(env: Env) -> None:
    env.parameter("max_queues", 2)
    guest = env.guest(
        env.disk(env.file("ext4", "disk", 8 << 20), "xvda"), env.disk(env.device(8), "xvdb"), frontend=True
    )

    def cycles(count: int) -> None:
        """Both disks in all layouts, one after the other, COUNT connections in all."""
        done = 0
        while done < count:
            for layout in LAYOUTS:
                guest.sh(
                    f"for d in xvda xvdb xvda xvdb; do blkif-frontend probe --vdev $d {layout} >/tmp/out 2>&1 || {{ cat"
                    " /tmp/out; exit 1; }; done"
                )
                done += 4

    cycles(WARM_UP)
    memory, before = used(), handles() | {"mapped grants": mapped(guest.domid)}
    count = env.count(CYCLES)
    cycles(count)
    memory_after, after = used(), handles() | {"mapped grants": mapped(guest.domid)}
    log(f"{before} before, {after} after {count} connections")
    equal(no_more_handles(before, after), [], f"what is more after {count} connections")
    no_more(memory, memory_after, f"{count} connections")
    guest.shutdown()
