"""A mapped-ram file that is sent: its blocks, and the devices' state behind them.

Thread rule: blocks may be used by all channels at once, each with its own `Staging`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multifd.errors import RamError
from multifd.pages import Memory, Offsets, Pages
from multifd.ram.block import Staging
from multifd.ram.file import read_exactly
from multifd.ram.file_block import FileBlock
from multifd.ram.file_stream import MappedPlace, StreamLayout
from multifd.ram.mapped_ram import bitmap_bytes
from multifd.ram.stored import StoredSource, portions
from multifd.wire.stream import Block

_WINDOW = 1 << 20  # pages whose bits are looked at together
_MAPPED = 16 << 20
"""About how many bytes of a file's map may be resident at once."""
Bits = npt.NDArray[np.uint8]


class MappedBlock(FileBlock):
    """A block in a mapped-ram file, to be sent.

    Args:
        block: name and length.
        page_size: bytes.
        fd: stays the caller's.
        pages_offset: where the pages lie in the file.
        bits: uint8, the bitmap as it is in the file; bit i%8 of byte i//8 says that page i is present.
        path: the file, for error messages.
    """

    def __init__(self, block: Block, page_size: int, fd: int, pages_offset: int, bits: Bits, path: Path) -> None:
        super().__init__(block, page_size, fd, pages_offset, path)
        self.page_count = block.used_length // page_size
        self._bits = bits

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

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        """See `SourceBlock`; a slot whose bit is clear may hold old bytes and is not read."""
        return super().load(offsets, staging) if self._is_present(offsets) else None

    def _is_present(self, portion: Offsets) -> bool:
        page = int(portion[0]) // self._page_size
        return bool(self._bits[page // 8] >> (page % 8) & 1)


class _PagesForTheKernel(Pages):
    """Pages in a file's map, for system calls alone: this process would die of a file that is cut short."""

    def zero_mask(self) -> None:
        """See `Pages`; the bitmap says so."""


class _VerbatimBlock(MappedBlock):
    """A block whose pages system calls read where the file's page cache has them."""

    def __init__(self, block: Block, page_size: int, fd: int, pages_offset: int, bits: Bits, path: Path) -> None:
        super().__init__(block, page_size, fd, pages_offset, bits, path)
        end = pages_offset + block.used_length
        try:
            self._map = mmap.mmap(fd, end, prot=mmap.PROT_READ)
        except (OSError, ValueError) as e:
            raise RamError(f"{path}: its first {end} bytes cannot be mapped: {e}") from e
        self._memory = Memory(memoryview(self._map)[pages_offset:], page_size)
        self._lent = 0

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        """See `SourceBlock`."""
        if not self._is_present(offsets):
            return None
        self._lent += len(offsets) * self._page_size
        if self._lent >= _MAPPED:
            self._lent = 0
            self._map.madvise(mmap.MADV_DONTNEED)  # another channel that is at it reads the page cache again
        return _PagesForTheKernel(self._memory, offsets, staging.scratch)


class MappedRamSource(StoredSource):
    """A mapped-ram file, to be sent or looked at. See `StoredSource`."""

    form = "mapped-ram"
    _block_type = MappedBlock

    def _open_blocks(self, layout: StreamLayout) -> Sequence[MappedBlock]:
        if not layout.is_mapped:
            raise RamError(f"{self.path}: not a mapped-ram file: its pages are in the stream, or went over channels")
        return tuple(self._block(place) for place in layout.places)

    def _block(self, place: MappedPlace) -> MappedBlock:
        page_size = self.machine.page_size
        bits = np.empty(bitmap_bytes(place.block.used_length, page_size), np.uint8)
        read_exactly(self._fd, bits.data.cast("B"), place.bitmap_offset, self.path)
        return self._block_type(place.block, page_size, self._fd, place.pages_offset, bits, self.path)


class VerbatimSource(MappedRamSource):
    """A mapped-ram file for a method whose payload is the pages as they are.

    Its pages are for system calls alone: one that meets a file that was cut short fails, a process that
    reads it itself is killed. So nobody looks for zero pages among those that the bitmap has.
    """

    _block_type = _VerbatimBlock
