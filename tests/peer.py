"""A sender and a destination written from the wire's description alone: they share no code with multifd.

Deliberately simple and scriptable: tests misbehave with them.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

PAGE = 4096
HEADER = struct.Struct(">IIIIIIQII24x256s")


def address(uri: str) -> tuple[str, int]:
    """Of tcp:HOST:PORT."""
    _, host, port = uri.split(":")
    return host, int(port)


def init(
    channel: int, *, channels: int = 0, version: int = 0, name: bytes = b"", uuid: bytes = bytes(16)
) -> bytes:  # fmt: skip
    return struct.pack(">II16sBBB5x32s", 0x11223344, 1, uuid, channel, channels, version, name)


def packet(
    normal: Sequence[int], payload: bytes = b"", *, flags: int = 0, zero: Sequence[int] = (), block: bytes = b"ram",
    size: int | None = None, number: int = 1, alloc: int = 128,
) -> bytes:  # fmt: skip
    nbytes = len(payload) if size is None else size
    head = HEADER.pack(0x11223344, 1, flags, alloc, len(normal), nbytes, number, len(zero), 0, block)
    offsets = [*normal, *zero]
    return head + struct.pack(">128Q", *offsets, *[0] * (128 - len(offsets))) + payload


def sync() -> bytes:
    return packet([], flags=1, alloc=0)


RAM_ID = 2  # of the ram section


def main_stream(
    blocks: Sequence[tuple[bytes, int]], *, return_path: bool = False, config: bool = True, per_section: bool = False,
    machine: bytes = b"none",
) -> dict[str, bytes]:  # fmt: skip
    """The pieces of a main stream, by where they go."""
    flush = b"" if per_section else struct.pack(">Q", 0x200)
    eos = struct.pack(">Q", 0x10) + (struct.pack(">BI", 0x7E, RAM_ID) if config else b"")
    total = sum(length for _, length in blocks)
    listed = b"".join(bytes([len(n)]) + n + struct.pack(">Q", length) for n, length in blocks)
    commands = struct.pack(">BHH", 8, 1, 0) + struct.pack(">BHHI", 8, 2, 4, 1)
    return {
        "header": b"QEVM"
        + struct.pack(">I", 3)
        + (b"\x07" + struct.pack(">I", len(machine)) + machine if config else b""),
        "commands": commands if return_path else b"",
        "setup": b"\x01"
        + struct.pack(">I", RAM_ID)
        + b"\x03ram"
        + struct.pack(">IIQ", 0, 4, total | 4)
        + listed
        + flush
        + eos,
        "end": b"\x03" + struct.pack(">I", RAM_ID) + flush + eos,
        "eof": b"\0",
    }


class Peer:
    """Connections of a scripted sender to one destination."""

    def __init__(self, uri: str, timeout: float = 20) -> None:
        self.uri, self.timeout = uri, timeout
        self.sockets: list[socket.socket] = []

    def connect(self, first: bytes = b"") -> socket.socket:
        sock = socket.create_connection(address(self.uri), self.timeout)
        self.sockets.append(sock)
        if first:
            sock.sendall(first)
        return sock

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Destination:
    """A scripted destination: takes connections, main first, and reads what it is told to.

    Args:
        path: of the unix socket at which it listens; None: at a port of 127.0.0.1.
    """

    def __init__(self, path: Path | None = None, timeout: float = 60) -> None:
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.uri = f"tcp:127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen(64)
            self.uri = f"unix:{path}"
        self._listener.settimeout(timeout)
        self._timeout = timeout
        self.sockets: list[socket.socket] = []

    def accept(self) -> socket.socket:
        """The next connection; those that nobody has accepted wait in the backlog."""
        sock, _ = self._listener.accept()
        sock.settimeout(self._timeout)
        self.sockets.append(sock)
        return sock

    def close(self) -> None:
        for sock in (*self.sockets, self._listener):
            sock.close()


def is_closed(sock: socket.socket) -> bool:
    """Whether the other end has closed, with or without data before; waits for it."""
    with contextlib.suppress(ConnectionError):
        while sock.recv(1 << 16):
            pass
    return True
