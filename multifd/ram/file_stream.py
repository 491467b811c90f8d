"""A main stream in a file: the grammar, driven by reads and seeks.

The pages are either in the stream, one after the other, as a source without multifd sends them
(``migrate exec:cat``, libvirt's raw save image), or mapped: see `multifd.ram.mapped_ram`.

Thread rule: one thread.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from multifd.errors import StreamError
from multifd.pages import Offsets
from multifd.ram.file import OpenFile, read_exactly
from multifd.ram.mapped_ram import CAPABILITY, HEADER, VERSION, bitmap_bytes
from multifd.wire.grammar import Grammar, Skip, Steps
from multifd.wire.stream import Block, Machine, StoredPages, ZeroPages

_WINDOW = 1 << 20
"""Bytes read together: full runs of pages, and no more than a run's worth is read for nothing before a seek."""


@dataclass(frozen=True)
class MappedPlace:
    """Where a mapped-ram file has a block."""

    block: Block
    bitmap_offset: int
    pages_offset: int

    def bitmap_end(self, page_size: int) -> int:
        """Where the bitmap ends; a gap follows."""
        return self.bitmap_offset + bitmap_bytes(self.block.used_length, page_size)


class _InFile:
    """The pages are in the same file: in the stream, or mapped. See `multifd.wire.grammar.Place`."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self.is_mapped: bool | None = None  # None: not known before the first block
        self.places: list[MappedPlace] = []

    def capability(self, grammar: Grammar, name: str) -> None:
        if name != CAPABILITY:
            raise grammar.error(f"capability {name!r}, expected only {CAPABILITY!r}")
        self.is_mapped = True

    def block(self, grammar: Grammar, block: Block) -> Steps[None]:
        if self.is_mapped is None:
            self.is_mapped = not grammar.has_footers and (yield from self._comes_header(grammar))
        if not self.is_mapped:
            return
        version, page_size, bitmap_offset, pages_offset = HEADER.unpack((yield HEADER.size))
        if (version, page_size) != (VERSION, grammar.page_size):
            raise grammar.error(
                f"block {block.idstr!r}: mapped-ram version {version} with pages of {page_size} bytes, "
                f"expected {VERSION} and {grammar.page_size}",
                HEADER.size,
            )
        bitmap_end = bitmap_offset + bitmap_bytes(block.used_length, page_size)
        end = pages_offset + block.used_length
        if not grammar.position <= bitmap_offset < bitmap_end <= pages_offset < end <= self._nbytes:
            raise grammar.error(
                f"block {block.idstr!r}: bitmap at {bitmap_offset} to {bitmap_end}, pages at {pages_offset} to {end}, "
                f"expected in this order from {grammar.position} on, in a file of {self._nbytes} bytes",
                HEADER.size,
            )
        if pages_offset % page_size:
            raise grammar.error(f"block {block.idstr!r}: pages at {pages_offset}, not a multiple of {page_size}")
        self.places.append(MappedPlace(block, bitmap_offset, pages_offset))
        yield Skip(end)

    def _comes_header(self, grammar: Grammar) -> Steps[bool]:
        """Without a configuration section nothing says mapped-ram; no name and no word starts as its header does."""
        start = yield 4
        yield Skip(grammar.position - 4)
        return start == struct.pack(">I", VERSION)

    def check_page(self, grammar: Grammar) -> None:
        if self.is_mapped:
            raise grammar.error("a page in the stream of a mapped-ram file", 8)


@dataclass
class StreamLayout:
    """Where a file has what: RAM and the devices' state.

    A mapped-ram file has `places`, any other `positions`.
    """

    machine: Machine
    device_state_offset: int
    is_mapped: bool
    places: list[MappedPlace] = field(default_factory=list)
    positions: Mapping[str, Offsets] = field(default_factory=dict)
    """Of each block the file's offset of each page, int64; 0 for a page that is zero."""


