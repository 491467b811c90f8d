"""Memory that cannot be read is found before it is touched: which page, whatever the page size and the order."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest

from multifd.ram import probe

PAGE = mmap.PAGESIZE


@pytest.fixture
def memory():
    return mmap.mmap(-1, 64 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def protect(memory: mmap.mmap, page: int, how: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(address + page * PAGE), ctypes.c_size_t(PAGE), how) == 0
    return address


@pytest.mark.parametrize("page_size", [PAGE, 4 * PAGE])
@pytest.mark.parametrize("order", [1, -1])
def test_the_page_is_named(memory, page_size, order):
    address = protect(memory, 21, 0)
    offsets = np.arange(0, 64 * PAGE, page_size, dtype=np.int64)[::order]
    bad = probe.first_unreadable(address, offsets, page_size)
    assert offsets[bad] == 21 * PAGE // page_size * page_size
    assert probe.first_unreadable(address, offsets[offsets != offsets[bad]], page_size) is None
    protect(memory, 21, mmap.PROT_READ)
    assert probe.first_unreadable(address, offsets, page_size) is None


def test_more_pages_than_one_system_call_takes():
    memory = mmap.mmap(-1, 3000 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    offsets = np.arange(3000, dtype=np.int64) * PAGE
    address = protect(memory, 2500, 0)
    assert probe.first_unreadable(address, offsets, PAGE) == 2500
    assert probe.first_unreadable(address, offsets[:2500], PAGE) is None
    assert probe.first_unreadable(address, offsets[:0], PAGE) is None
