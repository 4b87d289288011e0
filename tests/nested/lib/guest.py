"""A guest: an ordinary xl.cfg, the toolstack's commands, and commands inside the guest over its console."""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import os
import re
import select
import subprocess
import termios
import time
import tty
from pathlib import Path
from typing import TYPE_CHECKING

from .basics import PACE, Failure, check, equal, log, read, run, there, wait_for

if TYPE_CHECKING:
    from .env import Env

KERNEL = "/opt/guest/vmlinux"
HVM_KERNEL = "/opt/guest/vmlinuz"
RAMDISK = "/opt/guest/guest.cpio"
# Scripts for guests that count how often they try do so $XB_PACE times as often; it is a whole number.
WHOLE_PACE = math.ceil(PACE)
# The kernel unpacks one archive after the other.
FRONTEND = "/opt/guest/frontend.cpio"
EXTRA = (  # the last line spares a second of each boot
    "console=hvc0 quiet loglevel=4 clocksource=tsc tsc=reliable panic=-1 random.trust_cpu=on sysrq_always_enabled"
    " nokaslr audit=0 lsm= rcupdate.rcu_expedited=1 cryptomgr.notests"
)
TMP = Path("/run/xb-guests")
VERIFY = (
    "fio --name=v --filename=/dev/{0} --rw=randrw --offset=4m --size=512k --bsrange=4k-64k --iodepth=8"
    " --ioengine=libaio --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --verify_dump=0 --thread --minimal"
)


def vdev_number(vdev: str) -> int:
    """The device number that libxl gives xvdX and xvdXN (docs/misc/vbd-interface.txt)."""
    match = there(re.fullmatch(r"xvd([a-z]+)(\d*)", vdev), f"no name of a Xen disk: {vdev}")
    disk = 0
    for letter in match[1]:
        disk = disk * 26 + ord(letter) - ord("a") + 1
    disk -= 1
    partition = int(match[2] or 0)
    return 202 << 8 | disk << 4 | partition if disk < 16 and partition < 16 else 1 << 28 | disk << 8 | partition


def with_frontend() -> Path:
    """The ramdisk with the ring-level frontend, put together at its first use in a boot."""
    path = TMP / "frontend.cpio"
    if not path.exists():
        with path.open("wb") as file:
            for part in (RAMDISK, FRONTEND):
                file.write(Path(part).read_bytes())
                file.write(b"\0" * (-file.tell() % 4))
    return path


class Result:
    """What a command in a guest said."""

    def __init__(self, code: int, output: str) -> None:
        self.code = code
        self.output = output