class FileStream:
    """Reads a stream in a file up to the end of RAM.

    Args:
        file: stays the caller's.
        nbytes: the file's length.
        path: for error messages.
        start: the stream's first byte in the file.
    """

    def __init__(self, file: OpenFile, nbytes: int, path: Path, start: int = 0) -> None:
        self._file, self._nbytes, self._path = file, nbytes, path
        self._place = _InFile(nbytes)
        self._grammar = Grammar(self._place, position=start)
        self._window = memoryview(b"")
        self._window_start = 0
        self._machine: Machine | None = None
        self._positions: dict[str, Offsets] = {}
        self._has_pages = False

    def is_mapped(self) -> bool:
        """Whether it is a mapped-ram file; reads up to the first block.

        Raises:
            StreamError: it breaks the grammar before.
            RamError: it cannot be read.
        """
        self._drive(lambda: self._place.is_mapped is not None)
        return bool(self._place.is_mapped)

    def parse(self) -> StreamLayout:
        """Where everything is.

        Raises:
            StreamError: it breaks the grammar, or ends before the end of RAM.
            RamError: it cannot be read.
        """
        grammar = self._grammar
        self._drive(lambda: grammar.is_over)
        machine, is_mapped = self._machine, bool(self._place.is_mapped)
        assert machine is not None  # the grammar lets RAM end only after its blocks
        if not is_mapped and not self._has_pages:
            raise grammar.error(
                "RAM has no page in it; a stream that was recorded of a multifd migration has them on its channels: "
                f"record with {CAPABILITY!r} on, or with multifd off"
            )
        return StreamLayout(machine, grammar.position, is_mapped, self._place.places, self._positions)

    def _drive(self, is_enough: Callable[[], bool]) -> None:
        grammar = self._grammar
        while not grammar.is_over and not is_enough():
            request = grammar.request
            if isinstance(request, Skip):
                if request.to > self._nbytes:
                    raise self._cut()
                grammar.skip(request)
            else:
                grammar.feed(bytes(self._read(request)))
            if self._place.is_mapped is False:
                window = self._window_at(grammar.position)
                while taken := grammar.take_run(window, 0):
                    window = window[taken:]
            self._apply()

    def _apply(self) -> None:
        for event in self._grammar.take_events():
            match event:
                case Machine():
                    self._machine = event
                    if not self._place.is_mapped:
                        self._positions = {b.idstr: self._new_index(b, event.page_size) for b in event.blocks}
                case StoredPages():
                    pages = event.offsets // self._grammar.page_size
                    self._positions[event.idstr][pages] = event.positions
                    self._has_pages = True
                case ZeroPages():
                    if self._place.is_mapped:
                        raise self._grammar.error("a zero page in the stream of a mapped-ram file")
                    self._positions[event.idstr][event.offsets // self._grammar.page_size] = 0

    def _new_index(self, block: Block, page_size: int) -> Offsets:
        try:
            return np.zeros(block.used_length // page_size, np.int64)
        except MemoryError:
            raise self._grammar.error(f"block {block.idstr!r} of {block.used_length} bytes: no memory for it") from None

    def _read(self, count: int) -> memoryview:
        """The next bytes, which must be there."""
        position = self._grammar.position
        if position + count > self._nbytes:
            raise self._cut()
        at = position - self._window_start
        if not 0 <= at <= len(self._window) - count:
            self._fill(position, max(count, _WINDOW if self._place.is_mapped is False else 4096))
            at = 0
        return self._window[at : at + count]

    def _window_at(self, position: int) -> memoryview:
        """What comes next, as far as a run of pages needs it."""
        at = position - self._window_start
        if not 0 <= at <= len(self._window) - _WINDOW // 8:
            self._fill(position, _WINDOW)
            at = 0
        return self._window[at:]

    def _fill(self, position: int, count: int) -> None:
        data = memoryview(bytearray(max(0, min(count, self._nbytes - position))))
        read_exactly(self._file, data, position, self._path)
        self._window, self._window_start = data, position

    def _cut(self) -> StreamError:
        return self._grammar.error(f"the file ends at byte {self._nbytes}, in the middle of the stream")
