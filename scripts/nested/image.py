"""Images for nested Xen: dom0's root, its initramfs, the hypervisor, and what the guests boot.

    build/nested/base-HASH/      Debian trixie with the Xen tools, unpacked (independent of the kernel: run as a
                                 program, this file makes it ahead of time)
    build/nested/RELEASE-HASH/   dom0.img  dom0.cpio  xen  vmlinuz (with the debug kernel: an ELF file)

Each directory is named after the hash of everything that it is made from, so that a second call finds it and does
nothing. Nothing of the project's own code is in an image: module, tests and agent come in through a tar drive that
vm.py makes at every boot.
"""

from __future__ import annotations

import contextlib
import gzip
import inspect
import lzma
import os
import re
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "scripts"))
sys.dont_write_bytecode = True

from xb import buildroot  # noqa: E402
from xb.common import BUILD, Fail, digest, lock, program, remove, step  # noqa: E402

KERNELS = BUILD / "kernel"
NESTED = BUILD / "nested"
GUEST = TOP / "tests/nested/guest"

XEN = "4.20"
PACKAGES = (
    f"xen-utils-{XEN} xen-hypervisor-{XEN}-amd64 xenstore-utils qemu-system-xen kmod udev python3 fio e2fsprogs"
    " xfsprogs btrfs-progs util-linux mount procps busybox-static dmsetup strace zstd less seabios kexec-tools fuse2fs"
    " nfs-kernel-server rpcbind"
).split()

# What dom0 may load, by name; what these depend on comes along. Kept short: depmod runs at boot, under emulation.
DOM0_MODULES = """virtio_blk virtio_pci virtio_console ext4 xfs btrfs loop brd null_blk dm-mod dm-flakey dm-delay
    dm-log-writes xen-blkback xen-blkfront xen-gntdev xen-gntalloc xen-evtchn xen-privcmd xenfs scsi_debug vfat
    nls_cp437 nls_ascii overlay fuse nfsd nfsv3""".split()
GUEST_MODULES = ("xen-blkfront", "xen-gntalloc", "xen-gntdev", "xen-evtchn", "ext4")
GUEST_PROGRAMS = (
    "usr/bin/fio",
    "usr/sbin/mke2fs",
    "usr/sbin/e2fsck",
    "usr/sbin/blkdiscard",
    "usr/sbin/kexec",
    "usr/bin/dd",
)
# fio is linked with the clients of storage clusters, 50 MB in all. In a guest they are empty stand-ins.
FIO_LIBRARIES = ("libnuma.so.1", "libz.so.1", "libm.so.6", "libaio.so.1t64", "libc.so.6")


@dataclass(frozen=True)
class Image:
    """The files that QEMU boots from, and the kernel release that dom0 is of."""

    release: str
    directory: Path

    @property
    def xen(self) -> Path:
        return self.directory / "xen"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initramfs(self) -> Path:
        return self.directory / "dom0.cpio"

    @property
    def root(self) -> Path:
        return self.directory / "dom0.img"


@dataclass(frozen=True)
class Kernel:
    """A kernel and its modules directory."""

    release: str
    file: Path
    directory: Path

    def state(self) -> list[str | bytes]:
        """Changes when they do."""
        state = self.file.stat()
        return [f"{state.st_size} {state.st_mtime_ns}", (self.directory / "modules.dep").read_bytes()]


def kernel_files(kver: str) -> tuple[Path, Path]:
    """The stock kernel and its modules directory, as scripts/xb.py prepares them."""
    base = KERNELS / kver
    if not (base / "modules/modules.dep").exists():
        raise Fail(f"no kernel {kver} in {base.parent}: run `make` (KVER={kver}) first")
    return base / "vmlinuz", base / "modules"


