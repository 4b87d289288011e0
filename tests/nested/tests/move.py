"""Guests of each kind are paused, saved, restored and migrated to this machine while they work on a file and a
device."""

from lib.basics import check, equal, log, sh
from lib.env import SCRATCH, Env, md5
from lib.guest import Guest

BACKENDS = ("rs", "loop", "qdisk")
TIMEOUT = 400
ESTIMATE = 110
LONG = 2


def run(env: Env) -> None:
    targets = [str(env.file("ext4", "disk", 16 << 20)), env.device(16)]
    env.fs("xfs")
    for kind in OPERATIONS if env.long() else SHORT:
        guest = env.guest(
            *(env.disk(target, vdev) for target, vdev in zip(targets, ("xvda", "xvdb"))), kind=kind, memory=128
        )
        for vdev in ("xvda", "xvdb"):
            # A block a round, with its number in it, as long as all goes well.
            guest.sh(
                f"{{ n=0; while [ ! -e /tmp/stop ]; do n=$((n + 1)); echo round $n | dd of=/dev/{vdev} bs=4k seek=$((n"
                f" % 1024)) conv=sync,fsync,notrunc oflag=direct iflag=fullblock 2>/tmp/{vdev}.err || break; echo $n"
                f" >/tmp/{vdev}; usleep 50000; done; touch /tmp/{vdev}.end; }} &"
            )
        for act in OPERATIONS[kind] if env.long() else SHORT[kind]:
            before = rounds(guest)
            act(guest)
            guest.check_served("xvda", "xvdb")
            guest.sh(
                f"for d in xvda:{before[0]} xvdb:{before[1]}; do until [ $(cat /tmp/${{d%:*}}) -gt $((${{d#*:}} + 5))"
                " ]; do usleep 20000; done; done"
            )
            log(f"{kind}: {act.__name__}, rounds {before} to {rounds(guest)}")
            env.look_around()
        guest.sh(
            "touch /tmp/stop; until [ -e /tmp/xvda.end ] && [ -e /tmp/xvdb.end ]; do usleep 20000; done; cat"
            " /tmp/xvd?.err | grep -v records && exit 1; true"
        )
        sums = [guest.sh(f"md5sum </dev/{vdev}").split()[0] for vdev in ("xvda", "xvdb")]
        last = rounds(guest)
        for vdev, number in zip(("xvda", "xvdb"), last):
            equal(
                guest.sh(
                    f"dd if=/dev/{vdev} bs=4k skip=$(({number} % 1024)) count=1 iflag=direct 2>/dev/null | head -n 1"
                ).strip(),
                f"round {number}",
                vdev,
            )
        guest.shutdown()
        equal([md5(target) for target in targets], sums, f"{kind}: what dom0 finds")


def rounds(guest: Guest) -> list[int]:
    # A file is empty for the moment between its opening and the writing.
    return [
        int(word)
        for word in guest.sh(
            "until set -- $(cat /tmp/xvda /tmp/xvdb) && [ $# = 2 ]; do usleep 20000; done; echo $*"
        ).split()
    ]


def pause(guest: Guest) -> None:
    sh(f"xl pause {guest.name}; xl unpause {guest.name}")


def save(guest: Guest) -> None:
    image = SCRATCH / "xfs" / "saved"
    guest.save(image)
    check(image.stat().st_size > 0, "nothing was saved")
    guest.restore(image)


# Debian's Xen has no shadow paging, without which a running PV guest's memory cannot be followed.
OPERATIONS = {"pvh": (Guest.migrate, pause, save), "pv": (pause, save), "hvm": (pause, save, Guest.migrate)}
SHORT = {"pvh": (Guest.migrate,), "pv": (pause, save)}
