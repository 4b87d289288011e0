"""A file is truncated while writes wait for their turn: those behind its new end fail then, and the file does not grow
again."""

import json
from pathlib import Path

from lib.basics import check, equal, log, sh, wait_for
from lib.env import Env

BACKENDS = ("rs",)
TIMEOUT = 150
ESTIMATE = 15
SIZE = 16 << 20
# Two of four writes end here. There is a hole around it, so that a write has to allocate blocks, and truncating frees
# none.
CUT = 8 << 20
WRITES, PAGE = 4, 4096
FLUSHES = 200  # of one disk the module works on 128 at a time
MOUNT = Path("/mnt/late")


def run(env: Env) -> None:
    device = env.device(64)
    image = MOUNT / "disk"
    # Without a journal, whose commit truncating would wait for, and so for the storage.
    sh(
        f"mkdir -p {MOUNT}; mkfs.ext4 -q -F -O ^has_journal -E lazy_itable_init=0 {device}; mount {device} {MOUNT};"
        f" truncate -s {SIZE} {image}; sync"
    )
    env.at_end(f"umount {MOUNT}")
    guest = env.guest(env.disk(image), frontend=True)
    first = (CUT - WRITES // 2 * PAGE) // 512
    guest.sh(
        "{ until [ -e /tmp/begin ]; do sleep 0.1; done; blkif-frontend behind --ring-order 3 --timeout 60 --json"
        f" /tmp/report --flushes {FLUSHES} --writes {WRITES} --sector {first} >/tmp/out 2>&1; echo $? >/tmp/end; }} &"
    )
    sh(f"dmsetup suspend --noflush --nolockfs {device}")
    try:
        guest.sh("touch /tmp/begin")
        wait_for(
            lambda: f"{FLUSHES + WRITES + 1} in flight" in guest.debug_state("xvda"),
            30,
            "all requests taken by the backend",
        )
        with image.open("r+b") as file:
            file.truncate(CUT)
    finally:
        sh(f"dmsetup resume {device}")
    guest.sh("until [ -e /tmp/end ]; do sleep 0.1; done", 60)
    log(guest.sh("cat /tmp/out"))
    equal(guest.sh("cat /tmp/end").strip(), "1", "how the frontend ended")
    report = json.loads(guest.sh("cat /tmp/report"))
    equal(image.stat().st_size, CUT, "size of the truncated file after writes behind its end")
    equal(
        report["writes"],
        [0] * (WRITES // 2) + [-1] * (WRITES // 2),
        "answers to writes before and behind the file's end",
    )
    equal(report["discard"], -1, "answer to a discard behind the file's end")
    equal(report["flushes_failed"], 0, "flushes that failed")
    guest.shutdown()
    data = image.read_bytes()
    check(not any(data[: first * 512]), "something was written where nothing should be")
    pages = [data[first * 512 + n * PAGE :][:PAGE] for n in range(WRITES // 2)]
    check(all(any(page) for page in pages) and pages[0] != pages[1], "what was answered is not in the file")
