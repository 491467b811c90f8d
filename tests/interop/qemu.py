"""One QEMU process: unmodified, started with a deadline, driven by QMP, ended by its own pid.

Guest RAM is a file that QEMU maps, unless told otherwise: `Qemu.ram` reads it at any time, without QEMU's help.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

DEADLINE_S = 60
UNLIMITED = 1 << 34  # bytes per second; QEMU's own default is 128 MiB/s
_T = TypeVar("_T")


class QemuMissing(Exception):
    """There is no such QEMU here; says how to get one."""


@dataclass(frozen=True)
class Release:
    """A QEMU that is here."""

    binary: str
    version: tuple[int, int]
    machines: frozenset[str]
    """The machine types that it has, and their short names."""


def system_release() -> Release:
    """The QEMU of ``MULTIFD_QEMU``, or else the one in PATH."""
    binary = os.environ.get("MULTIFD_QEMU") or shutil.which("qemu-system-x86_64")
    if binary is None:
        raise QemuMissing(
            "qemu-system-x86_64 is missing (apt-get install qemu-system-x86, or name one in MULTIFD_QEMU)"
        )
    return _release(binary)


def newer_release() -> Release:
    """A QEMU of 9.0 or later: that of ``MULTIFD_QEMU_NEW``, or else the system's own."""
    binary = os.environ.get("MULTIFD_QEMU_NEW")
    release = _release(binary) if binary else system_release()
    if release.version < (9, 0):
        raise QemuMissing(
            "a second QEMU, 9.0 or later, is missing: name one in MULTIFD_QEMU_NEW "
            "(on Debian 12, tests/interop/newer-qemu.sh unpacks one and prints its name)"
        )
    return release


def qpl_release() -> Release:
    """A QEMU with qpl compiled in: that of ``MULTIFD_QEMU_QPL``."""
    binary = os.environ.get("MULTIFD_QEMU_QPL")
    if not binary:
        raise QemuMissing("no QEMU with qpl compiled in (Debian's are without): name one in MULTIFD_QEMU_QPL")
    return _release(binary)


def _release(binary: str) -> Release:
    def says(*arguments: str) -> str:
        command = [binary, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE_S).stdout

    text = says("--version")
    found = re.search(r"version (\d+)\.(\d+)", text)
    if found is None:
        raise QemuMissing(f"{binary} is not a QEMU: {text}")
    machines = (line.split() for line in says("-M", "help").splitlines()[1:])
    return Release(binary, (int(found[1]), int(found[2])), frozenset(words[0] for words in machines if words))


class QmpError(Exception):
    """QEMU refused a command."""


