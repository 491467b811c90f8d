"""The packets of a channel at a receiver: whatever a peer sends, the pump and Python see the same.

An input's first byte chooses where pages go and which methods may be met; of the rest, each packet is a header's first
40 bytes, 8 bytes of block name, a count of offsets and the offsets, and one byte that says what payload follows.
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from multifd.live import arena, kernel
from multifd.live.arena import Arena, ArenaTarget, Region
from multifd.method import SendParams
from multifd.pages import Geometry, Memory, Pages
from multifd.ram.block import Target, bare_machine
from multifd.ram.mappings import Mapping
from multifd.ram.memory import MemoryTarget
from multifd.ram.raw import RawImageTarget
from multifd.registry import load_method
from multifd.wire.packet import PacketEncoder
from tests.pump.both_paths import PATHS, memory, receive

COVERS = ("multifd.engine.recv_channel", "multifd.wire.packet")
LONGEST = 1500
PAGE, PAGES, MOST_OFFSETS, MOST_PACKETS = 4096, 16, 9, 6
HEADER_BYTES, FIELDS, NAME = 320, 40, 8
FULL, SHORT, NO_PAYLOAD = 0, 1, 2
"""What the byte before a payload says: as many pages as the header has; some bytes; none."""
KINDS = ("memory", "arena", "raw")
METHODS = [[load_method(spec) for spec in specs] for specs in (("none",), ("zlib",), ("zstd", "none"))]
"""Those that a packet may be of."""
_FOLDER = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
_OUT = Path(_FOLDER.name) / "out"


def _packets(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Where each packet begins in an input, its count of offsets, and the wire that it stands for."""
    at = 0
    for _ in range(MOST_PACKETS):
        if at >= len(data):
            break
        begin, fields, rest = at, data[at : at + FIELDS], data[at + FIELDS :]
        name, count = rest[:NAME], (rest[NAME] if len(rest) > NAME else 0) % (MOST_OFFSETS + 1)
        offsets, tail = rest[NAME + 1 :][: 8 * count], rest[NAME + 1 + 8 * count :]
        header = fields.ljust(64, b"\0") + name.ljust(256, b"\0") + offsets
        out = header.ljust(HEADER_BYTES + 8 * (128 if len(fields) == FIELDS else 0), b"\0")
        pages = int.from_bytes(fields[16:20], "big") if len(fields) == FIELDS else 0
        match tail[:1]:
            case b"\0":
                out += (b"payload" * 586)[:PAGE] * min(pages, MOST_OFFSETS)
            case b"\1":
                nbytes = min(int.from_bytes(fields[20:24], "big"), len(tail) - 1)
                out += tail[1 : 1 + nbytes]
                at += nbytes
        at += FIELDS + NAME + 2 + 8 * count
        yield begin, count, out


def expand(data: bytes) -> bytes:
    """The wire that an input stands for."""
    return b"".join(wire for _, _, wire in _packets(data))


def shrink(header: bytes | bytearray | memoryview, payload: bytes, how: int) -> bytes:
    """The input that stands for a packet of the project's own encoder."""
    normal, _, _, zero = struct.unpack_from(">IIQI", header, 16)
    count = normal + zero
    head = bytes(header[:FIELDS]) + bytes(header[64 : 64 + NAME]) + bytes([count])
    return head + bytes(header[HEADER_BYTES : HEADER_BYTES + 8 * count]) + bytes([how]) + payload * (how == SHORT)


def fields(data: bytes) -> Iterator[tuple[int, int]]:
    """Of each packet: the header's, the block's name, the offsets and their count, and what says how much payload."""
    yield 0, 1
    for at, count, _ in _packets(data[1:]):
        yield from ((1 + at + i, 4) for i in (0, 4, 8, 12, 16, 20, 32))
        yield from ((1 + at + 24, 8), (1 + at + FIELDS, NAME), (1 + at + FIELDS + NAME, 1))
        yield from ((2 + at + FIELDS + NAME + 8 * i, 8) for i in range(count))
        yield 2 + at + FIELDS + NAME + 8 * count, 1


def _offsets(*numbers: int) -> Any:
    return np.array(numbers, np.int64) * PAGE


PACKETS = (((0, 1), ()), ((3, 2, 5), (7,)), ((), (0, 3)), ((15,), (0, 4)))
"""Normal and zero pages of the seeds' packets."""


def sound(method: Any, packets: Any = PACKETS) -> bytes:
    """Sound packets of a method, and a SYNC."""
    geometry, out = Geometry.of(PAGE), []
    encoder = PacketEncoder(geometry)
    memory = Memory(bytearray(b"text of a page " * (9 * PAGE // 15 + 1))[: 9 * PAGE], PAGE)
    p = SendParams(0, geometry, bytearray(1), Pages(memory, _offsets(), memory))
    method.send_setup(p)
    for number, (normal, zero) in enumerate(packets):
        p.pages = Pages(memory, _offsets(*range(len(normal))), memory)
        p.iov.clear()
        if normal:
            method.send_prepare(p)
        payload = b"".join(p.iov) if not method.capabilities.verbatim else b""
        code = method.wire_code or 0
        size = len(normal) * PAGE if method.capabilities.verbatim else len(payload)
        header = encoder.data(code, number, "ram", _offsets(*normal), _offsets(*zero), size)
        how = NO_PAYLOAD if not normal else FULL if method.capabilities.verbatim else SHORT
        out.append(shrink(header, payload, how))
    method.send_cleanup(p)
    return b"".join(out) + shrink(encoder.sync(9), b"", NO_PAYLOAD)


def seeds() -> Iterator[bytes]:
    """Inputs that are sound, of every kind of packet and place."""
    for where in range(len(KINDS)):
        for which, methods in enumerate(METHODS):
            yield bytes([where + len(KINDS) * which]) + sound(methods[0])


@contextlib.contextmanager
def _target(where: str, buffer: Any) -> Iterator[Target]:
    target: Target = RawImageTarget(_OUT) if where == "raw" else MemoryTarget(buffer)
    # A look into /proc/self/maps is no peer's affair, and takes longer than all the rest.
    with contextlib.ExitStack() as stack:
        if where == "arena":
            target = ArenaTarget(Arena(buffer))
            stack.enter_context(mock.patch.object(arena, "_check_writable", new=_is_writable))
            stack.enter_context(mock.patch.object(kernel, "mappings", new=_private))
        stack.callback(target.discard)
        yield target


def _is_writable(region: Region) -> None:
    """It is."""


def _private(address: int, nbytes: int) -> list[Mapping]:
    """Memory of this process alone."""
    return [Mapping(address, address + nbytes, "", True, False, 0, 0, 0, "")]


def run(data: bytes) -> str:
    """Receive by both paths."""
    where, which = (data or b"\0")[0] % len(KINDS), (data or b"\0")[0] // len(KINDS) % len(METHODS)
    wire, seen = expand(data[1:]), []
    for path in PATHS:
        buffer = memory(PAGES * PAGE, b"old" * 9000)
        with _target(KINDS[where], buffer) as target:
            one = receive(path, wire, target, bare_machine(PAGES * PAGE, PAGE), METHODS[which])
            if one.error is None and KINDS[where] == "raw":  # after a failure the content is undefined
                target.commit(bytes(16))
                one.data = _OUT.read_bytes()
            elif one.error is None:
                one.data = bytes(buffer)
        seen.append(one)
    assert seen[0] == seen[1], f"by Python: {seen[0]}\nby the pump: {seen[1]}"
    return seen[0].error[0].__name__ if seen[0].error else "received"
