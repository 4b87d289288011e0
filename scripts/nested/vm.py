"""One emulated machine with Xen and dom0: its QEMU process, its drives, and the lines to what runs inside."""

from __future__ import annotations

import io
import json
import os
import select
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from image import NESTED, TOP, Image, write_cpio
from xb import buildroot, failcalls, frontend
from xb.common import BUILD, Fail, lock, rel, remove
from xb.module import Target

ROOT = BUILD / "root"
TESTS = TOP / "tests/nested"
DIST = TOP / "dist"
MEMORY, DOM0_MEMORY = 2304, 1152
# QEMU's emulation loses AVX state when Xen switches between virtual processors (10.0: dom0's programs crash or hang
# in one boot of two), so the machine has none of it, nor XSAVE.
CPU = "max,-xsave,-avx,-avx2"
# The scratch drives by serial number, in MiB: sparse files on the host.
DRIVES = {"xb-ext4": 1024, "xb-xfs": 1024, "xb-btrfs": 1024, "xb-bdev": 1024}
# How many times longer than on an idle host everything may take; the machine measures it and reports what it finds.
# XB_PACE is the least that counts, for what is slow in itself.
PACE = max(float(os.environ.get("XB_PACE") or 1), 1.0)
# Nobody knows yet how slow the machine is: 15 to 17 are usual on an idle host, and this is thirty times that.
BOOT_SECONDS = 480 * PACE


class Dead(Fail):
    """The machine ended, or says nothing any more."""


def qemu(root: Path = ROOT) -> list[str]:
    """QEMU from the build root, run on any host by the root's own loader; or the host's own, when there is no root."""
    binary = root / "usr/bin/qemu-system-x86_64"
    if not binary.exists():
        found = shutil.which("qemu-system-x86_64")
        if not found:
            raise Fail("no QEMU: run `make` first, it makes the build root")
        return [found]
    return [
        str(root / "usr/lib64/ld-linux-x86-64.so.2"),
        "--library-path",
        str(root / "usr/lib/x86_64-linux-gnu"),
        str(binary),
        "-L",
        str(root / "usr/share/qemu"),
        "-L",
        str(root / "usr/share/seabios"),
    ]


def module_files(kver: str, backend: str, module: Path | None = None) -> list[tuple[Path, str, int]]:
    """What an installed xen-blkback-rs consists of: (source, path in dom0, mode). MODULE is another one than `make`
    builds."""
    if backend != "rs":
        return []
    module = module or BUILD / "module" / kver / "xen-blkback-rs.ko"
    if not module.exists():
        raise Fail(f"no {rel(module)}: run `make KVER={kver}` first, or choose --backend loop or qdisk")
    files = [(module, f"usr/lib/modules/{kver}/updates/xen-blkback-rs.ko", 0o644)]
    for name, target, mode in (
        ("xen-blkback-rs.conf", "etc/modprobe.d/xen-blkback-rs.conf", 0o644),
        ("block-rs", "etc/xen/scripts/block-rs", 0o755),
    ):
        if (DIST / name).exists():
            files.append((DIST / name, target, mode))
    return files


def fault_files(to: Target, backend: str) -> list[tuple[Path, str, int]]:
    """The module by which calls of ours are made to fail, for dom0's kernel."""
    if backend != "rs":
        return []
    return [(failcalls.build(to), f"usr/lib/modules/{to.release}/updates/{failcalls.NAME}.ko", 0o644)]


def frontend_files() -> list[tuple[Path, str, int]]:
    """The ring-level frontend, as an archive that dom0 appends to the ramdisk of a guest: so no image depends on it."""
    binary = frontend.build()
    archive = NESTED / "frontend.cpio"
    if not archive.exists() or archive.stat().st_mtime < binary.stat().st_mtime:
        tree = NESTED / ".frontend"
        remove(tree)
        (tree / "sbin").mkdir(parents=True)
        shutil.copy(binary, tree / "sbin/blkif-frontend")
        new = archive.with_name(f".{archive.name}.{os.getpid()}")
        write_cpio(tree, new)
        new.rename(archive)
        remove(tree)
    return [(archive, "opt/guest/frontend.cpio", 0o644)]


