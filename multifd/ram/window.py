"""A map of a piece of a file, whose pages are for system calls alone."""

from __future__ import annotations

import contextlib
import mmap
import threading
from pathlib import Path

from multifd.errors import RamError
from multifd.pages import Memory, Offsets, runs
from multifd.pump.extent import Extent, Kind
from multifd.ram.file import OpenFile
from multifd.ram.probe import address_of

_MAPPED = 16 << 20
"""About how many bytes of a file's map may be resident at once."""


class FileWindow:
    """A block's pages in a map of its file, made when it is first asked for; see `MappedPages` for who may read them.

    Args:
        file: stays the caller's.
        start: the block's first byte in the file, a multiple of `page_size`.
        nbytes: of the block.
        page_size: bytes.
        path: the file, for error messages.
    """

    def __init__(self, file: OpenFile, start: int, nbytes: int, page_size: int, path: Path) -> None:
        self._file, self._start, self._nbytes, self._page_size, self._path = file, start, nbytes, page_size, path
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None
        self._memory = Memory(b"", page_size)
        self._extent: Extent | None = None
        self._lent = 0
        self._is_closed = False

    def views(self, offsets: Offsets) -> list[memoryview]:
        """The pages of `offsets`, neighbours coalesced (channel threads).

        Raises:
            RamError: the file cannot be mapped.
        """
        with self._lock:
            self._lend(len(offsets))
            return runs(self._memory, offsets)

    def extent(self, pages: int) -> Extent | None:
        """Where the pages lie, for the next `pages` of them (channel threads).

        Raises:
            RamError: the file cannot be mapped.
        """
        with self._lock:
            self._lend(pages)
            return self._extent

    def _lend(self, pages: int) -> None:
        if self._is_closed:
            raise RamError(f"{self._path}: was closed, the migration is over")
        if self._map is None:
            self._map = self._open()
        self._lent += pages * self._page_size
        if self._lent >= _MAPPED:
            self._lent = 0
            self._map.madvise(mmap.MADV_DONTNEED)  # another channel that is at it reads the page cache again

    def _open(self) -> mmap.mmap:
        # The offset of a map is a multiple of the kernel's page, a block's pages only of the guest's.
        before = self._start % mmap.ALLOCATIONGRANULARITY
        try:
            with self._file.use() as fd:
                window = mmap.mmap(fd, before + self._nbytes, prot=mmap.PROT_READ, offset=self._start - before)
        except (OSError, ValueError) as e:
            end = self._start + self._nbytes
            raise RamError(f"{self._path}: its bytes {self._start} to {end} cannot be mapped: {e}") from e
        self._memory = Memory(memoryview(window)[before:], self._page_size)
        view = self._memory.view
        self._extent = Extent(Kind.WINDOW, address_of(view), view)
        return window

    def close(self) -> None:
        """Give the map back; twice is harmless. What was lent must not be used any more."""
        with self._lock:
            self._is_closed = True
            self._memory, self._extent = Memory(b"", self._page_size), None
            if self._map is not None:
                # Views that somebody still holds keep the map until they are gone.
                with contextlib.suppress(BufferError):
                    self._map.close()
                self._map = None
