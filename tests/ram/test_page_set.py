"""A set of page numbers: what is in, and that memory is taken only where something was put in."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifd.ram.page_set import _PIECE_PAGES, PageSet

NUMBERS = st.integers(0, 2 * _PIECE_PAGES + 50) | st.integers(_PIECE_PAGES - 20, _PIECE_PAGES + 20) | st.integers(0, 40)
CHANGES = st.one_of(
    st.tuples(st.just("add"), st.lists(NUMBERS, max_size=20)),
    st.tuples(st.just("remove"), st.lists(NUMBERS, max_size=20)),
    st.tuples(st.just("add_run"), st.tuples(NUMBERS, st.integers(0, 300))),
)


def array(numbers: list[int]) -> np.ndarray:
    return np.array(numbers, np.int64)


@given(st.lists(CHANGES, max_size=8))
def test_it_is_a_set(changes: list) -> None:
    pages, model = PageSet(), set()
    asked = {0, _PIECE_PAGES - 1, _PIECE_PAGES}
    for what, numbers in changes:
        if what == "add_run":
            first, count = numbers
            pages.add_run(first, first + count)
            model |= set(range(first, first + count))
            asked |= {first, first + count, max(first - 1, 0), max(first + count - 1, 0)}
        else:
            getattr(pages, what)(array(numbers))
            model = model | set(numbers) if what == "add" else model - set(numbers)
            asked |= set(numbers)
    assert set(pages.select(array(sorted(asked))).tolist()) == asked & model
    listed = {
        first + int(i) for first, bits in pages.pieces() for i in np.flatnonzero(np.unpackbits(bits, bitorder="little"))
    }
    assert listed == model


def test_a_huge_block_takes_memory_only_where_pages_arrive() -> None:
    tracemalloc.start()
    try:
        pages = PageSet()
        pages.remove(array([1 << 38]))
        assert not len(pages.select(array([0, 1 << 38])))
        pages.add_run((1 << 38) - 1, (1 << 38) + 1)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert pages.select(array([1 << 38, 5])).tolist() == [1 << 38]


def test_neighbours_of_one_byte_from_several_threads() -> None:
    """No page is lost because two threads change the same byte."""
    pages, start = PageSet(), threading.Barrier(4)

    def work(mine: int) -> None:
        start.wait(30)
        for page in range(mine, 8000, 4):
            pages.add_run(page, page + 1)
            pages.add(array([page + 8000]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(pages.select(np.arange(16000, dtype=np.int64))) == 16000


@pytest.mark.parametrize("order", [1, -1])
def test_select_of_several_pieces_is_complete(order: int) -> None:
    pages = PageSet()
    numbers = array([3, _PIECE_PAGES + 3, 5 * _PIECE_PAGES])[::order]
    pages.add(numbers)
    assert sorted(pages.select(numbers).tolist()) == sorted(numbers.tolist())
