"""Which kernels exist: read from the archive's package lists with the build root's apt, cached for a day.

A release that counts is a plain amd64 image with headers and linux-source of the same version. Nothing here knows a
version number: when the archive moves on, the next reading sees it.
"""

from __future__ import annotations

import platform
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import buildroot
from .common import BUILD, Fail, lock, read_json, step, write_json

CACHE = BUILD / "archive.json"
DAY = 24 * 3600
HOUR = 3600

# 7.2.12+deb13-amd64 or 6.1.0-28-amd64, but not the cloud and rt flavours
IMAGE = re.compile(r"linux-image-(\d[\w.+~]*(?:-\d+)?-amd64)$")


@dataclass(frozen=True)
class Release:
    """One kernel release and the packages (NAME=VERSION) that it is made from."""

    kver: str
    version: str
    source: str
    headers: str
    image: list[str]


def releases(max_age: float = DAY) -> list[Release]:
    """All releases in the archive, newest first."""
    return [Release(**release) for release in _data(max_age)["releases"]]


def default_kver() -> str:
    """The kernel to build for when none is named: a Debian 13 host's own if it can be, else that of backports."""
    data = _data(DAY)
    running = platform.release()
    if data["running"] == running and data["running_ok"]:
        return running
    return data["default"]


def best_of(kvers: list[str]) -> str:
    """The default kernel if it is one of KVERS, else the newest of them."""
    default = default_kver()
    return default if default in kvers else max(kvers, key=_numbers)


def _numbers(version: str) -> list[int]:
    """What orders versions: 7.10 is newer than 7.9."""
    return [int(part) for part in re.findall(r"\d+", version)]


def find(kver: str) -> Release:
    """The release called KVER; an unknown one gives the list of those that exist."""
    for max_age in (DAY, HOUR):
        for release in releases(max_age):
            if release.kver == kver:
                return release
    names = "\n".join(f"    {release.kver}" for release in releases())
    raise Fail(
        f"there is no kernel {kver} with headers and source in {buildroot.SUITE} or {buildroot.BACKPORTS}.\n"
        f"  KVER can be one of these, if it was built with CONFIG_RUST:\n{names}"
    )


def second_kver(first: str) -> str:
    """The newest release that is not FIRST and that is of another series: a build must not fit one release only."""
    series = first.split(".")[:2]
    for release in releases():
        if release.kver != first and release.kver.split(".")[:2] != series:
            return release.kver
    raise Fail(f"the archive has no second release beside {first}")


def refresh() -> None:
    """Reads the archive now, whatever the age of the cache: a package that was to be downloaded is gone."""
    _data(0)


def _data(max_age: float) -> dict[str, Any]:
    data = read_json(CACHE)
    if data and time.time() - data["read"] < max_age and data["mirror"] == buildroot.MIRROR:
        return data
    with lock("archive"):
        now = read_json(CACHE)
        if now.get("read") == data.get("read"):  # else another process has just read it
            try:
                buildroot.update_lists()
                write_json(CACHE, now := _read())
            except Fail as error:
                if not data:
                    raise
                print(f"xb: the archive cannot be read ({str(error).splitlines()[0]}); using what was known before")
        return now


def _read() -> dict[str, Any]:
    with step("archive: finding the kernels"):
        images = [para for para in _show("^linux-image-[0-9].*-amd64$") if IMAGE.match(para["Package"])]
        headers = {(para["Package"], para["Version"]) for para in _show("^linux-headers-[0-9].*-amd64$")}
        sources = {para["Version"]: para["Package"] for para in _show("^linux-source-[0-9.]+$")}
        found: list[Release] = []
        for image in images:
            kver, version = image["Package"].removeprefix("linux-image-"), image["Version"]
            source = sources.get(version)
            if source and (f"linux-headers-{kver}", version) in headers:
                parts = re.findall(rf"(\S+-{re.escape(kver)}) \(= {re.escape(version)}\)", image.get("Depends", ""))
                found.append(
                    Release(
                        kver,
                        version,
                        f"{source}={version}",
                        f"linux-headers-{kver}={version}",
                        [f"{package}={version}" for package in (image["Package"], *parts)],
                    )
                )
        found.sort(key=lambda release: _numbers(release.version), reverse=True)
        running = platform.release()
        return {
            "read": time.time(),
            "mirror": buildroot.MIRROR,
            "default": _backports_default(),
            "running": running,
            "running_ok": any(r.kver == running for r in found) and _host_fits(running),
            "releases": [asdict(release) for release in found],
        }


def _backports_default() -> str:
    """What linux-image-amd64 of backports depends on; plain apt policy would prefer the stable suite's version."""
    rows = buildroot.run(["apt-cache", "madison", "linux-image-amd64"], capture=True).stdout.splitlines()
    versions = [row.split("|")[1].strip() for row in rows if f"{buildroot.BACKPORTS}/" in row]
    for para in _show("^linux-image-amd64$"):
        depends = re.search(r"linux-image-(\d\S*-amd64)", para.get("Depends", ""))
        if versions and para["Version"] == versions[0] and depends:
            return depends[1]
    raise Fail(f"{buildroot.BACKPORTS} of {buildroot.MIRROR} has no linux-image-amd64; name a kernel with KVER=")


def _host_fits(running: str) -> bool:
    """Whether this host is the Debian that we build for and runs a kernel with Rust."""
    try:
        os_release = Path("/etc/os-release").read_text()
        config = Path(f"/boot/config-{running}").read_text()
    except OSError:
        return False
    return f"VERSION_CODENAME={buildroot.SUITE}" in os_release and "\nCONFIG_RUST=y" in config


def _show(pattern: str) -> list[dict[str, str]]:
    """All versions of all packages that match, as field dictionaries."""
    text = buildroot.run(["apt-cache", "show", pattern], capture=True).stdout
    return [dict(re.findall(r"^([\w-]+): (.*)$", para, re.M)) for para in text.split("\n\n") if para.strip()]
