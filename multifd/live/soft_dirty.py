"""The kernel's soft-dirty bits: a tracker for kernels before 6.7.

Source: Documentation/admin-guide/mm/soft-dirty.rst of Linux 6.18; tried on a stand-in for /proc.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from typing import ClassVar

import numpy as np

from multifd.live.arena import Arena, Region
from multifd.live.kernel import populated
from multifd.live.ranges import NO_RANGES, Ranges, of_mask, union
from multifd.live.tracker import InPlace, Unavailable, readable
from multifd.ram.mappings import PAGE, pagemap_entries

_SOFT_DIRTY = np.uint64(1 << 55)
_soft_dirty_in_use = threading.Lock()
"""Clearing the bits clears them for the whole process."""


class SoftDirty(InPlace):
    """Bit 55 of /proc/PID/pagemap, for kernels before 6.7 that are built with CONFIG_MEM_SOFT_DIRTY.

    The bits can be read and cleared, but not in one step: a write between the two would be lost. So they are
    cleared once, by `arm`, and each scan finds everything written since then. Writers that keep to the same pages
    cost no more for it; writers that wander do not converge.

    Args:
        arena: what is tracked.
        page_size: bytes.
        proc: the process's folder in /proc.

    Raises:
        Unavailable: the kernel has no such bits, or another migration of this process uses them.
    """

    name: ClassVar[str] = "soft-dirty"

    def __init__(self, arena: Arena, page_size: int, proc: str = "/proc/self") -> None:
        super().__init__(arena, page_size)
        self._proc = proc
        self._holds = False
        self._pagemap = -1
        try:
            self._pagemap = os.open(f"{proc}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            works = self._new_memory_is_dirty()
            if not os.access(f"{proc}/clear_refs", os.W_OK):
                raise PermissionError(errno.EACCES, "clear_refs may not be written")
        except OSError as e:
            self.close()
            raise Unavailable(f"{proc}: {e.strerror}") from e
        if not works:
            self.close()
            raise Unavailable("the kernel is built without CONFIG_MEM_SOFT_DIRTY")
        if not _soft_dirty_in_use.acquire(blocking=False):
            self.close()
            raise Unavailable("another migration of this process uses it")
        self._holds = True

    def _new_memory_is_dirty(self) -> bool:
        with mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
            page[0] = 1
            address = ctypes.addressof(ctypes.c_char.from_buffer(page))
            return bool(pagemap_entries(self._pagemap, address, 1)[0] & _SOFT_DIRTY)

    def arm(self) -> list[Ranges]:
        """See `Tracker`."""
        with readable():
            with open(f"{self._proc}/clear_refs", "w") as control:
                control.write("4")
            return [self._coarsen(populated(r.address, r.nbytes)) for r in self._regions]

    def scan(self) -> list[Ranges]:
        """See `Tracker`: everything since `arm`."""
        with readable():
            return [self._coarsen(self._scan(region)) for region in self._regions]

    def _scan(self, region: Region, batch: int = 1 << 20) -> Ranges:
        found = [NO_RANGES]
        for first in range(0, region.nbytes // PAGE, batch):
            pages = min(batch, region.nbytes // PAGE - first)
            entries = pagemap_entries(self._pagemap, region.address + first * PAGE, pages)
            found.append(of_mask(entries & _SOFT_DIRTY != 0) + first)
        return union(*found)

    def close(self) -> None:
        """See `Tracker`."""
        if self._pagemap >= 0:
            os.close(self._pagemap)
            self._pagemap = -1
        self._release()
        if self._holds:
            _soft_dirty_in_use.release()
            self._holds = False