def xl_clock() -> tuple[Path, str, int]:
    """The library that slows down xl's clock on a slow machine."""
    source, library = Path(__file__).with_name("xl_clock.c"), NESTED / "xl_clock.so"
    with lock("xl-clock"):  # several machines are made at a time
        if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
            new = library.with_name(f".{library.name}.new")
            buildroot.run(
                ["gcc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(new), str(source)], log="xl-clock"
            )
            new.rename(library)
    return library, "opt/xb/lib/xl_clock.so", 0o644


def tar_drive(target: Path, files: list[tuple[Path, str, int]]) -> None:
    """The drive that every boot unpacks over dom0's root: agent, library, tests and the module, as they are now."""

    def root_owned(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        return None if "__pycache__" in info.name else info

    with tarfile.open(target, "w") as tar:
        for name in ("dom0", "lib", "tests"):
            tar.add(TESTS / name, f"opt/xb/{name}", filter=root_owned)
        for source, path, mode in files:
            info = tarfile.TarInfo(path)
            data = source.read_bytes()
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))
    with target.open("ab") as file:
        file.write(b"\0" * (-file.tell() % 4096))


class Clock(threading.Thread):
    """Tells dom0 how much processor time the thread of the machine's first processor has used, in nanoseconds: a line
    for each that dom0 sends."""

    def __init__(self, process: int, line: socket.socket) -> None:
        super().__init__(daemon=True)
        self.line = line
        for task in Path(f"/proc/{process}/task").iterdir():
            with suppress(FileNotFoundError):  # one that has ended meanwhile
                if (task / "comm").read_text().startswith("CPU 0/"):
                    self.account = task / "schedstat"
        self.start()

    def run(self) -> None:
        with self.line, suppress(OSError):  # until QEMU has ended
            for _ in self.line.makefile():
                self.line.sendall(self.account.read_text().split()[0].encode() + b"\n")


