"""The tracker that needs no help from the kernel: compare the arena with a copy of what was sent."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from multifd.errors import RamError
from multifd.live.arena import Arena, Region
from multifd.live.kernel import populated
from multifd.live.ranges import NO_RANGES, Ranges, coarsen, count, of_mask, packets, union
from multifd.pages import Memory, Offsets, Pages
from multifd.pump.extent import Extent
from multifd.ram.block import MappedPages, SourceBlock, Staging
from multifd.ram.mappings import PAGE
from multifd.ram.memory import MemoryBlock

_MAP_NORESERVE = 0x4000  # include/uapi/asm-generic/mman-common.h, Linux; mmap has it from Python 3.13 on
_CHUNK_PAGES = 128
"""Compared at once: 512 KiB of pages of 4 KiB, which stay in the cache (AMD EPYC, 2.4 GHz: 7.7 GB/s, 6.7 with
128 KiB)."""


class Comparison:
    """A private copy of what was sent, compared with the arena: any mapping, any writer, any kernel.

    What is sent is read from the copy, and a page is copied when it is sent. So the copy is what the destination
    has, exactly, also when a page changes back and forth while it is looked at.

    It costs as much memory again as the arena has touched, a pass over both for each scan, the last of them while
    the source stands still, and nothing for the writers.

    Args:
        arena: what is tracked.
        page_size: bytes.
    """

    name: ClassVar[str] = "comparison"

    def __init__(self, arena: Arena, page_size: int) -> None:
        self._regions, self._page_size = arena.regions, page_size
        self._blocks = [_CopiedBlock(region, page_size) for region in arena.regions]

    @property
    def blocks(self) -> Sequence[SourceBlock]:
        """See `Tracker`: the copies."""
        return self._blocks

    def arm(self) -> list[Ranges]:
        """See `Tracker`.

        Raises:
            RamError: there is no memory for the copy.
        """
        used = [self._populated(region) for region in self._regions]
        need, have = sum(map(count, used)) * self._page_size, _available_bytes()
        if need > have:
            raise RamError(f"comparison keeps a copy of the arena: {need >> 20} MiB, and {have >> 20} MiB are free")
        return used

    def _populated(self, region: Region) -> Ranges:
        try:
            return coarsen(populated(region.address, region.nbytes), self._page_size // PAGE)
        except OSError:  # without /proc all of it is read
            return np.array([[0, region.nbytes // self._page_size]], np.int64)

    def scan(self) -> list[Ranges]:
        """See `Tracker`: which pages differ from the copy."""
        return [
            block.differing(self._populated(region)) for region, block in zip(self._regions, self._blocks, strict=True)
        ]

    def close(self) -> None:
        """See `Tracker`: the copy is given back."""
        for block in self._blocks:
            block.release()


class _CopiedBlock(MemoryBlock):
    """A block of an arena with a copy of what was sent of it."""

    def __init__(self, region: Region, page_size: int) -> None:
        super().__init__(region.idstr, region.view, page_size)
        # No reserve: it takes what the arena has touched, which `arm` has looked at.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            copy = mmap.mmap(-1, region.nbytes, flags=private)
        except OSError as e:
            raise RamError(f"no room for a copy of block {region.idstr!r}: {e.strerror}") from e
        self._copy = Memory(memoryview(copy), page_size)
        # One byte a page: whether the copy holds anything.
        self._is_copied = np.zeros(region.nbytes // page_size, np.bool_)

    def extent_of(self, offsets: Offsets, *, is_verbatim: bool) -> Extent | None:
        """See `SourceBlock`: what is sent must be what the copy has."""
        return None

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        """See `SourceBlock`: the pages as they are now, and from now on in the copy."""
        self.check_readable(offsets)
        page_size = self._copy.page_size
        pages = Pages(self._copy, offsets, staging.scratch, is_private=True)
        if len(pages.runs()) == 1:
            first = int(offsets[0]) // page_size
            where: slice | npt.NDArray[np.int64] = slice(first, first + len(offsets))
        else:
            where = offsets // page_size
        self._copy.array[where] = self._memory.array[where]
        self._is_copied[where] = True
        return pages

    def map(self, offsets: Offsets, staging: Staging) -> MappedPages | None:
        """See `SourceBlock`: what is sent must be what the copy has."""
        return None

    def differing(self, used: Ranges) -> Ranges:
        """Which pages of the arena are not as they were sent; `used` are those that may hold something."""
        ours, theirs, page_size = self._copy.words, self._memory.words, self._copy.page_size
        found = []
        for pages in packets(union(used, of_mask(self._is_copied)), _CHUNK_PAGES):
            self.check_readable(pages * page_size)
            first, last = int(pages[0]), int(pages[-1])
            where = slice(first, last + 1) if last - first == len(pages) - 1 else pages
            differs = (ours[where] != theirs[where]).any(axis=1)
            if differs.any():
                found.append(pages[differs])
        if not found:
            return NO_RANGES
        numbers = np.concatenate(found)
        return union(np.stack((numbers, numbers + 1), axis=1))

    def release(self) -> None:
        """Give the arena's buffer and the copy back."""
        super().release()
        self._copy = Memory(b"", self._copy.page_size)


def _available_bytes() -> int:
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 1 << 62
