"""Record what real QEMUs send: small migrations without firmware, each packed into one file beside this one.

    MULTIFD_QEMU_NEW=/path/to/qemu-system-x86_64 python tests/recorded/record.py

A relay stands between two QEMUs of the same release and keeps what the source sends on each connection; the
destination must complete. The guest is paused and its BIOS is a jump to itself, so no firmware is in a recording.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import zstandard

sys.path.insert(0, str(Path(__file__).parents[1]))

from interop.qemu import DEADLINE_S, Qemu, Release, newer_release, system_release

PAGE = 4096
MIB = 2
ROM = (b"\xf4" * 0xFFF0 + b"\xeb\xfe").ljust(1 << 16, b"\xf4")  # hlt everywhere; at the reset vector jmp $
# name, release, machine type, method, channels, return path; method None: `migrate file:` with mapped-ram
RECORDINGS = [
    ("7.2-pc-zlib", "system", "pc-i440fx-7.2", "zlib", 2, False),
    ("10.0-q35-zstd", "newer", "pc-q35-10.0", "zstd", 3, True),
    ("10.0-old-type-zlib", "newer", "pc-i440fx-7.2", "zlib", 1, False),
    ("10.0-bare-none", "newer", "none", "none", 2, False),
    ("10.0-mapped-ram", "newer", "pc-q35-10.0", None, 2, False),
]


def guest_ram() -> bytes:
    """Runs of zero pages, of pages that repeat something, and a random one, from a seed."""
    rng = random.Random(72)
    pages = [bytes(PAGE)] * (MIB << 20 >> 12)
    for first, count in ((0, 3), (16, 140), (200, 1), (300, 25), (511, 1)):
        for i in range(first, first + count):
            pages[i] = (b"page %d " % i + rng.randbytes(4)).ljust(64, b".") * 64
    pages[200] = rng.randbytes(PAGE)
    return b"".join(pages)


class Relay:
    """Takes one migration for 127.0.0.1:`port` and keeps what the source sends, a connection each."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._threads: list[threading.Thread] = []
        self.sent: list[bytearray] = []
        self.uri = f"tcp:127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                source = self._server.accept()[0]
            except OSError:
                return
            destination = socket.create_connection(("127.0.0.1", self._port), DEADLINE_S)
            self.sent.append(bytearray())
            for a, b, kept in ((source, destination, self.sent[-1]), (destination, source, bytearray())):
                thread = threading.Thread(target=self._pump, args=(a, b, kept), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(self, a: socket.socket, b: socket.socket, kept: bytearray) -> None:
        try:
            while data := a.recv(1 << 16):
                kept += data
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the other end is through

    def finish(self) -> list[bytes]:
        """What was sent, in the order of the connections; both QEMUs have ended."""
        for thread in self._threads:
            thread.join(DEADLINE_S)
        self._server.close()
        return [bytes(data) for data in self.sent]


def migrate(
    release: Release, folder: Path, machine: str, method: str, channels: int, *, return_path: bool
) -> list[bytes]:
    """The bytes of each connection."""
    ends = []
    try:
        for name in ("source", "destination"):
            ends.append(start(release, folder, name, machine))
            ends[-1].multifd(method, channels, return_path=return_path)
        source, destination = ends
        relay = Relay(int(destination.listen("tcp:127.0.0.1:0").rpartition(":")[2]))
        source("migrate", uri=relay.uri)
        source.wait_migrated()
        destination.wait_migrated()
        if destination.ram() != guest_ram():
            raise ValueError(f"{machine} {method}: the destination's RAM differs")
    finally:
        for end in ends:
            end.stop()
    return relay.finish()


def write_file(release: Release, folder: Path, machine: str, channels: int) -> list[bytes]:
    """The file, alone."""
    source = start(release, folder, "source", machine)
    try:
        source.set({"multifd": True, "mapped-ram": True}, multifd_channels=channels)
        source("migrate", uri=f"file:{folder}/file")
        source.wait_migrated()
    finally:
        source.stop()
    return [(folder / "file").read_bytes()]


def start(release: Release, folder: Path, name: str, machine: str) -> Qemu:
    """One end; what generates ACPI tables is off, so that no block but RAM and BIOS holds anything."""
    rom = folder / "rom"
    rom.write_bytes(ROM)
    return Qemu(
        release, folder, name, MIB, machine=machine if machine == "none" else f"{machine},acpi=off",
        image=guest_ram() if name == "source" else None, is_incoming=name == "destination",
        arguments=() if machine == "none" else ("-bios", str(rom), "-vga", "none", "-net", "none"),
    )  # fmt: skip


def main() -> None:
    releases = {"system": system_release(), "newer": newer_release()}
    for name, which, machine, method, channels, return_path in RECORDINGS:
        release = releases[which]
        with tempfile.TemporaryDirectory() as folder:
            if method is None:
                sent = write_file(release, Path(folder), machine, channels)
            else:
                sent = migrate(release, Path(folder), machine, method, channels, return_path=return_path)
        ram = "ram" if machine == "none" else "pc.ram"
        head = {
            "qemu": subprocess.check_output([release.binary, "--version"], text=True).splitlines()[0],
            "machine": machine, "method": method, "channels": channels, "return_path": return_path,
            "blocks": {ram: hashlib.sha256(guest_ram()).hexdigest()}
            | ({} if machine == "none" else {"pc.bios": hashlib.sha256(ROM).hexdigest()}),
            "connections": [len(data) for data in sent],
        }  # fmt: skip
        packed = zstandard.ZstdCompressor(level=19).compress(json.dumps(head).encode() + b"\n" + b"".join(sent))
        (Path(__file__).parent / f"{name}.zst").write_bytes(packed)


if __name__ == "__main__":
    main()
