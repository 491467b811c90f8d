"""A set of page numbers of a block: one bit a page, and no memory where nothing was ever put in.

A sender may announce a block of any length; what is kept for each page is only allocated where pages arrive.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_PIECE_SHIFT = 18
_PIECE_PAGES = 1 << _PIECE_SHIFT
"""Pages whose bits are allocated together: 32 KiB, for 1 GiB of pages of 4 KiB."""
Bits = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]


class PageSet:
    """Which pages are in; bit i%8 of byte i//8 of a piece is its page i, as in QEMU's mapped-ram bitmap.

    Thread rule: any thread. Two pages share a byte, so a lock makes each change whole.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: dict[int, Bits] = {}

    def add_run(self, first: int, end: int) -> None:
        """Put pages `first` to `end` - 1 in."""
        with self._lock:
            while first < end:
                number = first // _PIECE_PAGES
                start = number * _PIECE_PAGES
                stop = min(end, start + _PIECE_PAGES)
                _fill(self._piece(number), first - start, stop - start)
                first = stop

    def add(self, pages: Numbers) -> None:
        """Put `pages` in, in any order."""
        with self._lock:
            for number, inside in self._split(pages):
                np.bitwise_or.at(self._piece(number), inside >> 3, _bit(inside))

    def remove(self, pages: Numbers) -> None:
        """Take `pages` out; those that are not in may be among them."""
        with self._lock:
            for number, inside in self._split(pages):
                if (piece := self._pieces.get(number)) is not None:
                    np.bitwise_and.at(piece, inside >> 3, ~_bit(inside))

    def select(self, pages: Numbers) -> Numbers:
        """Those of `pages` that are in."""
        if not self._pieces:
            return np.empty(0, np.int64)
        found = []
        with self._lock:
            for number, inside in self._split(pages):
                if (piece := self._pieces.get(number)) is not None:
                    chosen = inside[piece[inside >> 3] & _bit(inside) != 0]
                    found.append(chosen + number * _PIECE_PAGES)
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def pieces(self) -> Iterator[tuple[int, Bits]]:
        """(number of the first page, its and the following pages' bits) for each piece that has any, in order."""
        with self._lock:
            numbers = sorted(self._pieces)
        for number in numbers:
            yield number * _PIECE_PAGES, self._pieces[number]

    def _piece(self, number: int) -> Bits:
        piece = self._pieces.get(number)
        if piece is None:
            piece = self._pieces[number] = np.zeros(_PIECE_PAGES // 8, np.uint8)
        return piece

    @staticmethod
    def _split(pages: Numbers) -> Iterator[tuple[int, Numbers]]:
        """(number of the piece, page numbers in it) for each piece that `pages` reach into."""
        if not len(pages):
            return
        numbers = pages >> _PIECE_SHIFT
        first = int(numbers[0])
        if np.count_nonzero(numbers == first) == len(numbers):
            yield first, pages - (first << _PIECE_SHIFT)
            return
        for number in np.unique(numbers).tolist():
            yield number, pages[numbers == number] - number * _PIECE_PAGES


def _fill(bits: Bits, first: int, end: int) -> None:
    """Set bits `first` to `end` - 1: whole bytes at once, and what is left of a byte at either end."""
    low, high = first >> 3, end >> 3
    after_first, before_end = 0xFF << (first & 7) & 0xFF, 0xFF >> (8 - (end & 7))
    if low == high:
        bits[low] |= after_first & before_end
        return
    bits[low] |= after_first
    bits[low + 1 : high] = 0xFF
    if before_end:
        bits[high] |= before_end


def _bit(pages: Numbers) -> Bits:
    return np.left_shift(np.uint8(1), (pages & 7).astype(np.uint8))
