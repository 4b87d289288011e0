"""What `make demo` shows, inside dom0: the module loaded by hand, a guest on a raw file and one on a block device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.basics import Failure, check, silence
from lib.env import Env
from lib.guest import Guest

FIO = (
    "fio --name={name} --filename=/dev/{vdev} --rw=randrw --bs=4k --size=8m --iodepth=16 --ioengine=libaio --direct=1"
    " --verify=crc32c --do_verify=1 --verify_fatal=1 --thread 2>&1 | grep -E 'err=|read:|write:|IOPS' | head -4"
)


def title(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def show(command: str, *, empty: str = "(nothing)") -> str:
    """Runs a command in dom0 as an administrator would, and shows it with what it says."""
    print(f"dom0# {command}", flush=True)
    done = subprocess.run(["bash", "-c", command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text = done.stdout.rstrip()
    print("\n".join(f"      {line}" for line in (text or empty).splitlines()), flush=True)
    return text


def inside(guest: Guest, script: str) -> None:
    print(f"{guest.name}# {script}", flush=True)
    print("\n".join(f"      {line}" for line in guest.sh(script, timeout=120).rstrip().splitlines()), flush=True)


def main() -> None:
    env = Env("rs")
    silence()
    title("The module, on the kernel as Debian ships it")
    show("uname -r; modprobe xen-blkback-rs && modinfo -F description xen-blkback-rs; lsmod | grep xen_blkback")

    title("A guest whose disk is a raw file, and one on a block device; ordinary xl.cfg")
    image = env.file("ext4", "guest.img", 64 << 20)
    device = env.device(64)
    on_file = env.new_guest(f"format=raw,vdev=xvda,access=w,target={image}", name="on-file")
    on_device = env.new_guest(f"phy:{device},xvda,w", name="on-device")
    for guest in (on_file, on_device):
        show(f"cat {guest.config}")
        guest.create()
        print(f"dom0# xl create {guest.config.name}      (running, its disk is there)", flush=True)

    title("Work inside: a file system, and fio with checksums")
    for guest in (on_file, on_device):
        inside(
            guest,
            "mkfs.ext4 -q /dev/xvda && modprobe ext4 && mount -t ext4 /dev/xvda /mnt && cp /bin/busybox /mnt && sync &&"
            " df -h /mnt && umount /mnt",
        )
        inside(guest, FIO.format(name=guest.name, vdev="xvda"))

    title("Who serves them")
    show("xl list")
    show("xl block-list on-file; xl block-list on-device")
    for guest in (on_file, on_device):
        check(guest.served_by("xvda") == "xen_blkback_rs", f"{guest.name} is served by {guest.served_by('xvda')}")
    show(
        "for d in /sys/bus/xen-backend/devices/vbd-*; do echo ${d##*/}: $(basename $(realpath $d/driver/module)); done"
    )
    check(not show("losetup -a", empty="(no loop device)"), "a loop device is in use")
    check(not show("pgrep -a qemu", empty="(no qemu process)"), "qemu is running")
    show("dmesg | grep 'xen_blkback_rs: backend' | cut -d']' -f2-")

    title("And it goes as it came")
    sums = {guest.name: guest.sh("md5sum </dev/xvda").split()[0] for guest in (on_file, on_device)}
    for guest in (on_file, on_device):
        guest.shutdown()
    for guest, target in ((on_file, image), (on_device, device)):
        print(f"      {guest.name}: md5 seen by the guest {sums[guest.name]}", flush=True)
        check(sums[guest.name] in show(f"md5sum {target}"), "dom0 finds other data than the guest had")
    show("rmmod xen-blkback-rs && echo unloaded")
    print("\ndemo: all as it should be", flush=True)


try:
    main()
except Failure as failure:
    print(f"\ndemo: FAILED: {failure}", flush=True)
    subprocess.run("dmesg | tail -n 30", shell=True)
    sys.exit(1)
