"""What the kernel says of an address range of this process: which pages hold anything.

Linux only. Nothing here touches the memory itself: reading an untouched page of a shared mapping would
allocate it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

import numpy as np

from multifd.live.ranges import NO_RANGES, Ranges, of_mask, union
from multifd.ram.mappings import PAGE, Mapping, mappings, pagemap_entries

_PRESENT_OR_SWAPPED = np.uint64(3 << 62)  # Documentation/admin-guide/mm/pagemap.rst
_PAGEMAP_BATCH = 1 << 20  # pages whose entries are read at once: 8 MiB
_MAX_EXTENTS = 1 << 16
"""A file in more pieces than this is read whole from there on: two system calls a piece would cost more."""


def present_pages(address: int, nbytes: int) -> Ranges:
    """Kernel pages of a range that are in memory or swapped out, counted from its start."""
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = []
        for first in range(0, nbytes // PAGE, _PAGEMAP_BATCH):
            count = min(_PAGEMAP_BATCH, nbytes // PAGE - first)
            entries = pagemap_entries(fd, address + first * PAGE, count)
            found.append(of_mask(entries & _PRESENT_OR_SWAPPED != 0) + first)
        return union(*found)
    finally:
        os.close(fd)


def populated(address: int, nbytes: int, private_pages: Callable[[int, int], Ranges] = present_pages) -> Ranges:
    """Kernel pages of a range that may hold something else than zero, counted from its start.

    Args:
        address: of the range, page-aligned.
        nbytes: a multiple of the page size.
        private_pages: asked for (address, nbytes) of private memory.
    """
    found = [NO_RANGES]
    for part in mappings(address, nbytes):
        if part.is_private_memory:
            pages = private_pages(part.start, part.end - part.start)
        elif part.is_shared and part.is_shmem:
            pages = _shmem_pages(part)
        else:
            pages = np.array([[0, (part.end - part.start) // PAGE]], np.int64)
        found.append(pages + (part.start - address) // PAGE)
    return union(*found)


def _shmem_pages(part: Mapping) -> Ranges:
    """Where a piece of shared memory has data; all of it if its file cannot be asked."""
    count = (part.end - part.start) // PAGE
    for path in _names(part):
        with contextlib.suppress(OSError):
            # Opened anew, so that nobody else's file offset moves.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                info = os.fstat(fd)
                if (info.st_dev, info.st_ino) == (part.device, part.inode):
                    return _extents(fd, part.offset, part.offset + count * PAGE)
            finally:
                os.close(fd)
    return np.array([[0, count]], np.int64)


def _names(part: Mapping) -> Iterator[str]:
    """Names under which the mapping's file may be opened."""
    yield f"/proc/self/map_files/{part.span}"  # for the privileged
    if part.path.startswith("/dev/shm/"):
        yield part.path
        yield part.path.replace("\\012", "\n")
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            info = os.fstat(int(name))
            if (info.st_dev, info.st_ino) == (part.device, part.inode):
                yield f"/proc/self/fd/{name}"


def _extents(fd: int, start: int, end: int) -> Ranges:
    """Where a file has data between two offsets, in pages from `start`."""
    found: list[tuple[int, int]] = []
    at = start
    while at < end:
        try:
            first = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:  # no data from there on
                break
            raise
        if first >= end:
            break
        at = end if len(found) >= _MAX_EXTENTS else min(os.lseek(fd, first, os.SEEK_HOLE), end)
        found.append(((first - start) // PAGE, -(-(at - start) // PAGE)))
    return union(np.array(found, np.int64).reshape(-1, 2))
