"""What a disk does is counted in the files that xentop and scripts read."""

import re

from lib.basics import check, equal, log, sh, wait_for
from lib.env import Env

BACKENDS = ("rs", "loop")
TIMEOUT = 240
ESTIMATE = 30
NAMES = ("oo_req", "rd_req", "wr_req", "f_req", "ds_req", "rd_sect", "wr_sect")
ERRORS = ("rd_err", "wr_err", "f_err", "ds_err", "refused")


def run(env: Env) -> None:
    image = env.file("ext4", "disk", 32 << 20)
    device = env.device(32)
    guest = env.guest(env.disk(image, "xvda"), env.disk(device, "xvdb", access="r"))
    disks = {vdev: f"/sys/bus/xen-backend/devices/vbd-{guest.domid}-{number}" for vdev, number in (("xvda", 51712), ("xvdb", 51728))}

    def numbers(vdev: str) -> dict[str, int]:
        names = NAMES + (ERRORS if env.backend == "rs" else ())
        return {name: int(sh(f"cat {disks[vdev]}/statistics/{name}")) for name in names}

    equal([sh(f"cat {disks[vdev]}/mode").strip() for vdev in disks], ["w", "r"], "mode")
    major, minor = sh(f"stat -Lc '%t %T' {device}").split()
    equal(sh(f"cat {disks['xvdb']}/physical_device").strip(), f"{major}:{minor}", "physical_device")

    before = numbers("xvda")
    guest.sh("dd if=/dev/zero of=/dev/xvda bs=16k count=64 oflag=direct conv=notrunc,fsync; dd if=/dev/xvda of=/dev/null bs=32k count=16 iflag=direct; "
             "blkdiscard -o 8M -l 4M /dev/xvda")
    wait_for(lambda: numbers("xvda")["ds_req"] > before["ds_req"], 10, "the discard to be counted")
    after = numbers("xvda")
    used = {name: after[name] - before[name] for name in after}
    log(f"{used}")
    equal((used["wr_req"], used["wr_sect"], used["rd_req"], used["rd_sect"]), (64, 2048, 16, 1024), "requests and sectors written and read")
    check(used["f_req"] >= 1 and used["ds_req"] >= 1, f"flushes and discards: {used}")

    # xentop adds up what all disks of a domain have done.
    row = re.search(rf"^\s*{guest.name}\s.*$", sh("xentop -b -i 1"), re.M)
    check(row, "xentop does not show the guest")
    words = row[0].split()
    total = {name: numbers("xvda")[name] + numbers("xvdb")[name] for name in NAMES}
    log(f"xentop: {row[0].strip()}; files: {total}")
    for name in ("rd_req", "wr_req", "rd_sect", "wr_sect"):
        check(str(total[name]) in words, f"xentop shows no {name} of {total[name]}: {row[0]}")

    if env.backend == "rs":
        equal([after[name] for name in ERRORS], [0] * len(ERRORS), "errors")
        sh(f"truncate -s 16M {image}")  # what is gone cannot be read
        guest.fails("dd if=/dev/xvda of=/dev/null bs=4k count=4 skip=6000 iflag=direct")
        check(numbers("xvda")["rd_err"] > 0, f"no read error was counted: {numbers('xvda')}")
    guest.shutdown()
