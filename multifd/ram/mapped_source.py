"""A mapped-ram file that is sent: its blocks, and the devices' state behind them.

Thread rule: blocks may be used by all channels at once, each with its own `Staging`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multifd.errors import RamError
from multifd.pages import Offsets, Pages
from multifd.pump.extent import Extent, Kind
from multifd.ram.block import MappedPages, Staging
from multifd.ram.file import OpenFile, read_exactly
from multifd.ram.file_block import FileBlock
from multifd.ram.file_stream import MappedPlace, StreamLayout
from multifd.ram.mapped_ram import bitmap_bytes
from multifd.ram.span import Span, cut, cut_block
from multifd.ram.stored import StoredSource, portions
from multifd.ram.window import FileWindow
from multifd.wire.stream import Block

_NOWHERE = Extent(Kind.ZERO)
_WINDOW = 1 << 20  # pages whose bits are looked at together
_PIECE = 1 << 20  # bytes that are read together
Bits = npt.NDArray[np.uint8]


class MappedBlock(FileBlock):
    """A block in a mapped-ram file, to be sent.

    Args:
        block: name and length.
        page_size: bytes.
        file: stays the caller's.
        pages_offset: where the pages lie in the file.
        bits: uint8, the bitmap as it is in the file; bit i%8 of byte i//8 says that page i is present.
        path: the file, for error messages.
    """

    def __init__(self, block: Block, page_size: int, file: OpenFile, pages_offset: int, bits: Bits, path: Path) -> None:
        super().__init__(block, page_size, file, pages_offset, path)
        self.page_count = block.used_length // page_size
        self._bits = bits
        self._window = FileWindow(file, pages_offset, block.used_length, page_size, path)

    def present(self) -> Iterator[npt.NDArray[np.bool_]]:
        """Which pages are present, for a window of pages after the other."""
        for start in range(0, self.page_count, _WINDOW):
            count = min(_WINDOW, self.page_count - start)
            yield np.unpackbits(self._bits[start // 8 :], count=count, bitorder="little").view(np.bool_)

    def count_present(self) -> int:
        """How many pages are not zero."""
        return sum(int(np.count_nonzero(window)) for window in self.present())

    def stray_bits(self) -> int:
        """Bits set behind the last page, of which there are none in a sound file."""
        last = np.unpackbits(self._bits[self.page_count // 8 :], bitorder="little")
        return int(np.count_nonzero(last[self.page_count % 8 :]))

    def check(self) -> None:
        """See `StoredBlock`."""
        if stray := self.stray_bits():
            raise RamError(f"{self._path}: block {self.idstr!r}: {stray} bits set behind the last page in its bitmap")

    def portions(self, page_count: int) -> Iterator[Offsets]:
        """See `SourceBlock`: full packets of pages that are present, and of zero pages."""
        return portions(self.present(), self._page_size, page_count)

    def pieces(self) -> Iterator[memoryview]:
        """All bytes of it in their order, a MiB or less at a time, in a buffer that is used again.

        Raises:
            RamError: the file cannot be read.
        """
        data = np.empty(_PIECE, np.uint8)
        count = _PIECE // self._page_size
        at = 0
        for window in self.present():
            for first in range(0, len(window), count):
                is_present = window[first : first + count]
                piece = data[: len(is_present) * self._page_size]
                if is_present.any():
                    read_exactly(self._file, piece.data, self.start + at, self._path)
                piece.reshape(-1, self._page_size)[~is_present] = 0  # old bytes may be there
                yield piece.data
                at += len(piece)

    def extent_of(self, offsets: Offsets, *, is_verbatim: bool) -> Extent | None:
        """See `SourceBlock`: the file's map if nobody but the kernel reads it, else the file."""
        if not self._is_present(offsets):
            return _NOWHERE
        if not is_verbatim:
            return self._extent
        return self._window.extent(len(offsets))

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        """See `SourceBlock`; a slot whose bit is clear may hold old bytes and is not read."""
        return super().load(offsets, staging) if self._is_present(offsets) else None

    def map(self, offsets: Offsets, staging: Staging) -> MappedPages | None:
        """See `SourceBlock`: the file's page cache; the bitmap alone says what is zero."""
        if not self._is_present(offsets):
            return MappedPages(np.ones(len(offsets), np.bool_), [])
        return MappedPages(None, self._window.views(offsets))

    def close(self) -> None:
        """Give the map back; twice is harmless."""
        self._window.close()

    def _is_present(self, portion: Offsets) -> bool:
        page = int(portion[0]) // self._page_size
        return bool(self._bits[page // 8] >> (page % 8) & 1)


class MappedRamSource(StoredSource):
    """A mapped-ram file, to be sent or looked at. See `StoredSource`."""

    form = "mapped-ram"
    blocks: Sequence[MappedBlock]

    def _open_blocks(self, layout: StreamLayout) -> Sequence[MappedBlock]:
        if not layout.is_mapped:
            raise RamError(f"{self.path}: not a mapped-ram file: its pages are in the stream, or went over channels")
        page_size = layout.machine.page_size
        self._gap_bytes = sum(place.pages_offset - place.bitmap_end(page_size) for place in layout.places)
        return tuple(self._block(place) for place in layout.places)

    def _block(self, place: MappedPlace) -> MappedBlock:
        page_size = self.machine.page_size
        bits = np.empty(bitmap_bytes(place.block.used_length, page_size), np.uint8)
        read_exactly(self.file, bits.data.cast("B"), place.bitmap_offset, self.path)
        return MappedBlock(place.block, page_size, self.file, place.pages_offset, bits, self.path)

    def needed_bytes(self) -> int:
        """See `StoredSource`: all but zero pages, and the gap in front of each block's pages."""
        absent = sum(block.page_count - block.count_present() for block in self.blocks)
        return self.nbytes - self._gap_bytes - absent * self.machine.page_size

    def _spans_of_ram(self, step: int) -> Iterator[Span]:
        """See `StoredSource`: blocks, and what is in front of, between and behind them."""
        end = 0
        for block in self.blocks:
            yield from cut(end, block.start, step, "structure")
            yield from cut_block(block.start, block.used_length, step, block.idstr)
            end = block.start + block.used_length
        yield from cut(end, self.device_state_offset, step, "structure")

    def close(self) -> None:
        """See `Source`; twice is harmless."""
        for block in self.blocks:
            block.close()
        super().close()
