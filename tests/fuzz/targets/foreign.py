"""What a file is that is no RAM: a name in printable words or none, whatever its first and last bytes are.

An input is a place, two bytes, and what stands there in a file of zeros; what is left of it is the file's end.
"""

from __future__ import annotations

from collections.abc import Iterator

from multifd.errors import printable
from multifd.ram import foreign

COVERS = ("multifd.ram.foreign",)

_MOST = 64


def seeds() -> Iterator[bytes]:
    """A mark at the start, marks elsewhere, and text."""
    yield b"\0\0\x7fELF\2\1\1"
    yield b"\x0f\xf6SWAPSPACE2"
    yield b"\4\0" + bytes(56) + b"\x53\xef".ljust(8, b"\1")
    yield b"\1\xbe" + b"\x80" + bytes(3) + b"\7" + bytes(8) + b"\1" + bytes(48) + b"\x55\xaa"
    yield b"\0\0\xeb\x3c\x90mkfs.fat\0\2"
    yield b'\0\0\xef\xbb\xbf {"key": 1}' + b"koly"
    yield b"\0\0MZ" + bytes(58) + b"\x40\0\0\0PE\0\0"
    yield b"\0\0" + b"a text of many letters; " * 24


def run(data: bytes) -> str:
    """Name it."""
    at, start = int.from_bytes(data[:2], "big"), data[2:]
    name = foreign.name((bytes(at) + start + bytes(_MOST))[: foreign.START], data[-foreign.END :])
    assert name is None or (name and printable(name) == name)
    assert name == foreign.name((bytes(at) + start + bytes(_MOST))[: foreign.START], data[-foreign.END :])
    return name or "RAM"
