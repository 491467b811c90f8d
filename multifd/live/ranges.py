"""Page ranges: int64 arrays of shape (k, 2), [first, end) page numbers, sorted, apart from each other.

Rules of this file: nothing loops over pages or ranges in Python; 16 million pages are an ordinary input.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Ranges = npt.NDArray[np.int64]
NO_RANGES: Ranges = np.empty((0, 2), np.int64)
_BATCH = 1 << 16
"""Pages that `packets` spells out at once: half a megabyte of numbers."""


def whole(pages: int) -> Ranges:
    """All of `pages` pages."""
    return np.array([[0, pages]], np.int64) if pages else NO_RANGES


def count(ranges: Ranges) -> int:
    """How many pages there are in `ranges`."""
    return int((ranges[:, 1] - ranges[:, 0]).sum())


def union(*several: Ranges) -> Ranges:
    """The pages that are in any of them; also puts one in order."""
    joined = np.concatenate(several)
    if len(joined) < 2:
        return joined
    joined = joined[np.argsort(joined[:, 0], kind="stable")]
    reach = np.maximum.accumulate(joined[:, 1])
    is_first = np.concatenate(([True], joined[1:, 0] > reach[:-1]))
    is_last = np.concatenate((is_first[1:], [True]))
    return np.stack((joined[is_first, 0], reach[is_last]), axis=1)


def complement(ranges: Ranges, pages: int) -> Ranges:
    """Those of `pages` pages that are not in `ranges`."""
    edges = np.concatenate(([0], ranges.ravel(), [pages])).reshape(-1, 2)
    return edges[edges[:, 0] < edges[:, 1]]


def of_mask(mask: npt.NDArray[np.bool_]) -> Ranges:
    """The ranges in which `mask`, a bool for each page, is true."""
    edges = np.flatnonzero(np.diff(mask, prepend=np.False_, append=np.False_))
    return edges.reshape(-1, 2).astype(np.int64)


def to_mask(ranges: Ranges, pages: int) -> npt.NDArray[np.bool_]:
    """A bool for each of `pages` pages: whether it is in `ranges`."""
    edges = np.zeros(pages + 1, np.int8)
    edges[ranges[:, 0]] += 1
    edges[ranges[:, 1]] -= 1
    return np.cumsum(edges[:-1], dtype=np.int8).astype(np.bool_)


def coarsen(ranges: Ranges, factor: int) -> Ranges:
    """The same in pages that are `factor` times as large; a page counts if any part of it did."""
    if factor == 1:
        return ranges
    return union(np.stack((ranges[:, 0] // factor, -(-ranges[:, 1] // factor)), axis=1))


def packets(ranges: Ranges, pages_per_packet: int) -> Iterator[npt.NDArray[np.int64]]:
    """The page numbers in `ranges`, in order, as many at a time as a packet holds."""
    lengths = ranges[:, 1] - ranges[:, 0]
    ends = np.cumsum(lengths)
    # The page number of the n-th page is n plus what its range is shifted by.
    shifts = ranges[:, 0] - (ends - lengths)
    total = int(ends[-1]) if len(ends) else 0
    step = _BATCH - _BATCH % pages_per_packet
    for start in range(0, total, step):
        numbers = np.arange(start, min(start + step, total))
        pages = numbers + shifts[np.searchsorted(ends, numbers, side="right")]
        for i in range(0, len(pages), pages_per_packet):
            yield pages[i : i + pages_per_packet]
