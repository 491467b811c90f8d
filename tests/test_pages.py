"""Pages of a packet: order, runs, copies, zero pages; against loops that are plainly right."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifd.pages import Memory, Pages

PAGE = 4096
COUNT = 12
INDEXES = st.lists(st.integers(0, COUNT - 1), unique=True, max_size=COUNT)


def content() -> bytearray:
    """Each page its own bytes; some are zero, some only nearly."""
    ram = bytearray(b"".join(bytes([i + 1]) * PAGE for i in range(COUNT)))
    for zero in (2, 3, 7):
        ram[zero * PAGE : (zero + 1) * PAGE] = bytes(PAGE)
    ram[5 * PAGE : 6 * PAGE] = bytes(PAGE - 1) + b"\1"
    ram[8 * PAGE : 9 * PAGE] = bytes(8) + b"\1" + bytes(PAGE - 9)
    return ram


def pages_of(ram: bytearray, indexes: list[int], *, is_private: bool = False) -> Pages:
    scratch = Memory(bytearray(COUNT * PAGE), PAGE)
    return Pages(Memory(ram, PAGE), np.array(indexes, np.int64) * PAGE, scratch, is_private=is_private)


def plain(ram: bytearray, indexes: list[int]) -> list[bytes]:
    return [bytes(ram[i * PAGE : (i + 1) * PAGE]) for i in indexes]


@given(INDEXES)
def test_views(indexes: list[int]) -> None:
    ram = content()
    pages = pages_of(ram, indexes)
    want = plain(ram, indexes)
    assert (len(pages), pages.nbytes) == (len(indexes), len(indexes) * PAGE)
    assert [bytes(p) for p in pages] == want
    assert b"".join(pages.runs()) == b"".join(want)
    breaks = sum(b != a + 1 for a, b in pairwise(indexes))
    assert len(pages.runs()) == (breaks + 1 if indexes else 0)


@pytest.mark.parametrize("is_private", [False, True])
@given(indexes=INDEXES.filter(bool))
def test_gather(is_private: bool, indexes: list[int]) -> None:
    ram = content()
    pages = pages_of(ram, indexes, is_private=is_private)
    assert bytes(pages.gather()) == b"".join(plain(ram, indexes))


@given(INDEXES.filter(bool))
def test_gather_is_a_copy_of_a_guests_memory(indexes: list[int]) -> None:
    ram = content()
    got, want = pages_of(ram, indexes).gather(), b"".join(plain(ram, indexes))
    ram[:] = b"\xff" * len(ram)
    assert bytes(got) == want


@given(INDEXES.filter(bool))
def test_scatter(indexes: list[int]) -> None:
    ram = content()
    before, data = bytes(ram), np.random.default_rng(1).bytes(len(indexes) * PAGE)
    pages_of(ram, indexes).scatter(data)
    for i in range(COUNT):
        at = indexes.index(i) * PAGE if i in indexes else -1
        want = data[at : at + PAGE] if at >= 0 else before[i * PAGE : (i + 1) * PAGE]
        assert ram[i * PAGE : (i + 1) * PAGE] == want


@given(INDEXES.filter(bool))
def test_zero_mask(indexes: list[int]) -> None:
    ram = content()
    mask = pages_of(ram, indexes).zero_mask()
    want = [not any(p) for p in plain(ram, indexes)]
    assert (mask.tolist() if mask is not None else [False] * len(indexes)) == want
    assert (mask is None) == (not any(want))


@given(INDEXES.filter(bool), st.data())
def test_select(indexes: list[int], data: st.DataObject) -> None:
    mask = data.draw(st.lists(st.booleans(), min_size=len(indexes), max_size=len(indexes)))
    ram = content()
    chosen = pages_of(ram, indexes).select(np.array(mask, np.bool_))
    assert [bytes(p) for p in chosen] == plain(ram, [i for i, m in zip(indexes, mask, strict=True) if m])


def test_scratch_is_private() -> None:
    ram = content()
    pages, before = pages_of(ram, [1, 4]), bytes(ram)
    pages.scratch()[:] = b"\xee" * (2 * PAGE)
    assert bytes(ram) == before


@pytest.mark.parametrize("nbytes", [1, PAGE - 8, PAGE + 8])
def test_memory_is_whole_pages(nbytes: int) -> None:
    with pytest.raises(ValueError):
        Memory(bytearray(nbytes), PAGE)
