"""Real QEMUs: unmodified, without a guest system, started with a deadline and ended by their own pid.

``-M none`` is a machine of RAM alone: one block, no devices, so a raw image is all of it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 30


class Qemu:
    """One QEMU process and its QMP connection."""

    def __init__(self, folder: Path, name: str, mib: int, image: Path | None = None) -> None:
        binary = os.environ.get("MULTIFD_QEMU") or shutil.which("qemu-system-x86_64")
        if binary is None:
            message = "qemu-system-x86_64 is missing (apt-get install qemu-system-x86, or name one in MULTIFD_QEMU)"
            if os.environ.get("MULTIFD_REQUIRE_QEMU"):
                pytest.fail(message)
            pytest.skip(message)
        path = folder / f"{name}.qmp"
        machine = ["-M", "none", "-m", f"{mib}M"]
        if image is not None:
            backend = f"memory-backend-file,id=ram,share=off,size={mib}M,mem-path={image}"
            # The block's name on the wire stays "ram", not the object's path.
            machine = ["-M", "none,memory-backend=ram", "-m", f"{mib}M"]
            machine += ["-object", backend + ",x-use-canonical-path-for-ramblock-id=off"]
        incoming = [] if image is not None else ["-incoming", "defer"]
        with (folder / f"{name}.log").open("w") as log:
            self.process = subprocess.Popen(
                [binary, *machine, "-accel", "tcg", "-S", "-nodefaults", "-display", "none", *incoming,
                 "-qmp", f"unix:{path},server=on,wait=off"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(DEADLINE_S)
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                self._sock.connect(str(path))
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / f"{name}.log").read_text()
                assert self.process.poll() is None, (folder / f"{name}.log").read_text()
                time.sleep(0.02)
        self._lines = self._sock.makefile("r")
        self._lines.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Run one QMP command."""
        message = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        self._sock.sendall(json.dumps(message).encode() + b"\n")
        while True:
            reply = json.loads(self._lines.readline())
            if "return" in reply or "error" in reply:
                assert "error" not in reply, (command, reply)
                return reply["return"]

    def multifd(self, method: str, channels: int, *, return_path: bool = False) -> None:
        """Switch multifd on with its settings."""
        names = {"multifd": True, "return-path": return_path}
        self("migrate-set-capabilities", capabilities=[{"capability": n, "state": s} for n, s in names.items()])
        self("migrate-set-parameters", multifd_channels=channels, multifd_compression=method, max_bandwidth=1 << 34)

    def wait_migrated(self) -> dict[str, Any]:
        """query-migrate's figures, once completed."""
        deadline = time.monotonic() + DEADLINE_S
        while (info := self("query-migrate")).get("status") != "completed":
            assert info.get("status") not in ("failed", "cancelled"), info
            assert time.monotonic() < deadline, info
            time.sleep(0.02)
        return info

    def memory(self, nbytes: int, folder: Path) -> bytes:
        """Guest RAM from address 0."""
        path = folder / "dump.ram"
        self("pmemsave", val=0, size=nbytes, filename=str(path))
        return path.read_bytes()

    def stop(self) -> None:
        self._lines.close()
        self._sock.close()
        self.process.kill()
        self.process.wait(DEADLINE_S)


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Callable[..., Qemu]]:
    """Start QEMUs; none survives the test."""
    started: list[Qemu] = []

    def start(name: str, mib: int, image: Path | None = None) -> Qemu:
        machine = Qemu(tmp_path, name, mib, image)
        started.append(machine)
        return machine

    yield start
    for machine in started:
        machine.stop()
