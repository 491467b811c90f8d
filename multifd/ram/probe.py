"""Whether memory can be read, asked of the kernel right before this process touches it.

A guard page, a page that was protected, a page of a map beyond its file's end: a thread that touches one is killed by a
signal, which Python cannot handle. The kernel says so by an error instead, if it is given a byte of every page to write
into a memfd. What is asked and what is touched are two steps, microseconds apart: memory that loses pages in just that
moment still kills.

Measured on Linux 6.18, AMD EPYC: 7 us for the 128 pages of a packet (21 by MADV_POPULATE_READ, 43 for a copy of all
their bytes through a pipe, 62 by process_vm_readv; looking at them for zeros takes 3).

Thread rule: any thread.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cache

import numpy as np

from multifd.pages import Offsets

_MOST_PIECES = 1024  # IOV_MAX, <limits.h>, Linux
# PyDLL: the call is so short that giving the interpreter lock away would cost more.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.pwritev.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_long]
_libc.pwritev.restype = ctypes.c_ssize_t


def address_of(buffer: memoryview) -> int:
    """Where a buffer lies in this process."""
    return int(np.frombuffer(buffer, np.uint8).ctypes.data) if buffer.nbytes else 0


def first_unreadable(address: int, offsets: Offsets, page_size: int) -> int | None:
    """The first page that cannot be read now, by its place in `offsets`; None if all can.

    Args:
        address: of the memory.
        offsets: int64, shape (n,), bytes from there.
        page_size: bytes.
    """
    per_page = max(page_size // mmap.PAGESIZE, 1)
    step = page_size // per_page
    places = offsets + address if per_page == 1 else (offsets[:, None] + (np.arange(per_page) * step + address)).ravel()
    for start in range(0, len(places), _MOST_PIECES):
        some = places[start : start + _MOST_PIECES]
        iov = np.ones((len(some), 2), np.int64)  # struct iovec: address, 1 byte
        iov[:, 0] = some
        done = _libc.pwritev(_sink(), iov.ctypes.data, len(some), 0)
        if done != len(some):
            return int(start + max(done, 0)) // per_page
    return None


@cache
def _sink() -> int:
    """A memfd that takes bytes that nobody looks at; for the process's life."""
    return os.memfd_create("multifd", os.MFD_CLOEXEC)
