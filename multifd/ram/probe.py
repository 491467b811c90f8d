"""Whether memory can be read, or written, asked of the kernel right before this process touches it.

A guard page, a page that was protected, a page of a map beyond its file's end: a thread that touches one is killed by a
signal, which Python cannot handle. The kernel says so by an error instead, if it is given a byte of every page to write
into a memfd, or to write one from there. What is asked and what is touched are two steps, microseconds apart: memory
that loses pages in just that moment still kills.

Measured on Linux 6.18, AMD EPYC: 7 us for the 128 pages of a packet (21 by MADV_POPULATE_READ, 43 for a copy of all
their bytes through a pipe, 62 by process_vm_readv; looking at them for zeros takes 3).

Thread rule: any thread.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from multifd.errors import RamError
from multifd.pages import Offsets
from multifd.pump.library import open_sink

_MOST_PIECES = 1024  # IOV_MAX, <limits.h>, Linux
# PyDLL: the call is so short that giving the interpreter lock away would cost more.
_libc = ctypes.PyDLL(None, use_errno=True)
for _call in (_libc.pwritev, _libc.preadv):
    _call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_long]
    _call.restype = ctypes.c_ssize_t
_sink = cache(open_sink)
"""For the process's life; what is in it, nobody looks at."""


def address_of(buffer: memoryview) -> int:
    """Where a buffer lies in this process."""
    return int(np.frombuffer(buffer, np.uint8).ctypes.data) if buffer.nbytes else 0


def first_unreadable(address: int, offsets: Offsets, page_size: int) -> int | None:
    """The first page that cannot be read now, by its place in `offsets`; None if all can.

    Args:
        address: of the memory.
        offsets: int64, shape (n,), bytes from there.
        page_size: bytes.

    Raises:
        RamError: the kernel cannot be asked.
    """
    return _first_refused(_libc.pwritev, address, offsets, page_size)


def first_unwritable(address: int, offsets: Offsets, page_size: int) -> int | None:
    """The first page that cannot be written now; otherwise as `first_unreadable`.

    A byte of each page is something else afterwards: it is for pages that are to be written whole.
    """
    return _first_refused(_libc.preadv, address, offsets, page_size)


def _first_refused(call: Callable[..., Any], address: int, offsets: Offsets, page_size: int) -> int | None:
    per_page = max(page_size // mmap.PAGESIZE, 1)
    step = page_size // per_page
    places = offsets + address if per_page == 1 else (offsets[:, None] + (np.arange(per_page) * step + address)).ravel()
    for start in range(0, len(places), _MOST_PIECES):
        some = places[start : start + _MOST_PIECES]
        iov = np.ones((len(some), 2), np.int64)  # struct iovec: address, 1 byte
        iov[:, 0] = some
        done = call(_sink(), iov.ctypes.data, len(some), 0)
        if done < 0 and ctypes.get_errno() != errno.EFAULT:
            raise RamError(f"the kernel cannot be asked whether memory is there: {os.strerror(ctypes.get_errno())}")
        if done != len(some):
            return int(start + max(done, 0)) // per_page
    return None
