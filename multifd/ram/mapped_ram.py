"""QEMU's mapped-ram file: what a capture writes, and what QEMU 9.0 and later writes and loads.

It is a main stream whose ram section lists, after each block, where in the file the block's pages
lie and a bitmap of those that are not zero; the devices' state follows. Source: migration/ram.c of
QEMU 10.0 (MappedRamHeader, mapped_ram_setup_ramblock), confirmed with files written and loaded by
QEMU 10.0.2.

The bitmap is of the writing host's words; a file of a big-endian host is not understood.

Thread rule: blocks may be used by all channels at once, each with its own `Staging`.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Generator
from pathlib import Path

from multifd.ram.file import OpenFile, open_regular, read_exactly
from multifd.wire import stream
from multifd.wire.reader import MainStreamReader
from multifd.wire.stream import Block, Machine

CAPABILITY = "mapped-ram"
_HEADER = struct.Struct(">IQQQ")  # version, page_size, bitmap_offset, pages_offset
_VERSION = 1


def is_mapped_ram(path: str | os.PathLike[str]) -> bool:
    """Whether the file starts as a QEMU stream does, which no raw image of RAM can be told by."""
    file, nbytes = open_regular(Path(path))
    with contextlib.closing(file):
        expected = stream.MAGIC_BYTES + struct.pack(">I", stream.VERSION)
        start = bytearray(min(len(expected), nbytes))
        read_exactly(file, memoryview(start), 0, file.path)
        return start == expected


def bitmap_bytes(used_length: int, page_size: int) -> int:
    return -(-used_length // page_size // 64) * 8


class FileStream(MainStreamReader):
    """The main stream in a file, with seeks over the pages."""

    def __init__(self, file: OpenFile, nbytes: int, path: Path) -> None:
        super().__init__()
        self._file, self._nbytes, self._path = file, nbytes, path
        self._is_mapped = False
        self.places: list[tuple[Block, int, int]] = []
        """Of each block: bitmap_offset and pages_offset."""

    def parse(self) -> tuple[Machine, int]:
        """The machine, and where the devices' state begins."""
        while True:
            data = bytearray(self._need)
            if self._position + self._need > self._nbytes:
                raise self._error(f"the file ends at byte {self._nbytes}, in the middle of the stream")
            read_exactly(self._file, memoryview(data), self._position, self._path)
            self._position += self._need
            try:
                self._need = self._parser.send(bytes(data))
            except StopIteration:
                break
        machine = next(event for event in self._events if isinstance(event, Machine))
        return machine, self._position

    def _capability(self, name: str) -> None:
        if name != CAPABILITY:
            raise self._error(f"capability {name!r}, expected only {CAPABILITY!r}")
        self._is_mapped = True

    def _block_header(self, block: Block) -> Generator[int, bytes, None]:
        if self._has_footers and not self._is_mapped:
            raise self._error(
                f"not a mapped-ram file, its configuration lacks the capability; record with {CAPABILITY!r} on"
            )
        version, page_size, bitmap_offset, pages_offset = _HEADER.unpack((yield _HEADER.size))
        if (version, page_size) != (_VERSION, self.page_size):
            raise self._error(
                f"block {block.idstr!r}: mapped-ram version {version} with pages of {page_size} bytes, "
                f"expected {_VERSION} and {self.page_size}",
                _HEADER.size,
            )
        bitmap_end = bitmap_offset + bitmap_bytes(block.used_length, page_size)
        end = pages_offset + block.used_length
        if not self._position <= bitmap_offset < bitmap_end <= pages_offset < end <= self._nbytes:
            raise self._error(
                f"block {block.idstr!r}: bitmap at {bitmap_offset} to {bitmap_end}, pages at {pages_offset} to {end}, "
                f"expected in this order from {self._position} on, in a file of {self._nbytes} bytes",
                _HEADER.size,
            )
        if pages_offset % page_size:
            raise self._error(f"block {block.idstr!r}: pages at {pages_offset}, not a multiple of {page_size}")
        self.places.append((block, bitmap_offset, pages_offset))
        self._position = end