class Qemu:
    """A QEMU under TCG, without devices but those its machine type has.

    Args:
        folder: Its files go here, under `name`.
        machine: The machine type. ``none`` has RAM alone, whose block is ``ram``; elsewhere it is ``pc.ram``.
        image: What guest RAM holds from address 0; zeros behind it.
        backend: The memory backend's type and options, instead of a shared file; there is no `ram` then.
        disk: What the boot disk holds; both ends of a migration need one.
        is_incoming: It waits for `listen`.
        is_paused: It does not run before QMP's ``cont``.
        arguments: More of the command line.
    """

    def __init__(
        self, release: Release, folder: Path, name: str, mib: int, *, machine: str = "pc", image: bytes | None = None,
        backend: str | None = None, disk: bytes | None = None, is_incoming: bool = False, is_paused: bool = True,
        arguments: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.release = release
        self._folder, self._log, self._console = folder, folder / f"{name}.log", folder / f"{name}.console"
        self._ram = folder / f"{name}.ram"
        if backend is None:
            self._ram.write_bytes(image or b"")
            os.truncate(self._ram, mib << 20)
            backend = f"memory-backend-file,share=on,mem-path={self._ram}"
        block = "ram" if machine == "none" else "pc.ram"
        qmp = folder / f"{name}.qmp"
        # The block keeps its short name on the wire, not the object's path.
        command = [
            release.binary, "-name", name, "-accel", "tcg", "-M", f"{machine},memory-backend={block}", "-m", f"{mib}M",
            "-object", f"{backend},id={block},size={mib}M,x-use-canonical-path-for-ramblock-id=off",
            "-nodefaults", "-no-user-config", "-display", "none", "-qmp", f"unix:{qmp},server=on,wait=off",
            *(["-S"] if is_paused else []), *(["-incoming", "defer"] if is_incoming else []), *arguments,
        ]  # fmt: skip
        if disk is not None:
            (folder / f"{name}.disk").write_bytes(disk)
            command += ["-drive", f"if=none,id=boot,format=raw,file={folder}/{name}.disk"]
            command += ["-device", "ide-hd,drive=boot", "-debugcon", f"file:{self._console}"]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(DEADLINE_S)
        self._lines = self._sock.makefile("r")
        try:
            self.wait(lambda: self._sock.connect_ex(str(qmp)) == 0, "QMP")
            self._lines.readline()
            self("qmp_capabilities")
        except BaseException:
            self.stop()
            raise

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Run one QMP command; underscores in names of arguments stand for dashes."""
        message = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        self._sock.sendall(json.dumps(message).encode() + b"\n")
        while line := self._lines.readline():
            reply = json.loads(line)
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                raise QmpError(f"{command}: {reply['error']['desc']}")
        raise QmpError(f"QEMU went away during {command}: {self.stderr()}")

    def expect_answers_within(self, seconds: float) -> None:
        """From now on a QMP command that is not answered in that time is a `TimeoutError`, and no other one works."""
        self._sock.settimeout(seconds)

    def wait(self, until: Callable[[], _T], what: str) -> _T:
        """Ask until the answer is true; an error if it never is, or QEMU ends."""
        deadline = time.monotonic() + DEADLINE_S
        while not (answer := until()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"no {what} from {self.process.args}: {self.stderr()}")
            time.sleep(0.01)
        return answer

    def set(self, capabilities: dict[str, bool], **parameters: Any) -> None:
        """Set migration capabilities and parameters; bandwidth is unlimited unless set."""
        states = [{"capability": name, "state": state} for name, state in capabilities.items()]
        self("migrate-set-capabilities", capabilities=states)
        self("migrate-set-parameters", **{"max_bandwidth": UNLIMITED, **parameters})

    def multifd(self, method: str, channels: int, *, return_path: bool = False) -> None:
        """Switch multifd on with its settings."""
        self.set({"multifd": True, "return-path": return_path}, multifd_channels=channels, multifd_compression=method)

    def listen(self, uri: str) -> str:
        """Take a migration at `uri`; the URI to migrate to, if `uri` has port 0 the chosen one."""
        self("migrate-incoming", uri=uri)
        if not uri.endswith(":0"):
            return uri
        return uri[:-1] + self("query-migrate")["socket-address"][0]["port"]

    def wait_migrated(self) -> dict[str, Any]:
        """query-migrate's figures, once completed."""

        def completed() -> dict[str, Any] | None:
            info: dict[str, Any] = self("query-migrate")
            if info.get("status") in ("failed", "cancelled"):
                raise QmpError(f"the migration {info['status']}: {info.get('error-desc')} {self.stderr()}")
            # 7.2 says "completed" before its figures are there; a destination has none.
            return info if info.get("status") == "completed" and info.get("total-time", 1) else None

        return self.wait(completed, "end of the migration")

    def ram(self) -> bytes:
        """Guest RAM as it is now, from address 0."""
        return self._ram.read_bytes()

    def console(self) -> bytes:
        """What the guest has written to the debug port 0xe9."""
        return self._console.read_bytes()

    def stderr(self) -> str:
        """What QEMU has printed."""
        return self._log.read_text()

    def stop(self) -> None:
        """End it, whatever it does."""
        self._lines.close()
        self._sock.close()
        self.process.kill()
        self.process.wait(DEADLINE_S)
