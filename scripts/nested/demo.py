#!/usr/bin/env python3
"""`make demo`: boots Xen and a stock dom0 under QEMU and shows guests on a raw file and on a block device.

What is shown happens in tests/nested/dom0/demo.py, inside dom0.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

import image  # noqa: E402
from vm import Machine, module_files  # noqa: E402
from xb.common import program, say  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kver", required=True, help="kernel release of dom0 and guests")
    kver = parser.parse_args().kver
    files = module_files(kver, "rs")
    with Machine(image.ensure(kver), files) as machine:
        say(f"booting Xen and the unmodified Debian kernel {kver} as dom0 under QEMU, no KVM")
        machine.boot()
        status = 1
        for message in machine.execute("cd /opt/xb && exec python3 -u dom0/demo.py"):
            if "log" in message:
                print(message["log"], flush=True)
            status = message.get("exit", status)
    return 1 if status is None else status


if __name__ == "__main__":
    program(main)
