"""Frontends that never connect, go through the states in any order, are detached by force or crash in the middle of
I/O."""

import time

from lib.basics import check, equal, log, run as command, there, wait_for
from lib.env import Env
from lib.guest import Guest, vdev_number

BACKENDS = ("rs",)
TIMEOUT = 400
ESTIMATE = 60
# States that a guest may write, in any order: unexpected, unknown, no number, and the final ones.
WALKS = ("4", "3 4 3 4", "1 3 1 4 5", "5 1 3", "2 4 2", "7 8", "9 77", "6 1 6 1 3", "5 4 3 2 1", "6")
# What it may write beside them, one of each in turn; None leaves the node out.
NODES = {
    "ring-ref": (None, "0", "8", "99999999", "-1", "x", ""),
    "event-channel": (None, "0", "7", "1000000", "x"),
    "ring-page-order": (None, "0", "4", "77"),
    "multi-queue-num-queues": (None, "1", "0", "64"),
    "protocol": (None, "x86_32-abi", "vax-abi", ""),
}
BUSY = (
    "(while dd if=/dev/{vdev} of=/dev/{vdev} bs=64k conv=notrunc oflag=direct iflag=direct; do :; done) >/dev/null 2>&1"
    " & dd if=/dev/{vdev} of=/dev/null bs=64k count=4 iflag=direct"
)


def run(env: Env) -> None:
    image = env.file("ext4", "disk", 8 << 20)
    odd = env.guest(env.disk(image, "xvda"), env.disk(env.device(8), "xvdb"), frontend=True)
    healthy = env.guest(env.disk(env.file("ext4", "healthy", 8 << 20), "xvda"))
    healthy.sh(
        "(while dd if=/dev/xvda of=/dev/null bs=64k count=8 iflag=direct; do usleep 300000; done; touch /tmp/bad)"
        " >/dev/null 2>&1 &"
    )

    for vdev in ("xvda", "xvdb"):
        front = env.store.read(f"{odd.backend(vdev)}/frontend")
        for number, states in enumerate(WALKS):
            for node, values in NODES.items():
                value = values[number % len(values)]
                env.store.remove(f"{front}/{node}") if value is None else env.store.write(f"{front}/{node}", value)
            for state in states.split():
                env.store.write(f"{front}/state", state)
                # One that is Closed gets an answer, whatever has been before.
                if state == "6":
                    wait_for(
                        lambda: env.store.read(f"{odd.backend(vdev)}/state") == "6",
                        20,
                        f"{vdev} closed after {states}",
                    )
            log(f"{vdev}: {states}: backend in {env.store.read(f'{odd.backend(vdev)}/state')}")
        for node in NODES:
            env.store.remove(f"{front}/{node}")
        odd.sh(f"blkif-frontend verify --vdev {vdev} --requests 50 --area 1 2>&1", timeout=90)

    # Hundreds of wrong states and requests leave a few lines, and a line that says how many there would have been.
    before, start = len(env.kernel_log.lines()), time.monotonic()
    front = there(env.store.read(f"{odd.backend('xvda')}/frontend"), "xvda has no frontend")
    env.store.write(f"{front}/ring-ref", "8")
    env.store.write(f"{front}/event-channel", "1")
    for state, times, answer in (("8", 300, "5"), ("3", 300, "5"), ("6", 1, "6"), ("1", 1, "2")):
        for _ in range(times):
            env.store.write(f"{front}/state", state)
        wait_for(
            lambda: env.store.read(f"{odd.backend('xvda')}/state") == answer,
            20,
            f"the answer to state {state}",
        )
        if answer == "5":
            refused_with_a_reason(env, odd, front)
    odd.sh("blkif-frontend conformance --vdev xvda >/tmp/out 2>&1 || { tail -n 5 /tmp/out; exit 1; }", timeout=120)
    lines = [
        line
        for line in env.kernel_log.lines()[before:]
        if f"/{odd.domid}/51712:" in line or f"vbd-{odd.domid}-51712:" in line
    ]
    seconds = time.monotonic() - start
    log(f"{len(lines)} lines in {seconds:.0f} s")
    check(len(lines) <= 11 * (seconds / 5 + 2), f"{len(lines)} lines about one disk in {seconds:.0f} s")

    def said() -> bool:
        odd.sh("blkif-frontend probe --vdev xvda >/dev/null")  # something to say, when there may be more
        return any(
            f"/{odd.domid}/51712: " in line and "messages were left out" in line
            for line in env.kernel_log.lines()[before:]
        )

    wait_for(said, 30, "the log to say how many messages were left out")

    # One that says it is gone, or nothing that makes sense, loses its disk, as with the in-tree driver.
    for vdev, state in (("xvda", "0"), ("xvdb", "x")):
        env.store.write(f"{env.store.read(f'{odd.backend(vdev)}/frontend')}/state", state)
        wait_for(lambda: odd.served_by(vdev) == "nobody", 20, f"{vdev} given up after state {state}")

    # Never connected: a guest without a driver is asked in vain to let go, until it is no longer asked.
    third = env.file("ext4", "third", 8 << 20)
    done = odd.try_attach(env.disk(third, "xvdc"))
    equal(done.returncode, 0, f"attach ({done.stderr})")
    force(env, odd, "xvdc")
    # By force in the middle of I/O.
    healthy.attach(env.disk(third, "xvdb"))
    healthy.sh(BUSY.format(vdev="xvdb"))
    force(env, healthy, "xvdb")
    odd.destroy()

    # A kernel that dies with requests in flight.
    dying = env.guest(env.disk(image, "xvda"), env.disk(third, "xvdb"), vcpus=2)
    for vdev in ("xvda", "xvdb"):
        dying.sh(BUSY.format(vdev=vdev))
    number = dying.domid
    dying.tell("echo c >/proc/sysrq-trigger")
    wait_for(lambda: number not in env.domains(), 60, "the crashed guest gone")
    dying.close()
    wait_for(lambda: not any(f"/{number}/" in path for path in env.backends()), 20, "its disks gone")
    # Nobody holds them. (The guest that lost a disk by force gets no more: its frontend waits for that one.)
    env.guest(env.disk(image, "xvda"), env.disk(third, "xvdb")).shutdown()
    check(healthy.run("[ -e /tmp/bad ]").code != 0, "another disk had errors")
    healthy.destroy()


def refused_with_a_reason(env: Env, guest: Guest, front: str) -> None:
    """There is a reason in xenstore also when the log has no room for it."""
    backend = guest.backend("xvda")
    reason = f"/local/domain/0/error/{backend.removeprefix('/local/domain/0/')}"
    for state, answer in (("6", "6"), ("1", "2"), ("8", "5")):
        env.store.remove(reason)
        env.store.write(f"{front}/state", state)
        wait_for(lambda: env.store.read(f"{backend}/state") == answer, 20, f"the answer to state {state}")
    check(
        "a state that it cannot be in" in (env.store.read(f"{reason}/error") or ""),
        "xvda is refused, and nothing says why",
    )


def force(env: Env, guest: Guest, vdev: str) -> None:
    backend = guest.backend(vdev)
    done = command("xl", "block-detach", "--force", guest.name, str(vdev_number(vdev)))
    equal(done.returncode, 0, f"xl block-detach --force ({done.stderr.strip()})")
    wait_for(lambda: not env.store.list(backend), 20, f"{vdev} gone")
    equal(guest.served_by(vdev), "nobody", f"{vdev} after block-detach --force")
