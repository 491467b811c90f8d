"""The kernel's write-protect log of what a process writes, Linux 6.7 and later.

Sources: Documentation/admin-guide/mm/pagemap.rst and userfaultfd.rst of Linux 6.18, on which it was tried
(tests/live/test_trackers.py).
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from multifd.live.arena import Arena, Region
from multifd.live.kernel import populated
from multifd.live.ranges import Ranges, union
from multifd.live.tracker import InPlace, Unavailable, readable
from multifd.live.userfaultfd import open_userfaultfd
from multifd.ram.mappings import PAGE

_Entries = npt.NDArray[np.uint64]
_UFFDIO_REGISTER = 0xC020AA00
_MODE_WP = 2
_PAGEMAP_SCAN = 0xC0606610
_WP_MATCHING_CHECK_ASYNC = 3
_WRITTEN, _PRESENT, _SWAPPED, _PFNZERO = 1 << 1, 1 << 3, 1 << 4, 1 << 5
_VECTOR = 1 << 16
"""Entries one system call may return: 1.5 MiB."""


class WriteProtect(InPlace):
    """The kernel's write-protect log: userfaultfd in asynchronous mode and PAGEMAP_SCAN, Linux 6.7.

    The first write to a page after a scan costs the writer one page fault that the kernel resolves itself. A huge
    page is split by it, so what is reported is pages of 4 KiB. A scan reports and protects in one step.

    It sees what this process writes through its page tables, system calls on its behalf included. Not other
    processes' writes; not devices' and io_uring's to memory pinned before; not holes punched in shared memory.

    Args:
        arena: registered until `close`; no other userfaultfd may have it.
        page_size: bytes.

    Raises:
        Unavailable: the kernel does not have or allow it.
    """

    name: ClassVar[str] = "write-protect"

    def __init__(self, arena: Arena, page_size: int) -> None:
        super().__init__(arena, page_size)
        self._fd = open_userfaultfd()
        self._pagemap = -1
        try:
            self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            self._vector = np.zeros((_VECTOR, 3), np.uint64)
            for region in arena.regions:
                register = struct.pack("4Q", region.address, region.nbytes, _MODE_WP, 0)
                fcntl.ioctl(self._fd, _UFFDIO_REGISTER, bytearray(register))
                self._request(region.address, region.address + PAGE, 0, _WRITTEN)  # changes nothing
        except OSError as e:
            self.close()
            what = e.filename or "the kernel refuses it for this memory"
            raise Unavailable(f"{what} ({e.strerror})") from e

    def arm(self) -> list[Ranges]:
        """See `Tracker`. What is populated comes from the scan that protects: no page can slip between."""
        with readable():
            return [self._coarsen(self._arm(region)) for region in self._regions]

    def _arm(self, region: Region) -> Ranges:
        entries = self._scan(region, _WRITTEN | _PRESENT | _SWAPPED | _PFNZERO)
        kinds = entries[:, 2]
        is_used = (kinds & (_PRESENT | _SWAPPED) != 0) & (kinds & _PFNZERO == 0)
        used = union(_page_numbers(entries[is_used], region))

        def private_pages(address: int, nbytes: int) -> Ranges:
            first = (address - region.address) // PAGE
            cut = np.clip(used, first, first + nbytes // PAGE) - first
            return cut[cut[:, 0] < cut[:, 1]]

        return populated(region.address, region.nbytes, private_pages)

    def scan(self) -> list[Ranges]:
        """See `Tracker`."""
        with readable():
            return [self._coarsen(union(_page_numbers(self._scan(r, _WRITTEN), r))) for r in self._regions]

    def _scan(self, region: Region, categories: int) -> _Entries:
        found = []
        at, end = region.address, region.address + region.nbytes
        while at < end:
            filled, at = self._request(at, end, _WP_MATCHING_CHECK_ASYNC, categories)
            found.append(self._vector[:filled].copy())
        return np.concatenate(found)

    def _request(self, start: int, end: int, flags: int, categories: int) -> tuple[int, int]:
        vector = self._vector.ctypes.data
        request = bytearray(
            struct.pack("12Q", 96, flags, start, end, 0, vector, _VECTOR, 0, 0, 0, _WRITTEN, categories)
        )
        filled = fcntl.ioctl(self._pagemap, _PAGEMAP_SCAN, request)
        walked: int = struct.unpack_from("12Q", request)[4]
        return filled, walked

    def close(self) -> None:
        """See `Tracker`: the kernel takes the protection away with the descriptor."""
        for fd in (self._fd, self._pagemap):
            if fd >= 0:
                os.close(fd)
        self._fd = self._pagemap = -1
        self._release()


def _page_numbers(entries: _Entries, region: Region) -> Ranges:
    return (entries[:, :2].astype(np.int64) - region.address) // PAGE