class Guest:
    """A guest made from an xl.cfg. Use it through Env.guest(), which destroys what a test leaves behind."""

    ids = itertools.count(1)

    def __init__(
        self,
        env: Env,
        disks: list[str],
        *,
        name: str | None = None,
        kind: str = "pv",
        memory: int = 192,
        vcpus: int = 1,
        extra: str = "",
        more: str = "",
        frontend: bool = False,
        drives: tuple[str, ...] = (),
        bootloader: str = "",
        on_reboot: str = "destroy",
    ) -> None:
        """With frontend=True the guest's kernel leaves the disks alone, and the program blkif-frontend is there. DRIVES
        are disks that the guest's own driver does not see."""
        self.env = env
        self.kind = kind
        self.name = name or f"g{next(self.ids)}"
        self.domid = 0
        self.console = -1
        self.buffer = b""
        self.transcript = b""
        self.config = TMP / f"{self.name}.cfg"
        TMP.mkdir(exist_ok=True)
        ramdisk = RAMDISK
        if frontend:
            extra += " xb.nofront"
            ramdisk = str(with_frontend())
        self.frontend = frontend
        command_line = f"{EXTRA} xb.pace={WHOLE_PACE} {extra}".strip()
        boot = [f'kernel = "{HVM_KERNEL if kind == "hvm" else KERNEL}"', f'ramdisk = "{ramdisk}"']
        if bootloader:
            boot = [f'bootloader = "{bootloader}"']
        lines = [
            f'name = "{self.name}"',
            f'type = "{kind}"',
            f"memory = {memory}",
            f"maxmem = {memory}",
            f"vcpus = {vcpus}",
            *boot,
            f'extra = "{command_line}"',
            'tsc_mode = "native"',
            'on_crash = "destroy"',
            f'on_reboot = "{on_reboot}"',
            "disk = [ " + ",\n         ".join(f"'{disk}'" for disk in (*disks, *drives)) + " ]",
        ]
        if kind == "hvm":
            lines += ['vga = "none"', 'serial = "pty"']
        self.config.write_text("\n".join(lines) + "\n" + more)
        self.disks = disks

    # The toolstack.

    def try_create(self, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """xl create, for tests in which it may fail; the caller looks at the exit status and the messages."""
        return run("xl", "create", str(self.config), timeout=timeout)

    def create(self, timeout: float = 120) -> Guest:
        """xl create, and waits until the guest takes commands."""
        done = self.try_create(timeout)
        if done.returncode:
            raise Failure(f"xl create: {(done.stdout + done.stderr).strip()}")
        self.attached_after_create(timeout)
        return self

    def attached_after_create(self, timeout: float = 120) -> None:
        self._find()
        self._ready(timeout)

    def _find(self) -> None:
        self.domid = self._number()
        check(self.domid, f"there is no domain {self.name}")

    def _number(self, other_than: int = 0) -> int:
        """The number of the domain with this name, from xenstore: `xl domid` costs a third of a second here."""
        store = self.env.store
        return next(
            (
                int(domid)
                for domid in store.list("/local/domain")
                if int(domid) != other_than and store.read(f"/local/domain/{domid}/name") == self.name
            ),
            0,
        )

    def reboot(self, timeout: float = 120) -> None:
        """The guest reboots itself (it needs on_reboot="restart"), which makes it another domain."""
        before = self.domid
        self.tell("sync; reboot -f")
        self.domid = wait_for(lambda: self._number(before), timeout, f"{self.name} in a new domain")
        self.close()
        self._ready(timeout)

    def kexec(self, timeout: float = 120) -> None:
        """The guest starts another kernel, which it has loaded before (`kexec -l`), in the same domain."""
        self.tell("sync; kexec -e")
        self.close()
        self._ready(timeout)

    def _ready(self, timeout: float) -> None:
        """Waits until the guest takes commands and has its disks."""
        self._open_console()
        self._until(re.compile(rb"@READY\r?\n"), timeout, "the guest to take commands")
        log(f"{self.name} takes commands")
        self.wait_disks(*(vdev_of(disk) for disk in self.disks))
        self.env.look_around()

    def _open_console(self) -> None:
        node = f"/local/domain/{self.domid}/console/tty"
        path: str = wait_for(lambda: self.env.store.read(node), 20, "the guest's console")
        self.console = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(self.console, termios.TCSANOW)

    def keep_reading(self, vdev: str) -> None:
        """Has a program in the guest read the disk again and again, for what happens to the guest in mid-I/O."""
        self.sh(f"(while dd if=/dev/{vdev} of=/dev/null bs=64k iflag=direct; do :; done) >/dev/null 2>&1 &")

    def keep_verifying(self, vdev: str) -> None:
        """Has fio in the guest write and verify half of the disk's fifth MiB, again and again, until
        stop_verifying()."""
        self.sh(
            f"rm -f /tmp/{vdev}.*; {{ r=0; while [ $r -eq 0 ]; do {VERIFY.format(vdev)} >/tmp/{vdev}.fio 2>&1; r=$?; "
            f"[ ! -e /tmp/{vdev}.stop ] || break; done; echo $r >/tmp/{vdev}.end; }} >/dev/null 2>&1 &"
        )

    def stop_verifying(self, vdev: str, *, failed: bool = False) -> None:
        """All data must have been right, and no request failed unless that is what is wanted: then it ends by
        itself."""
        stop = "" if failed else f"touch /tmp/{vdev}.stop; "
        self.sh(
            f"{stop}until [ -s /tmp/{vdev}.end ]; do usleep 20000; done; read -r r </tmp/{vdev}.end; "
            f"[ $r {'!=' if failed else '='} 0 ] || {{ tail -c 1500 /tmp/{vdev}.fio; exit 1; }}",
            90,
        )

    def save(self, path: Path) -> None:
        """xl save, which ends the domain here."""
        self._toolstack("save", self.name, str(path))
        self.gone()

    def restore(self, path: Path) -> None:
        self._toolstack("restore", str(path))
        self.attached_again()

    def migrate(self) -> None:
        """To this very machine: for a moment there are two domains with the same disks."""
        before = self.domid
        self._toolstack("migrate", "-s", "", self.name, "xl migrate-receive")
        wait_for(lambda: before not in self.env.domains(), 30, f"{self.name}'s former domain {before} gone")
        self.attached_again()

    def attached_again(self) -> None:
        """The guest goes on in a new domain, with a new console."""
        self.close()
        self._find()
        self._open_console()
        self.sh("true")

    def _toolstack(self, *words: str, timeout: float = 120) -> None:
        done = run("xl", *words, timeout=timeout)
        if done.returncode:
            log(run("xl", "dmesg").stdout[-3000:])
        equal(done.returncode, 0, f"xl {' '.join(words)} ({(done.stdout + done.stderr).strip()[-2000:]})")

    def exists(self) -> bool:
        """Whether the domain is there, be it only dying."""
        return bool(self.domid) and run("xl", "domname", str(self.domid)).returncode == 0

    def destroy(self) -> None:
        done = run("xl", "destroy", self.name)
        equal(done.returncode, 0, f"xl destroy {self.name} ({done.stderr.strip()})")
        check("error" not in done.stderr.lower(), f"xl destroy {self.name} complains: {done.stderr.strip()}")
        self.gone()

    def shutdown(self) -> None:
        """The guest powers itself off, and everything of it goes away."""
        self.tell("sync; umount -a -r 2>/dev/null; poweroff -f")
        self.gone(60)

    def tell(self, script: str) -> None:
        """Has a script run that ends the guest, so that there will be no answer."""
        self._send("X 0 " + base64.b64encode(script.encode()).decode())

    def gone(self, timeout: float = 30) -> None:
        """Waits until the domain is gone wholly: one whose pages a backend still maps stays as a zombie."""
        if self.domid:
            number = self.domid
            wait_for(lambda: number not in self.env.domains(), timeout, f"{self.name} (domain {number}) gone")
            log(f"{self.name} is gone")
        self.close()
        self.domid = 0

    def close(self) -> None:
        if self.console >= 0:
            os.close(self.console)
        self.console = -1

    def try_attach(self, disk: str) -> subprocess.CompletedProcess[str]:
        return run("xl", "block-attach", self.name, disk)

    def attach(self, disk: str, *, wait: bool = True) -> None:
        """xl block-attach, and waits until the guest sees the disk (or leaves that to the caller's next command)."""
        without_complaint(self.try_attach(disk))
        if wait:
            self.wait_disks(vdev_of(disk))
        self.env.look_around()

    def wait_disks(self, *vdevs: str) -> None:
        """Waits in the guest until it has these disks, with their sizes."""
        if not vdevs or self.frontend:
            return
        result = self.run(until_there(*vdevs))
        if result.code:
            vdev = result.output.split()[-1]
            raise Failure(
                f"{vdev} does not appear in {self.name}; its backend: {self.env.store.values(self.backend(vdev))}"
            )

    def wait_size(self, vdev: str, sectors: int) -> float:
        """Waits in the guest until a disk has this many sectors; how many seconds that took there."""
        took = self.sh(
            f"t=$(cut -d' ' -f1 /proc/uptime); n=0; until [ $(cat /sys/class/block/{vdev}/size) -eq {sectors} ]; do"
            " n=$((n+1)); [ $n -lt $((500 * XB_PACE)) ] || exit 1; usleep 20000; done; echo $t $(cut -d' ' -f1"
            " /proc/uptime)"
        )
        start, end = map(float, took.split())
        return end - start

    def detach(self, vdev: str) -> None:
        """xl block-detach without force: fails when the guest does not let go or the backend does not finish."""
        without_complaint(run("xl", "block-detach", self.name, str(vdev_number(vdev))))

    # Its disks, as dom0 sees them.

    def backend(self, vdev: str) -> str:
        kind = "qdisk" if self.env.backend == "qdisk" else "vbd"
        return f"/local/domain/0/backend/{kind}/{self.domid}/{vdev_number(vdev)}"

    def bus_name(self, vdev: str) -> str:
        """What a disk is called on dom0's bus."""
        return f"vbd-{self.domid}-{vdev_number(vdev)}"

    def device(self, vdev: str) -> str:
        """The disk's directory on that bus."""
        return f"/sys/bus/xen-backend/devices/{self.bus_name(vdev)}"

    def statistics(self, vdev: str) -> str:
        """Where the backend counts what a disk does."""
        return f"{self.device(vdev)}/statistics"

    def debug_state(self, vdev: str) -> str:
        """What this module says about a disk."""
        return read(f"/sys/kernel/debug/xen-blkback-rs/{self.bus_name(vdev)}/state")

    def served_by(self, vdev: str) -> str:
        """The module or program that serves a disk."""
        if self.env.store.read(f"{self.backend(vdev)}/frontend") and self.env.backend == "qdisk":
            return "qdisk"
        device = self.device(vdev)
        module = f"{device}/driver/module"
        return (
            os.path.basename(os.path.realpath(module))
            if os.path.exists(module)
            else (
                os.path.basename(os.path.realpath(f"{device}/driver"))
                if os.path.exists(f"{device}/driver")
                else "nobody"
            )
        )

    def check_served(self, *vdevs: str) -> None:
        for vdev in vdevs:
            equal(self.served_by(vdev), self.env.driver, f"{self.name}: who serves {vdev}")

    # Commands inside.

    def run(self, script: str, timeout: float = 60) -> Result:
        """Runs a shell script inside the guest."""
        number = next(self.ids)
        start = time.monotonic()
        text = base64.b64encode(script.encode()).decode()
        check(len(text) < 4000, "a script for a guest must be short: a terminal's input line is")
        self._send(f"X {number} {text}")
        for _ in range(3):
            found = self._until(
                re.compile(rb"@E %d (\d+) ([0-9a-f]{32})\r?\n" % number), timeout, f"{self.name}: {script!r} to end"
            )
            lines = [line[3:].strip() for line in self.before.split(b"\n") if line.startswith(b"@D ")]
            try:
                output = base64.b64decode(b"".join(lines), validate=True)
            except ValueError:
                output = b"?"
            if hashlib.md5(output).hexdigest().encode() == found[2]:
                result = Result(int(found[1]), output.decode(errors="replace"))
                log(f"{self.name}# {script}   [{result.code}, {time.monotonic() - start:.1f} s]")
                return result
            log(f"{self.name}: answer garbled, asking again")
            self._send(f"R {number}")
        raise Failure(f"{self.name}: no intact answer to {script!r}")

    def sh(self, script: str, timeout: float = 60) -> str:
        """Runs a script that must succeed; returns its output."""
        result = self.run(script, timeout)
        if result.code:
            raise Failure(f"{self.name}: {script!r} ended with {result.code}: {result.output.strip()[-2000:]}")
        return result.output

    def fails(self, script: str, timeout: float = 60) -> str:
        """Runs a script that must not succeed; returns its output."""
        result = self.run(script, timeout)
        check(result.code != 0, f"{self.name}: {script!r} succeeded, but must not: {result.output.strip()[-1000:]}")
        return result.output

    def _send(self, line: str) -> None:
        data = line.encode() + b"\n"
        while data:
            select.select([], [self.console], [], 10)
            data = data[os.write(self.console, data[:512]) :]

    def _until(self, pattern: re.Pattern[bytes], timeout: float, what: str) -> re.Match[bytes]:
        """Reads the console until PATTERN; what came before it is then in self.before."""
        timeout *= PACE
        end = time.monotonic() + timeout
        while True:
            found = pattern.search(self.buffer)
            if found:
                self.before = self.buffer[: found.start()]
                self.buffer = self.buffer[found.end() :]
                return found
            left = end - time.monotonic()
            if left <= 0 or b"Kernel panic" in self.buffer or b"@DEAD" in self.buffer:
                raise Failure(f"gave up after {timeout - left:.0f} s waiting for {what}; console:\n{self.tail()}")
            if select.select([self.console], [], [], min(left, 1.0))[0]:
                try:
                    data = os.read(self.console, 65536)
                except OSError:
                    raise Failure(f"the console went away while waiting for {what}; it said:\n{self.tail()}") from None
                self.buffer += data
                self.transcript = (self.transcript + data)[-20000:]
            elif self.domid not in self.env.domains():
                raise Failure(f"the guest is gone while waiting for {what}; console:\n{self.tail()}")

    def ask_kernel(self) -> None:
        """Has the guest's kernel say on the console who waits for what; for a test that has failed."""
        for key in "9wtl":
            run("xl", "sysrq", self.name, key)
        end = time.monotonic() + 5 * PACE
        while time.monotonic() < end:
            if select.select([self.console], [], [], 1.0)[0]:
                try:
                    self.transcript = (self.transcript + os.read(self.console, 65536))[-200000:]
                except OSError:
                    return

    def tail(self, size: int = 3000) -> str:
        text = self.transcript.decode(errors="replace")
        return "\n".join(line.rstrip() for line in text.splitlines() if not line.startswith("@D "))[-size:]


def without_complaint(done: subprocess.CompletedProcess[str]) -> None:
    """Fails unless xl succeeded and its messages are of no error: it succeeds at times in spite of one."""
    text = (done.stdout + done.stderr).strip()
    check(done.returncode == 0 and "error" not in text.lower(), f"{' '.join(done.args)} [{done.returncode}]: {text}")


def until_there(*vdevs: str) -> str:
    """A script for a guest that waits until it has these disks, with their sizes, or names the one that does not
    come."""
    return (
        f"for d in {' '.join(vdevs)}; do n=0; until [ -b /dev/$d ] && read -r s </sys/class/block/$d/size && [ $s -gt 0"
        " ]; do n=$((n+1)); [ $n -lt $((400 * XB_PACE)) ] || { echo $d; exit 1; }; usleep 50000; done; done; "
    )


def vdev_of(disk: str) -> str:
    """The device name in a disk specification, in either of xl's notations."""
    return there(re.search(r"vdev=(\w+)", disk) or re.search(r",(xvd\w+)", disk), f"no vdev in {disk}")[1]