def ensure(kver: str, dom0: Kernel | None = None) -> Image:
    """The images for release KVER, made when something that they depend on has changed. DOM0 is a kernel for dom0
    alone; the guests run the stock one."""
    stock = Kernel(kver, *kernel_files(kver))
    dom0 = dom0 or stock
    recipe = inspect.getsource(sys.modules[__name__])
    base = ensure_base()
    guest = [path.read_bytes() for path in sorted(GUEST.iterdir()) if path.is_file()]
    key = digest(recipe, base.name, *guest, *stock.state(), *(() if dom0 == stock else dom0.state()))
    directory = NESTED / f"{dom0.release}-{key}"
    if not directory.exists():
        with lock("nested"):
            if not directory.exists():
                _make(base, stock, dom0, directory)
    return Image(dom0.release, directory)


def ensure_base() -> Path:
    """The Debian that dom0's image is made from. Needs neither a kernel nor the build root."""
    base = NESTED / f"base-{digest(buildroot.MIRROR, inspect.getsource(_make_base), *PACKAGES)}"
    if not base.exists():
        with lock("nested"):
            if not base.exists():
                _make_base(base)
    return base


def _make_base(base: Path) -> None:
    """A minimal Debian with Xen's tools; documentation is left out, package recommendations too."""
    for old in NESTED.glob("base-*"):
        remove(old)
    new = NESTED / ".new-base"
    remove(new)
    NESTED.mkdir(parents=True, exist_ok=True)
    leave_out = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale", "info")]
    with step(f"nested: Debian {buildroot.SUITE} with Xen {XEN} for dom0 (about 1 min)"):
        buildroot.mmdebstrap(
            '--aptopt=APT::Install-Recommends "false"',
            *leave_out,
            f"--include={','.join(PACKAGES)}",
            buildroot.SUITE,
            str(new),
            f"deb {buildroot.MIRROR} {buildroot.SUITE} main",
            log="nested-base",
        )
    new.rename(base)


def _make(base: Path, stock: Kernel, dom0_kernel: Kernel, directory: Path) -> None:
    release = dom0_kernel.release
    for old in NESTED.glob(f"{release}-*"):
        with contextlib.suppress(OSError):
            remove(old)
    new = NESTED / f".new-{release}"
    remove(new)
    work = new / "work"
    work.mkdir(parents=True)
    shutil.copy(dom0_kernel.file, new / "vmlinuz")
    (new / "xen").write_bytes(gzip.decompress(next((base / "boot").glob(f"xen-{XEN}*.gz")).read_bytes()))

    with step(f"nested: initramfs of dom0 and of the guests, {release}"):
        dom0 = Tree(work / "dom0-initramfs")
        dom0.add(base / "usr/bin/busybox", "bin/busybox")
        dom0.modules(dom0_kernel, ("virtio_blk", "virtio_pci", "ext4"))
        dom0.write("init", DOM0_INIT, 0o755)
        dom0.finish()
        write_cpio(dom0.path, new / "dom0.cpio")

        guest = Tree(work / "guest")
        _guest_tree(guest, base, stock)
        write_cpio(guest.path, new / "guest.cpio")
        buildroot.run(
            ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(guest.path), str(new / "guest-root.img"), "64M"],
            log="nested-image",
        )

    with step(f"nested: dom0's disk image, {release}"):
        root = Tree(work / "dom0")
        buildroot.run(["cp", "-a", f"{base}/.", str(root.path)], log="nested-image", append=True)
        for each in dict.fromkeys((stock, dom0_kernel)):  # a guest may have this as its root, too
            root.modules(each, DOM0_MODULES)
            buildroot.run(["depmod", "-b", str(root.path), each.release], log="nested-image", append=True)
        payload = work / "payload"
        payload.write_bytes(_payload(stock.file.read_bytes()))
        target = root.path / "opt/guest"
        target.mkdir(parents=True)
        # The guests' kernel is the stock one without its wrapper: unpacking it at every `xl create` costs seconds.
        with (target / "vmlinux").open("wb") as out:
            buildroot.run(["zstd", "-q", "-d", "-c", str(payload)], stdout=out)
        # qemu, which boots HVM guests, wants the wrapper.
        shutil.copy(stock.file, target / "vmlinuz")
        for name in ("guest.cpio", "guest-root.img"):
            shutil.move(new / name, target / name)
        for name in ("boot/xen-*", "var/cache/apt/*", "var/lib/apt/lists/*", "usr/share/qemu/*.fd"):
            for path in root.path.glob(name):
                remove(path)
        for name in ("etc/hostname", "etc/fstab"):
            (root.path / name).write_text("dom0\n" if name.endswith("hostname") else "")
        (root.path / "opt/xb").mkdir()
        buildroot.run(
            [
                "mke2fs",
                "-q",
                "-F",
                "-t",
                "ext4",
                "-E",
                "lazy_itable_init=1",
                "-d",
                str(root.path),
                str(new / "dom0.img"),
                "1200M",
            ],
            log="nested-image",
            append=True,
        )
    remove(work)
    new.rename(directory)


