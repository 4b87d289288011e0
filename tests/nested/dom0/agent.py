"""Runs in dom0 and does what the host asks for, over a virtio serial port; one JSON object a line each way.

From the host:  {"run": TEST, "backend": B, "timeout": S, "pace": P, "state": null or {...}}
                {"exec": SHELL-COMMAND}   {"off": true}
To the host:    {"ready": RELEASE}   {"pace": FACTOR}   {"log": LINE}
                {"result": "ok" | "fail" | "powercut", "reason": ..., ...}   {"exit": STATUS}

A test runs in its own process; when its time is up, the kernel's blocked tasks go to the log and the test fails. All
times are stretched by the machine's pace, which is measured at boot and before each test; P is the least that counts.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib import pace
from lib.port import port

# One of those above.
Message = dict[str, Any]

LIB = Path(__file__).resolve().parents[1] / "lib"
KMSG_TAIL = 120


def where_all_are() -> list[str]:
    """Where in the kernel each process of dom0 is: for a test that hangs."""
    lines = ["--- where the processes are"]
    for task in sorted(Path("/proc").glob("[0-9]*/task/[0-9]*")):
        try:
            command = (task / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:80]
            if command or "xen" in (task / "comm").read_text():
                stack = " < ".join(
                    line.split()[-1].split("+")[0] for line in (task / "stack").read_text().splitlines()[:9]
                )
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                lines.append(f"{task.name} {state} {command or (task / 'comm').read_text().strip()}: {stack}")
        except OSError:
            pass
    return lines


class Agent:
    def __init__(self) -> None:
        self.port = port("xb.agent")
        self.buffer = b""
        self.pace = 1.0

    def send(self, **message: object) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self.port, data) :]

    def receive(self) -> Message:
        while b"\n" not in self.buffer:
            data = os.read(self.port, 65536)
            if not data:
                time.sleep(0.1)  # the host has not opened its end
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def serve(self) -> None:
        self.measure()
        self.send(ready=os.uname().release)
        while True:
            message = self.receive()
            if "run" in message:
                self.test(message)
            elif "exec" in message:
                _, status = self.child(["bash", "-c", message["exec"]], message.get("timeout", 3600))
                self.send(exit=status)
            elif "off" in message:
                return

    def measure(self, least: float = 1.0) -> None:
        """Finds out how slow the machine is, for whoever has a time limit. As slow as it was once it can be again."""
        self.pace = max(pace.measure(), least, self.pace)
        os.environ["XB_PACE"] = str(self.pace)
        pace.watch_tasks(self.pace)
        self.send(pace=self.pace)

    def test(self, message: Message) -> None:
        self.measure(message.get("pace", 1.0))
        for path in Path("/var/log/xen").glob("**/*.log"):
            path.write_text("")
        argv = [sys.executable, "-u", str(LIB / "runtest.py"), message["run"], message["backend"]]
        os.environ["XB_LOOPS"] = str(message.get("loops", 1))
        os.environ["XB_BRIEF"] = "1" if message.get("brief") else ""
        if message.get("state") is not None:
            argv.append(json.dumps(message["state"]))
        timeout = message["timeout"] * self.pace
        lines, status = self.child(argv, timeout)
        results = [json.loads(line) for line in lines]
        result = results[-1] if results else {"result": "fail", "reason": f"the test ended with status {status}"}
        if status is None:
            Path("/proc/sysrq-trigger").write_text("w")
            result = {"result": "fail", "reason": f"still running after {timeout:.0f} s"}
        if result["result"] == "fail":
            result.setdefault("dmesg", [])
            if not result["dmesg"]:
                text = subprocess.run(["dmesg"], text=True, capture_output=True, errors="replace").stdout
                result["dmesg"] = text.splitlines()[-KMSG_TAIL:]
            result["xl"] = {
                str(path): path.read_text(errors="replace")[-3000:]
                for path in Path("/var/log/xen").glob("*.log")
                if path.stat().st_size
            }
        self.send(**result)

    def child(self, argv: list[str], timeout: float) -> tuple[list[str], int | None]:
        """Runs ARGV, passes its output on line by line; returns what it wrote to descriptor 3, and its exit status,
        None when it had to be killed."""
        control, writer = os.pipe()
        process = subprocess.Popen(
            ["bash", "-c", f'exec 3>&{writer}; exec "$@"', "sh", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[writer],
            start_new_session=True,
        )
        os.close(writer)
        assert process.stdout
        out, results, partial = b"", b"", {control, process.stdout.fileno()}
        end = time.monotonic() + timeout
        killed = False
        while process.poll() is None or (partial and select.select(list(partial), [], [], 0)[0]):
            ready, _, _ = select.select(list(partial), [], [], 0.1)
            for file in ready:
                data = os.read(file, 65536)
                if not data:
                    partial.discard(file)
                elif file == control:
                    results += data
                    if b'"powercut"' in data:
                        self.send(**json.loads(results.splitlines()[-1]))
                else:
                    out += data
                    *lines, out = out.split(b"\n")
                    for line in lines:
                        self.send(log=line.decode(errors="replace"))
            if time.monotonic() > end and not killed:
                for text in where_all_are():
                    self.send(log=text)
                os.killpg(process.pid, signal.SIGKILL)
                killed = True
                end += 10
            elif killed and time.monotonic() > end:
                break  # stuck in the kernel
        if out:
            self.send(log=out.decode(errors="replace"))
        os.close(control)
        return results.decode().splitlines(), None if killed else process.returncode


Agent().serve()
