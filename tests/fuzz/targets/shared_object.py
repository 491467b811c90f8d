"""A shared object before the dynamic linker maps it: refused with a word, or every part of it is in the file."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from multifd_qpl import elf

from tests.fuzz.memfd import file_of

COVERS = ("multifd_qpl.elf",)
LONGEST = 400
_MACHINE = 62  # of x86-64; another machine's is refused before the rest is looked at


def seeds() -> Iterator[bytes]:
    """A header and two segments, and files that are none."""
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 3, elf._own_machine() or _MACHINE, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 176, 176, 4096)
    yield head + load + struct.pack("<IIQQQQQQ", 2, 6, 100, 0, 0, 50, 50, 8)
    yield head + load
    yield b"\x7fELF\1\1\1"


def fields(data: bytes) -> Iterator[tuple[int, int]]:
    """Of the header and the segments."""
    yield from ((4, 1), (16, 2), (18, 2), (32, 8), (54, 2), (56, 2))
    for at in range(64, len(data) - 55, 56):
        yield from ((at, 4), (at + 8, 8), (at + 32, 8))


def run(data: bytes) -> str:
    """Check it."""
    with file_of((0, data)) as path:
        try:
            elf.check(str(path))
        except elf.NotLoadable as e:
            return type(e).__name__
    at, count = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
    for i in range(count):
        kind, _, offset, _, _, nbytes, *_ = struct.unpack_from("<IIQQQQQQ", data, at + 56 * i)
        assert kind not in (1, 2) or offset + nbytes <= len(data)
    return "loadable"