class Tree:
    """A directory that becomes an initramfs or a disk image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def add(self, source: Path, name: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, path)

    def modules(self, kernel: Kernel, names: tuple[str, ...] | list[str]) -> None:
        """NAMES and what they depend on, unpacked: quicker to load and to index under emulation."""
        source, target = kernel.directory, Path("usr/lib/modules") / kernel.release
        for name in modules_closure(source, names):
            data = (source / name).read_bytes()
            plain = re.sub(r"\.xz$", "", name)
            path = self.path / target / plain
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(lzma.decompress(data) if name.endswith(".xz") else data)
        for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
            if (source / name).exists():
                self.add(source / name, str(target / name))
        self.release = kernel.release

    def finish(self) -> None:
        """What every initramfs has."""
        for name in ("proc", "sys", "dev", "run", "tmp", "mnt", "root", "etc", "sbin"):
            (self.path / name).mkdir(exist_ok=True)
        (self.path / "lib").symlink_to("usr/lib")
        (self.path / "lib64").symlink_to("usr/lib64")
        buildroot.run(["depmod", "-b", str(self.path), self.release], log="nested-depmod")


def modules_closure(source: Path, names: tuple[str, ...] | list[str]) -> list[str]:
    """The files of modules NAMES and of all that they need; a name that is built in or does not exist is left out."""
    needs: dict[str, list[str]] = {}
    for line in (source / "modules.dep").read_text().splitlines():
        name, _, rest = line.partition(":")
        needs[name] = rest.split()
    by_name = {re.sub(r"\.ko.*", "", Path(name).name).replace("-", "_"): name for name in needs}
    soft: dict[str, list[str]] = {}
    softdep = source / "modules.softdep"
    for line in softdep.read_text().splitlines() if softdep.exists() else []:
        words = line.split()
        if words[:1] == ["softdep"]:
            soft.setdefault(words[1], []).extend(word for word in words[2:] if not word.endswith(":"))
    found: set[str] = set()
    todo = list(names)
    while todo:
        module = todo.pop().replace("-", "_")
        path = by_name.get(module)
        if path and path not in found:
            todo += soft.get(module, [])
            found.update([path, *needs[path]])
    return sorted(found)


def _guest_tree(tree: Tree, base: Path, kernel: Kernel) -> None:
    """One tree that serves as the guests' initramfs and, in an image, as their root file system."""
    tree.add(base / "usr/bin/busybox", "bin/busybox")
    programs = list(GUEST_PROGRAMS)
    others = [f"/{name}" for name in programs if not name.endswith("/fio")]
    listed = buildroot.run(["chroot", str(base), "ldd", *others], capture=True).stdout
    libraries = {Path(word).name: word for word in re.findall(r"/\S+\.so\S*", listed)}
    for name in FIO_LIBRARIES:
        libraries.setdefault(name, f"/usr/lib/x86_64-linux-gnu/{name}")
    libraries["ld-linux-x86-64.so.2"] = "/usr/lib64/ld-linux-x86-64.so.2"
    directory = tree.path / "usr/lib/x86_64-linux-gnu"
    directory.mkdir(parents=True)
    for name, path in libraries.items():
        tree.add(
            base / path.lstrip("/"),
            f"usr/lib64/{name}" if name.startswith("ld-") else f"usr/lib/x86_64-linux-gnu/{name}",
        )
    for name in programs:
        tree.add(base / name, name.replace("usr/sbin", "sbin"))
    for link, target in (("mkfs.ext4", "mke2fs"), ("fsck.ext4", "e2fsck")):
        (tree.path / "sbin" / link).symlink_to(target)
    tree.add(base / "etc/mke2fs.conf", "etc/mke2fs.conf")
    buildroot.run(["sh", "-ec", STUB_LIBRARIES, "sh", str(base), str(directory), *FIO_LIBRARIES], log="nested-stubs")
    tree.modules(kernel, GUEST_MODULES)
    tree.write("init", (GUEST / "init").read_text(), 0o755)
    tree.finish()


