"""Page ranges against sets of page numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifd.live.ranges import NO_RANGES, coarsen, complement, count, of_mask, packets, to_mask, union, whole

sets = st.sets(st.integers(0, 300))


def pages_of(ranges):
    assert ranges.dtype == np.int64
    assert ranges.shape == (len(ranges), 2)
    assert (ranges[:, 0] < ranges[:, 1]).all()
    assert (ranges[1:, 0] > ranges[:-1, 1]).all(), "sorted and apart"
    return {page for first, end in ranges.tolist() for page in range(first, end)}


def ranges_of(pages):
    mask = np.zeros(301, np.bool_)
    mask[list(pages)] = True
    return of_mask(mask)


@given(sets)
def test_of_mask_and_count(pages):
    ranges = ranges_of(pages)
    assert pages_of(ranges) == pages
    assert count(ranges) == len(pages)
    assert np.flatnonzero(to_mask(ranges, 301)).tolist() == sorted(pages)


@given(sets, sets, sets)
def test_union(a, b, c):
    assert pages_of(union(ranges_of(a), ranges_of(b), ranges_of(c))) == a | b | c


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=20))
def test_union_puts_overlapping_ranges_in_order(pairs):
    ranges = np.array([[first, first + length] for first, length in pairs], np.int64).reshape(-1, 2)
    expected = {page for first, length in pairs for page in range(first, first + length)}
    assert pages_of(union(ranges)) == expected


@given(sets)
def test_complement(pages):
    assert pages_of(complement(ranges_of(pages), 301)) == set(range(301)) - pages


@given(sets, st.sampled_from([1, 2, 4, 16]))
def test_coarsen(pages, factor):
    assert pages_of(coarsen(ranges_of(pages), factor)) == {page // factor for page in pages}


@given(sets, st.integers(1, 128))
def test_packets(pages, size):
    made = list(packets(ranges_of(pages), size))
    assert [p for packet in made for p in packet.tolist()] == sorted(pages)
    assert all(len(packet) == size for packet in made[:-1])


@pytest.mark.parametrize("size", [8, 100, 128])
def test_packets_of_more_than_a_batch(size):
    ranges = np.array([[i * 1000, i * 1000 + 500] for i in range(400)], np.int64)
    joined = np.concatenate(list(packets(ranges, size)))
    assert np.array_equal(joined, np.concatenate([np.arange(a, b) for a, b in ranges]))


def test_whole_and_nothing():
    assert pages_of(whole(5)) == {0, 1, 2, 3, 4}
    assert count(whole(0)) == count(NO_RANGES) == 0
    assert list(packets(NO_RANGES, 128)) == []
