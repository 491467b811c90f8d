"""Memory that may not be touched: what the kernel copies is right, and what it cannot copy is an error."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multifd.errors import RamError
from multifd.pages import Geometry
from multifd.ram import kernel_copy
from multifd.ram.block import Staging
from multifd.ram.kernel_copy import Untouchable, address_of, first_words, one_piece, pieces
from multifd.ram.memory import MemoryBlock

PAGE = 4096
PAGES = 64
BAD = 20
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mprotect.argtypes = LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
MADV_GUARD_INSTALL = 102  # include/uapi/asm-generic/mman-common.h, Linux 6.13


def offsets(*indexes: int) -> np.ndarray:
    return np.array(indexes, np.int64) * PAGE


@pytest.fixture
def staging() -> Staging:
    return Staging(Geometry.of(PAGE))


@pytest.fixture(params=["pipe", "direct", "through a memfd"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way that bytes can go; a seccomp profile may leave only the last."""
    monkeypatch.setattr(kernel_copy._Through, "is_needed", request.param == "through a memfd")
    if request.param == "pipe":
        assert kernel_copy._mine().pipe is not None
    else:
        monkeypatch.setattr(kernel_copy._mine(), "pipe", None)
    return str(request.param)


def full_map() -> mmap.mmap:
    memory = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = b"".join(bytes([i + 1]) * PAGE for i in range(PAGES))
    return memory


