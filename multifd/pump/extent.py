"""Where the pages of a block lie, in terms that need no interpreter."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Kind(IntEnum):
    """How the packet pump gets at pages; the numbers are those of multifd/pump/pump.h."""

    MEMORY = 0
    """In memory whose pages are there to stay."""
    CHECKED = 1
    """In memory that may change, and lose pages, while it is looked at: the kernel is asked before one is touched, and
    hooks get a copy."""
    WINDOW = 2
    """In a file's map, for system calls alone."""
    FILE = 3
    """In a file, by pread and pwrite."""
    ZERO = 4
    """Nowhere: all are zero. For a source alone."""


class Lender(Protocol):
    """An open file that lends its descriptor."""

    def use(self) -> AbstractContextManager[int]:
        """The descriptor, for the length of a ``with``."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Extent:
    """A block's pages: page at offset X of the block is at `address` + X, or at byte `start` + X of `file`."""

    kind: Kind
    address: int = 0
    view: memoryview | None = None
    """What lies at `address`: it stays mapped as long as somebody holds the extent."""
    file: Lender | None = None
    start: int = 0
    used: npt.NDArray[np.bool_] | None = None
    """A target's: bool, shape (pages,): False where a page was never touched, so is zero. The pump sets what it
    writes to."""
