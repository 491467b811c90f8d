"""Memory that ends where none may be touched: a page without access behind, before and between what a hook is given."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

from multifd.pages import Memory, Offsets

_PROT_NONE = 0  # sys/mman.h
_LIBC = ctypes.CDLL(None, use_errno=True)


class Fence:
    """Bytes with a page without access before and behind them, as near behind as their number allows.

    Args:
        nbytes: how many.
    """

    def __init__(self, nbytes: int) -> None:
        room = -(-max(nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._map = mmap.mmap(-1, room + 2 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._forbid(0, mmap.PAGESIZE)
        self._forbid(mmap.PAGESIZE + room, mmap.PAGESIZE)
        end = mmap.PAGESIZE + room
        self._start = end - nbytes
        self.view = memoryview(self._map)[self._start : end]

    def forbid(self, start: int, nbytes: int) -> None:
        """Take access to a part away; where the machine's pages are larger than it, nothing happens."""
        if not (self._start + start) % mmap.PAGESIZE and not nbytes % mmap.PAGESIZE:
            self._forbid(self._start + start, nbytes)

    def revoke(self) -> None:
        """Take access to all of it away: whoever touches it from now on is killed by a signal."""
        self._forbid(0, len(self._map))

    def _forbid(self, start: int, nbytes: int) -> None:
        address = ctypes.c_void_p(self._base + start)
        if _LIBC.mprotect(address, ctypes.c_size_t(nbytes), _PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")


def fenced_pages(data: bytes, page_size: int) -> tuple[Memory, Offsets, Fence]:
    """The pages of `data` in memory of their own, with a page that cannot be touched on each side of each."""
    count = len(data) // page_size
    fence = Fence((2 * count + 1) * page_size)
    for i in range(count):
        at = (2 * i + 1) * page_size
        fence.view[at : at + page_size] = data[i * page_size : (i + 1) * page_size]
    for i in range(count + 1):
        fence.forbid(2 * i * page_size, page_size)
    offsets = (2 * np.arange(count, dtype=np.int64) + 1) * page_size
    return Memory(fence.view, page_size), offsets, fence
