"""A RAM block that is one piece of a file.

Files are read and written with preadv and pwritev through the channel's staging buffer, never
mapped: a full disk or a file that shrinks is an error of a system call then, not a SIGBUS, and the
memory of either end does not grow with RAM.

Thread rule: blocks may be used by all channels at once, each with its own `Staging`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multifd.pages import Offsets, Pages
from multifd.pump.extent import Extent, Kind
from multifd.ram.block import MappedPages, Staging, in_order
from multifd.ram.file import OpenFile, is_hole, read_exactly, write
from multifd.ram.page_set import PageSet
from multifd.wire.stream import Block


class FileBlock:
    """A block that is one piece of a file; source and target.

    Args:
        block: name and length.
        page_size: bytes.
        file: stays the caller's.
        start: the block's first byte in the file.
        path: the file, for error messages.
    """

    def __init__(self, block: Block, page_size: int, file: OpenFile, start: int, path: Path) -> None:
        self.idstr, self.used_length, self.start = block.idstr, block.used_length, start
        self._file, self._page_size, self._path = file, page_size, path
        self._written = PageSet()
        self._extent = Extent(Kind.FILE, file=file, start=start)

    def portions(self, page_count: int) -> Iterator[Offsets]:
        """See `SourceBlock`."""
        return in_order(self.used_length, self._page_size, page_count)

    def extent_of(self, offsets: Offsets, *, is_verbatim: bool) -> Extent | None:
        """See `SourceBlock`."""
        return self._extent

    def extent(self) -> Extent | None:
        """See `TargetBlock`."""
        return self._extent

    def written(self, offsets: Offsets, is_zero: npt.NDArray[np.bool_]) -> None:
        """See `TargetBlock`."""
        self._written.add(offsets[~is_zero] // self._page_size)
        if is_zero.any():
            # A page may come twice: what it was last is what it is.
            last, places = np.unique(offsets[::-1], return_index=True)
            self.clear(last[is_zero[::-1][places]])

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        """See `SourceBlock`; holes are not read."""
        first, end = int(offsets[0]), int(offsets[-1]) + self._page_size
        if is_hole(self._file, self.start + first, self.start + end, self._path):
            return None
        for offset, view in self._runs(offsets, staging):
            read_exactly(self._file, view, self.start + offset, self._path)
        return staging.pages(len(offsets))

    def map(self, offsets: Offsets, staging: Staging) -> MappedPages | None:
        """See `SourceBlock`: a raw image's zero pages are found by reading them."""
        return None

    def lend(self, offsets: Offsets) -> list[memoryview] | None:
        """See `TargetBlock`: a file is written from the staging buffer."""
        return None

    def place(self, offsets: Offsets, staging: Staging) -> Pages:
        """See `TargetBlock`."""
        return staging.pages_by_offset(offsets)

    def store(self, offsets: Offsets, staging: Staging) -> None:
        """See `TargetBlock`."""
        in_order = offsets.copy()
        in_order.sort()
        page_size = self._page_size
        for offset, view in self._runs(in_order, staging):
            write(self._file, view, self.start + offset, self._path)
            self._written.add_run(offset // page_size, (offset + len(view)) // page_size)

    def clear(self, offsets: Offsets) -> None:
        """See `TargetBlock`; pages that were never written are holes already."""
        for page in self._written.select(offsets // self._page_size).tolist():
            write(self._file, bytes(self._page_size), self.start + page * self._page_size, self._path)

    def _runs(self, offsets: Offsets, staging: Staging) -> Iterator[tuple[int, memoryview]]:
        """(offset in the block, view of the staging buffer) for each run of neighbours."""
        view, page_size = staging.data.view, self._page_size
        breaks = ((offsets[1:] - offsets[:-1] != page_size).nonzero()[0] + 1).tolist()
        for a, b in zip([0, *breaks], [*breaks, len(offsets)], strict=True):
            yield int(offsets[a]), view[a * page_size : b * page_size]
