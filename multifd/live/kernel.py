"""What the kernel says of an address range of this process: its mappings, and which pages hold anything.

Linux only. Nothing here touches the memory itself: reading an untouched page of a shared mapping would
allocate it.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from multifd.live.ranges import NO_RANGES, Ranges, of_mask, union

PAGE = mmap.PAGESIZE
"""Bytes of a kernel page."""
_PRESENT_OR_SWAPPED = np.uint64(3 << 62)  # Documentation/admin-guide/mm/pagemap.rst
_PAGEMAP_BATCH = 1 << 20  # pages whose entries are read at once: 8 MiB
_MAX_EXTENTS = 1 << 16
"""A file in more pieces than this is read whole from there on: two system calls a piece would cost more."""


@dataclass(frozen=True)
class Mapping:
    """One line of /proc/self/maps, cut to the range that was asked for."""

    start: int
    end: int
    span: str
    """The whole mapping's, as the kernel names it."""
    is_writable: bool
    is_shared: bool
    device: int
    inode: int
    offset: int
    """Of `start`, in the file."""
    path: str
    """As the kernel lists it: a newline as ``\\012``, " (deleted)" behind what has no name any more, bytes that are
    not UTF-8 as surrogates (`os.fsdecode`)."""

    @property
    def label(self) -> str:
        """The path for messages: what a terminal would act on, or cannot show, is escaped."""
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in self.path)

    @property
    def is_private_memory(self) -> bool:
        """Nobody but this process can write to it: private and of no file."""
        return not self.is_shared and self.inode == 0

    @property
    def is_shmem(self) -> bool:
        """Shared memory that is no file on a disk: its holes are known and are zero."""
        return self.path.startswith(("/dev/shm/", "/memfd:", "/dev/zero", "/SYSV"))


def mappings(address: int, nbytes: int) -> list[Mapping]:
    """The mappings of a range, in order.

    Raises:
        OSError: /proc is not there.
    """
    found = []
    with open("/proc/self/maps", "rb") as lines:
        for line in lines:
            # A path may hold any byte but a newline: only what is asked for is decoded.
            span, permissions, offset, device, inode, *path = line.rstrip(b"\n").split(maxsplit=5)
            start, end = (int(text, 16) for text in span.split(b"-"))
            if start < address + nbytes and end > address:
                major, minor = (int(text, 16) for text in device.split(b":"))
                first = max(start, address)
                found.append(
                    Mapping(
                        start=first,
                        end=min(end, address + nbytes),
                        span=span.decode(),
                        is_writable=permissions[:2] == b"rw",
                        is_shared=permissions[3:4] == b"s",
                        device=os.makedev(major, minor),
                        inode=int(inode),
                        offset=int(offset, 16) + first - start,
                        path=os.fsdecode(path[0]) if path else "",
                    )
                )
    return found


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


def pagemap_entries(fd: int, address: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Entries of /proc/PID/pagemap, uint64, shape (count,)."""
    entries = np.zeros(count, np.uint64)
    view, offset = entries.data.cast("B"), address // PAGE * 8
    while len(view):
        got = os.preadv(fd, [view], offset)
        if not got:
            raise OSError(errno.EIO, "pagemap ends early")
        view, offset = view[got:], offset + got
    return entries


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
