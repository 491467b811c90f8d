"""A mapped-ram file that is sent: its blocks, and the devices' state behind them.

Thread rule: blocks may be used by all channels at once, each with its own `Staging`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multifd.errors import RamError, StreamError
from multifd.pages import Offsets, Pages
from multifd.ram.block import MappedPages, Staging
from multifd.ram.file import OpenFile, open_regular, read_exactly
from multifd.ram.file_block import FileBlock
from multifd.ram.mapped_ram import FileStream, bitmap_bytes
from multifd.ram.window import FileWindow
from multifd.wire.stream import Block

_WINDOW = 1 << 20  # pages whose bits are looked at together
_PIECE = 1 << 20  # bytes of device state read together
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

    def portions(self, page_count: int) -> Iterator[Offsets]:
        """See `SourceBlock`: full packets of pages that are present, and of zero pages."""
        for i, window in enumerate(self.present()):
            for chosen in (window, ~window):
                offsets = (np.flatnonzero(chosen) + i * _WINDOW) * self._page_size
                for start in range(0, len(offsets), page_count):
                    yield offsets[start : start + page_count]

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


class MappedRamSource:
    """A mapped-ram file, to be sent or looked at.

    Args:
        path: a capture, or a file that QEMU wrote.

    Raises:
        RamError: it is not a sound mapped-ram file up to the end of RAM.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.blocks: Sequence[MappedBlock] = ()
        self._file, self.nbytes = open_regular(self.path)
        try:
            stream = FileStream(self._file, self.nbytes, self.path)
            try:
                self.machine, self.device_state_offset = stream.parse()
            except StreamError as e:
                raise RamError(f"{self.path}: {e}") from e
            self.blocks = tuple(self._block(*place) for place in stream.places)
        except BaseException:
            self.close()
            raise

    def _block(self, block: Block, bitmap_offset: int, pages_offset: int) -> MappedBlock:
        bits = np.empty(bitmap_bytes(block.used_length, self.machine.page_size), np.uint8)
        read_exactly(self._file, bits.data.cast("B"), bitmap_offset, self.path)
        return MappedBlock(block, self.machine.page_size, self._file, pages_offset, bits, self.path)

    def device_state(self) -> Iterator[bytes]:
        """See `Source`."""
        for start in range(self.device_state_offset, self.nbytes, _PIECE):
            data = bytearray(min(_PIECE, self.nbytes - start))
            read_exactly(self._file, memoryview(data), start, self.path)
            yield bytes(data)

    def end_of_device_state(self, at_most: int) -> bytes:
        """Its last bytes, all of it if it has no more than `at_most`."""
        start = max(self.device_state_offset, self.nbytes - at_most)
        data = bytearray(self.nbytes - start)
        read_exactly(self._file, memoryview(data), start, self.path)
        return bytes(data)

    def close(self) -> None:
        """See `Source`."""
        for block in self.blocks:
            block.close()
        self._file.close()