class Machine:
    """A machine whose drives outlive its power: boot() after kill() is what a power cut is."""

    def __init__(
        self,
        image: Image,
        files: list[tuple[Path, str, int]],
        *,
        cpus: int = 1,
        xen: str = "",
        kernel: str = "",
        memory: int = MEMORY,
        dom0_memory: int = DOM0_MEMORY,
        exact: bool = False,
        clock: bool = False,
        more: list[str] | None = None,
    ) -> None:
        """Sizes are in MiB. An exact machine's clock counts instructions: a nanosecond of it is one. MORE goes to QEMU.
        With CLOCK dom0 can ask a Clock."""
        self.image = image
        self.clock = clock
        self.more = more or []
        self.memory, self.dom0_memory, self.exact = memory, dom0_memory, exact
        self.cpus, self.xen, self.kernel = cpus, xen, kernel
        runs = NESTED / "run"
        runs.mkdir(parents=True, exist_ok=True)
        _sweep(runs)
        self.directory = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=runs))
        tar_drive(self.directory / "tar", [*files, xl_clock()])
        for name, megabytes in DRIVES.items():
            with (self.directory / name).open("wb") as file:
                file.truncate(megabytes << 20)
        self.process: subprocess.Popen[bytes] | None = None
        self.line: socket.socket | None = None
        self.pace = PACE
        self.buffer = b""
        self.console = self.directory / "console.log"

    def command(self, agent: int | None, clock: int | None = None) -> list[str]:
        """The whole command line. cache=unsafe: what dom0 has sent to a drive survives our SIGKILL in the host's
        page cache, what it still holds itself does not; so a power cut means what it should."""
        image = self.image
        xen = (
            f"com1=115200,8n1 console=com1 dom0_mem={self.dom0_memory}M,max:{self.dom0_memory}M loglvl=all"
            f" guest_loglvl=all conring_size=256k spec-ctrl=no noreboot watchdog=0 {self.xen}"
        )
        kernel = f"console=hvc0 quiet loglevel=5 panic=-1 mitigations=off random.trust_cpu=on {self.kernel}"
        emulation = (
            [
                "tcg,thread=single",
                "-icount",
                "shift=0,sleep=off,align=off",
                "-seed",
                "1",
                "-rtc",
                "base=2026-11-01,clock=vm",
            ]
            if self.exact
            else ["tcg,thread=multi"]
        )
        # QEMU gives up ("Bad icount read") where an x2APIC's timer is set.
        cpu = f"{CPU},-x2apic" if self.exact else CPU
        argv = [
            *qemu(),
            "-accel",
            *emulation,
            "-cpu",
            cpu,
            "-smp",
            str(self.cpus),
            "-m",
            str(self.memory),
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-kernel",
            str(image.xen),
            "-append",
            xen,
            "-initrd",
            f"{image.kernel} {kernel},{image.initramfs}",
        ]
        argv += self.more
        drives = [(image.root, "xb-root", ",snapshot=on"), (self.directory / "tar", "xb-tar", "")]
        drives += [(self.directory / name, name, ",discard=unmap") for name in DRIVES]
        # For a guest that is to have a Debian as its root, too.
        drives += [(image.root, "xb-root-again", ",readonly=on")]
        for number, (path, serial, more) in enumerate(drives):
            argv += [
                "-drive",
                f"file={path},format=raw,if=none,id=d{number},cache=unsafe,aio=threads{more}",
                "-device",
                f"virtio-blk-pci,drive=d{number},serial={serial}",
            ]
        if agent is None:
            return [*argv, "-serial", "mon:stdio"]
        argv += ["-serial", f"file:{self.console}", "-device", "virtio-serial-pci", "-name", "xb,debug-threads=on"]
        for name, line in (("agent", agent), ("clock", clock)):
            if line is not None:
                argv += [
                    "-chardev",
                    f"socket,id={name},fd={line}",
                    "-device",
                    f"virtserialport,chardev={name},name=xb.{name}",
                ]
        return argv

    def boot(self) -> str:
        """Switches on, waits for dom0's agent, returns the kernel release that it reports."""
        agent, clock = socket.socketpair(), socket.socketpair()
        self.buffer = b""
        lines = [agent[1].fileno(), *([clock[1].fileno()] if self.clock else [])]
        with agent[1], clock[1]:
            # setpriv: QEMU must not outlive us, however we end.
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.command(*lines)],
                stdin=subprocess.DEVNULL,
                stdout=(self.directory / "qemu.log").open("ab"),
                stderr=subprocess.STDOUT,
                pass_fds=lines,
                env=os.environ | {"TMPDIR": str(self.directory)},
            )
        self.line = agent[0]
        end = time.monotonic() + BOOT_SECONDS
        while "ready" not in (message := self.receive(end - time.monotonic())):
            self.pace = max(message["pace"], PACE)
        if self.clock:
            Clock(self.process.pid, clock[0])
        return message["ready"]

    def send(self, **message: Any) -> None:
        assert self.line
        try:
            self.line.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            raise Dead(f"the machine is gone\n{self.tail()}") from None

    def receive(self, timeout: float) -> dict[str, Any]:
        """The next message from dom0."""
        assert self.line and self.process
        end = time.monotonic() + timeout
        while b"\n" not in self.buffer:
            left = end - time.monotonic()
            if left <= 0:
                raise Dead(f"dom0 says nothing for {timeout:.0f} s\n{self.tail()}")
            if select.select([self.line], [], [], min(left, 1))[0]:
                try:
                    data = self.line.recv(65536)
                except OSError:
                    data = b""
                if not data:
                    raise Dead(f"the machine ended\n{self.tail()}")
                self.buffer += data
            elif self.process.poll() is not None:
                raise Dead(f"QEMU ended with {self.process.returncode}\n{self.tail()}")
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def messages(self, timeout: float) -> Iterator[dict[str, Any]]:
        """Messages until the one that ends a request; TIMEOUT, times the pace, is for the whole request."""
        start = time.monotonic()
        while True:
            message = self.receive(max(start + timeout * self.pace - time.monotonic(), 0.1))
            if "pace" in message:
                self.pace = max(message["pace"], PACE)
                continue
            yield message
            if "result" in message or "exit" in message:
                return

    def execute(self, command: str, timeout: float = 3600) -> Iterator[dict[str, Any]]:
        self.send(exec=command, timeout=timeout)
        return self.messages(timeout + 30)

    def tail(self, lines: int = 40) -> str:
        """The end of the serial console: Xen's and dom0's last words."""
        text = "".join(
            path.read_text(errors="replace") for path in (self.directory / "qemu.log", self.console) if path.exists()
        )
        return "\n".join(line.rstrip() for line in text.splitlines()[-lines:])

    def kill(self) -> None:
        """A power cut."""
        if self.process:
            self.process.kill()
            self.process.wait()
        if self.line:
            self.line.close()
        self.process = self.line = None

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _sweep(runs: Path) -> None:
    """Removes what a run that was killed has left behind."""
    for path in runs.iterdir():
        pid = path.name.partition("-")[0]
        if not Path("/proc", pid).exists():
            shutil.rmtree(path, ignore_errors=True)
