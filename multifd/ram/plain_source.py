"""A plain main stream in a file: pages one after the other, as a source without multifd sends them.

``migrate exec:cat``, ``migrate file:`` and libvirt's raw save images are such.

Thread rule: blocks may be used by all channels at once, each with its own `Staging`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from multifd.errors import RamError
from multifd.pages import Offsets, Pages
from multifd.pump.extent import Extent
from multifd.ram.block import MappedPages, Staging
from multifd.ram.file import OpenFile, cut_short
from multifd.ram.file_stream import StreamLayout
from multifd.ram.span import Span, cut, short
from multifd.ram.stored import Present, StoredSource, portions
from multifd.wire.stream import Block

_WINDOW = 1 << 20  # pages looked at together
_MOST_NAMES = 4  # of blocks, in what is said of a piece of the file
_MAX_VIEWS = 1024  # IOV_MAX of Linux: views of one preadv


class PlainBlock:
    """A block whose pages lie anywhere in a file, to be sent.

    Args:
        block: name and length.
        page_size: bytes.
        file: stays the caller's.
        positions: int64, the file's offset of each page's last version, 0 for a page that is zero.
        path: the file, for error messages.
    """

    def __init__(self, block: Block, page_size: int, file: OpenFile, positions: Offsets, path: Path) -> None:
        self.idstr, self.used_length = block.idstr, block.used_length
        self.page_count = len(positions)
        self._page_size, self._file, self._positions, self._path = page_size, file, positions, path

    def present(self) -> Iterator[Present]:
        """See `StoredBlock`."""
        for start in range(0, self.page_count, _WINDOW):
            yield self._positions[start : start + _WINDOW] != 0

    def count_present(self) -> int:
        """See `StoredBlock`."""
        return sum(int(window.sum()) for window in self.present())

    def check(self) -> None:
        """See `StoredBlock`: whatever was wrong, the grammar has found."""

    def portions(self, page_count: int) -> Iterator[Offsets]:
        """See `SourceBlock`."""
        return portions(self.present(), self._page_size, page_count)

    def extent_of(self, offsets: Offsets, *, is_verbatim: bool) -> Extent | None:
        """See `SourceBlock`: a word stands before each page."""
        return None

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        """See `SourceBlock`."""
        positions = self._positions[offsets // self._page_size]
        if not positions[0]:
            return None
        # Neighbours are mostly neighbours in the file too, a word between them: one call reads them.
        page_size = self._page_size
        breaks = ((positions[1:] - positions[:-1] != page_size + 8).nonzero()[0] + 1).tolist()
        data = staging.data.view
        for first, end in zip([0, *breaks], [*breaks, len(positions)], strict=True):
            for a in range(first, end, _MAX_VIEWS // 2):
                b = min(end, a + _MAX_VIEWS // 2)
                self._read_run(int(positions[a]), [data[i * page_size : (i + 1) * page_size] for i in range(a, b)])
        return staging.pages(len(offsets))

    def map(self, offsets: Offsets, staging: Staging) -> MappedPages | None:
        """See `SourceBlock`: a word stands before each page, so they are read into one piece."""
        return None

    def first_pages(self, step: int, count: int) -> Offsets:
        """The first page that lies in each of the file's pieces of `step` bytes, as an offset; -1 if none does.

        Args:
            step: bytes.
            count: of pieces.
        """
        found = np.full(count, -1, np.int64)
        for start in reversed(range(0, self.page_count, _WINDOW)):
            window = self._positions[start : start + _WINDOW]
            pages = np.flatnonzero(window)[::-1]  # the lowest is written last
            found[window[pages] // step] = (pages + start) * self._page_size
        return found

    def _read_run(self, position: int, pages: list[memoryview]) -> None:
        """Fill `pages` from records of a word and a page, the first page at `position`."""
        word = memoryview(bytearray(8))
        views = [view for page in pages for view in (word, page)][1:]
        left = sum(map(len, views))
        while left:
            try:
                with self._file.use() as fd:
                    got = os.preadv(fd, views, position)
            except OSError as e:
                raise RamError(f"{self._path}: cannot read {left} bytes at {position}: {e.strerror}") from e
            if not got:
                raise cut_short(self._path, position)
            position, left = position + got, left - got
            while views and got >= len(views[0]):
                got -= len(views.pop(0))
            if got:
                views[0] = views[0][got:]


class PlainSource(StoredSource):
    """A plain main stream in a file, to be sent or looked at. See `StoredSource`."""

    form = "stream"
    blocks: Sequence[PlainBlock]

    def _open_blocks(self, layout: StreamLayout) -> Sequence[PlainBlock]:
        if layout.is_mapped:
            raise RamError(f"{self.path}: a mapped-ram file, not a plain stream")
        page_size = self.machine.page_size
        return tuple(
            PlainBlock(block, page_size, self.file, layout.positions[block.idstr], self.path)
            for block in layout.machine.blocks
        )

    def _spans_of_ram(self, step: int) -> Iterator[Span]:
        """See `StoredSource`: each piece says whose pages are in it."""
        spans = list(cut(0, self.device_state_offset, step, "structure"))
        firsts = [(block.idstr, block.first_pages(step, len(spans))) for block in self.blocks]
        for i, span in enumerate(spans):
            whose = [f"block {short(idstr)} from {first[i]:#x} on" for idstr, first in firsts if first[i] >= 0]
            yield dataclasses.replace(span, what="; ".join(whose[:_MOST_NAMES]) or span.what)