# $1 dom0's root, $2 where to put the libraries, then the libraries that fio really needs. The functions of all others
# abort when called, which fio does only for engines that no test uses.
STUB_LIBRARIES = r"""
base=$1 out=$2; shift 2
cd "$out"
fio=$base/usr/bin/fio
for name; do nm -D --defined-only "$base/usr/lib/x86_64-linux-gnu/$name"; done | sed 's/.* //; s/@.*//' | sort -u >.have
nm -D --undefined-only "$fio" | awk '$1 == "U" {print $2}' | sed 's/@.*//' | sort -u | comm -23 - .have >.lack
{ echo 'extern void abort(void);'; sed 's/.*/void &(void) { abort(); }/' .lack; } >.stub.c
readelf -d "$fio" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' | while read -r name; do
    case " $* " in *" $name "*) continue ;; esac
    gcc -w -shared -fPIC -fno-builtin -O1 -s -nostdlib -Wl,-soname,"$name" -o "$name" .stub.c
done
rm .stub.c .have .lack
"""

DOM0_INIT = """#!/bin/busybox sh
# Process 1 of dom0's initramfs: mounts the disk image, unpacks the tar drive of this run onto it, and goes on there.
/bin/busybox --install -s /sbin
export PATH=/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev
modprobe -a virtio_pci virtio_blk ext4
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do sleep 0.05; done
mount -t ext4 -o noatime,barrier=0 /dev/vda /mnt
tar -xf /dev/vdb -C /mnt
for dir in proc sys dev; do mount --move /$dir /mnt/$dir; done
exec switch_root /mnt /opt/xb/dom0/init
"""


def _payload(image: bytes) -> bytes:
    """The compressed kernel inside a bzImage (Documentation/arch/x86/boot.rst: payload_offset, payload_length)."""
    start = ((image[0x1F1] or 4) + 1) * 512 + int.from_bytes(image[0x248:0x24C], "little")
    length = int.from_bytes(image[0x24C:0x250], "little")
    payload = image[start : start + length]
    if payload[:4] != b"\x28\xb5\x2f\xfd":
        raise Fail("the kernel is not packed with zstd")
    return payload[:-4]  # the last four bytes are the unpacked size, appended by the kernel's build


def write_cpio(tree: Path, target: Path) -> None:
    """TREE as a newc archive, not compressed: unpacking costs more under emulation than loading."""
    with target.open("wb") as out:

        def entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
            header = [0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0]
            out.write(b"070701" + b"".join(b"%08X" % field for field in header) + name.encode() + b"\0")
            out.write(b"\0" * (-out.tell() % 4))
            out.write(data + b"\0" * (-len(data) % 4))

        entry("dev", stat.S_IFDIR | 0o755)
        entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
        for directory, dirs, files in os.walk(tree):
            for name in sorted(dirs + files):
                path = Path(directory, name)
                mode = path.lstat().st_mode
                if path.is_symlink():
                    data = os.readlink(path).encode()
                elif path.is_file():
                    data = path.read_bytes()
                else:
                    data = b""
                if str(path.relative_to(tree)) != "dev":
                    entry(str(path.relative_to(tree)), mode, data)
        entry("TRAILER!!!", 0)


def main() -> int:
    ensure_base()
    return 0


if __name__ == "__main__":
    program(main)
