"""Which pages of an arena were written since it was last asked: one interface, three trackers, a choice.

Rules of every tracker: a page written after `scan` looked at it is found by the next `scan`, whatever else
happens meanwhile. Nothing loops over pages in Python, and untouched memory is not read.
"""

from __future__ import annotations

from collections.abc import Callable

from multifd.errors import RamError, UsageError
from multifd.live.arena import Arena
from multifd.live.comparison import Comparison
from multifd.live.soft_dirty import SoftDirty
from multifd.live.tracker import Tracker, Unavailable
from multifd.live.write_protect import WriteProtect
from multifd.ram.mappings import PAGE

_LOGS: tuple[Callable[[Arena, int], Tracker], ...] = (WriteProtect, SoftDirty)
TRACKERS = ("write-protect", "soft-dirty", "comparison")
"""Their names, best first."""


def choose(arena: Arena, page_size: int, wanted: str | None = None) -> tuple[Tracker, str]:
    """The best tracker for this memory on this machine.

    Args:
        arena: what is tracked.
        page_size: bytes, a multiple of the kernel's.
        wanted: one of `TRACKERS`, to have that one or an error; None chooses.

    Returns:
        The tracker, and why it is not a better one; empty if it is the best or was wanted.

    Raises:
        UsageError: no such tracker, or the wanted one cannot work here.
    """
    if wanted is not None and wanted not in TRACKERS:
        raise UsageError(f"tracker {wanted!r}, expected one of {', '.join(TRACKERS)}")
    if page_size % PAGE:
        raise UsageError(f"page size {page_size}, expected a multiple of the kernel's, {PAGE}")
    if any(region.nbytes % page_size for region in arena.regions):
        raise RamError(f"every block of the arena must be a multiple of the page size, {page_size}, long")
    reasons: list[str] = []
    for name, make in zip(TRACKERS, _LOGS, strict=False):
        if wanted not in (None, name):
            continue
        try:
            if others := arena.foreign_writers():
                raise Unavailable(f"{others}, which the kernel does not log (writers='this-process' says: none does)")
            return make(arena, page_size), "; ".join(reasons)
        except Unavailable as e:
            if wanted:
                raise UsageError(f"tracker {name!r}: {e}") from e
            reasons.append(f"{name}: {e}")
    return Comparison(arena, page_size), "; ".join(reasons)
