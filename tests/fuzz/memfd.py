"""Files that are parsed, without a disk: a path that opens like any other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def file_of(*pieces: tuple[int, bytes], nbytes: int = 0) -> Iterator[Path]:
    """A file with bytes at places, holes between, at least `nbytes` long; gone afterwards."""
    fd = os.memfd_create("input", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, max([nbytes, *(at + len(data) for at, data in pieces)]))
        for at, data in pieces:
            os.pwrite(fd, data, at)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