@pytest.fixture(params=["none", "guard", "eof"])
def spoiled(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[mmap.mmap]:
    """Memory whose page `BAD` would kill who touches it."""
    if request.param == "eof":
        with (tmp_path / "f").open("w+b") as file:
            file.write(full_map()[:])
            file.flush()
            memory = mmap.mmap(file.fileno(), PAGES * PAGE)
            file.truncate(BAD * PAGE)
        yield memory
        return
    memory = full_map()
    place = address_of(memoryview(memory)) + BAD * PAGE
    if request.param == "none":
        assert LIBC.mprotect(place, PAGE, 0) == 0
    elif LIBC.madvise(place, PAGE, MADV_GUARD_INSTALL) != 0:
        pytest.skip("this kernel has no guard pages")
    yield memory


def test_copies_are_exact(way: str, staging: Staging) -> None:
    memory = full_map()
    block = MemoryBlock("ram", memory, PAGE)
    for indexes in ([0], list(range(PAGES)), [63, 0, 5, 6, 7, 40]):
        pages = block.load(offsets(*indexes), staging)
        assert pages is not None
        assert b"".join(pages) == b"".join(memory[i * PAGE : (i + 1) * PAGE] for i in indexes)
        words = first_words(address_of(memoryview(memory)), offsets(*indexes))
        assert [int(word) & 0xFF for word in words] == [i + 1 for i in indexes]
    target = MemoryBlock("ram", into := bytearray(PAGES * PAGE), PAGE)
    for indexes in ([3], [9, 8, 7], [40, 2, 41, 60]):
        target.place(offsets(*indexes), staging).scatter(b"".join(bytes([i]) * PAGE for i in indexes))
        target.store(offsets(*indexes), staging)
        for i in indexes:
            assert into[i * PAGE : (i + 1) * PAGE] == bytes([i]) * PAGE
    target.clear(offsets(8, 9, 3, 50))
    assert [i for i in range(PAGES) if any(into[i * PAGE : (i + 1) * PAGE])] == [2, 7, 40, 41, 60]


def test_zero_pages_are_found(way: str, staging: Staging) -> None:
    memory = full_map()
    memory[3 * PAGE : 4 * PAGE] = bytes(PAGE)
    memory[5 * PAGE : 6 * PAGE] = bytes(PAGE - 1) + b"x"  # zero but for its last byte
    block = MemoryBlock("ram", memory, PAGE)
    mapped = block.map(offsets(2, 3, 4, 5), staging)
    assert mapped is not None
    assert mapped.zero_mask is not None
    assert mapped.zero_mask.tolist() == [False, True, False, False]
    assert [len(view) for view in mapped.views] == [PAGE, 2 * PAGE]
    mapped = block.map(offsets(4, 5), staging)
    assert mapped is not None
    assert mapped.zero_mask is None
    assert len(mapped.views) == 1


def test_a_page_that_cannot_be_touched_is_named(way: str, spoiled: mmap.mmap, staging: Staging) -> None:
    block = MemoryBlock("pc.ram", spoiled, PAGE)
    for call in (
        lambda: block.load(offsets(BAD - 1, BAD), staging),
        lambda: block.load(offsets(1, 5, BAD), staging),
        lambda: block.map(offsets(BAD - 1, BAD), staging),
        lambda: block.store(offsets(BAD - 1, BAD), staging),
        lambda: block.clear(offsets(1, BAD)),
    ):
        with pytest.raises(RamError, match=r"block 'pc\.ram': the page at 0x14000 cannot be (read|written)"):
            call()
    pages = block.load(offsets(BAD - 2, BAD - 1), staging)  # the others still can
    assert pages is not None


def test_what_was_copied_before_is_counted(way: str, spoiled: mmap.mmap) -> None:
    address, into = address_of(memoryview(spoiled)), bytearray(PAGES * PAGE)
    mine = one_piece(address_of(memoryview(into)), len(into))
    with pytest.raises(Untouchable) as caught:
        kernel_copy.read(one_piece(address, PAGES * PAGE), mine)
    assert caught.value.done <= BAD * PAGE
    if way != "through a memfd":
        assert caught.value.done == BAD * PAGE


def test_pieces() -> None:
    assert pieces(1000, offsets(4, 5, 6), PAGE).tolist() == [[1000 + 4 * PAGE, 3 * PAGE]]
    assert pieces(1000, offsets(6), PAGE).tolist() == [[1000 + 6 * PAGE, PAGE]]
    assert pieces(0, offsets(6, 5), PAGE).tolist() == [[6 * PAGE, PAGE], [5 * PAGE, PAGE]]


@pytest.mark.parametrize("code", kernel_copy._FORBIDDEN)
def test_where_the_call_is_forbidden(monkeypatch: pytest.MonkeyPatch, staging: Staging, code: int) -> None:
    """A seccomp profile answers it with an error: the other way is taken from then on."""
    monkeypatch.setattr(kernel_copy._Through, "is_needed", False)
    monkeypatch.setattr(kernel_copy._mine(), "pipe", None)

    class Forbidden:
        pwritev, preadv = kernel_copy._libc.pwritev, kernel_copy._libc.preadv

        @staticmethod
        def process_vm_readv(*args: Any) -> int:
            ctypes.set_errno(code)
            return -1

    monkeypatch.setattr(kernel_copy, "_libc", Forbidden)
    pages = MemoryBlock("ram", full_map(), PAGE).load(offsets(7), staging)
    assert pages is not None
    assert b"".join(pages) == bytes([8]) * PAGE
    assert kernel_copy._Through.is_needed


def test_a_forked_child_has_buffers_of_its_own(staging: Staging) -> None:
    """Neither the staging buffers nor the memfd are shared: what a child writes is not seen here."""
    staging.data.view[:4] = staging.scratch.view[:4] = b"ours"
    first_words(address_of(memoryview(memory := full_map())), offsets(0))
    before = kernel_copy._mine()
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        staging.data.view[:4] = staging.scratch.view[:4] = b"them"
        os.write(writer, b"own" if kernel_copy._mine() is not before else b"same")
        os._exit(0)
    assert select.select([reader], [], [], 30)[0]
    assert os.read(reader, 4) == b"own"
    os.waitpid(pid, 0)
    assert bytes(staging.data.view[:4]) == bytes(staging.scratch.view[:4]) == b"ours"
    os.close(reader)
    os.close(writer)
    assert memory[0] == 1
