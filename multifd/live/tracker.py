"""What every dirty tracker offers, and what the trackers that ask the kernel have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol

from multifd.errors import RamError
from multifd.live.arena import Arena
from multifd.live.ranges import Ranges, coarsen
from multifd.pages import Offsets, Pages
from multifd.ram.block import SourceBlock, Staging
from multifd.ram.mappings import PAGE
from multifd.ram.memory import MemoryBlock


class Tracker(Protocol):
    """Finds out what was written. All ranges count in the migration's pages, one array for each block.

    Thread rule: one thread; the blocks are for all channels at once.
    """

    name: ClassVar[str]
    """What users type."""

    @property
    def blocks(self) -> Sequence[SourceBlock]:
        """Where the pages are read from when they are sent, in the arena's order."""
        ...

    def arm(self) -> list[Ranges]:
        """Begin: writes are found from here on. Call it before the first page is read.

        Returns:
            Which pages may hold something; the others are zero.
        """
        ...

    def scan(self) -> list[Ranges]:
        """What was written since `arm` or the last `scan`, at least."""
        ...

    def close(self) -> None:
        """Stop; the writers pay nothing any more. Twice is harmless."""
        ...


class Unavailable(Exception):
    """This log cannot be had here; the text says why. `multifd.live.choose.choose` deals with it."""


@contextlib.contextmanager
def readable() -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise RamError(f"the kernel's log of what was written cannot be read: {e.strerror}") from e


class LiveBlock(MemoryBlock):
    """A block of memory that is written, and may be protected, while a hook is at work: hooks get a copy."""

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        """See `SourceBlock`."""
        self.check_readable(offsets)
        Pages(self._memory, offsets, staging.data).gather()
        return staging.pages(len(offsets))


class InPlace:
    """What the trackers that ask the kernel have in common: pages are sent from the arena itself."""

    def __init__(self, arena: Arena, page_size: int) -> None:
        self._regions, self._page_size = arena.regions, page_size
        self._blocks = [LiveBlock(r.idstr, r.view, page_size) for r in arena.regions]

    @property
    def blocks(self) -> Sequence[SourceBlock]:
        """See `Tracker`: the arena's memory."""
        return self._blocks

    def _release(self) -> None:
        for block in self._blocks:
            block.release()

    def _coarsen(self, ranges: Ranges) -> Ranges:
        return coarsen(ranges, self._page_size // PAGE)
