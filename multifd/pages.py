"""The pages of one packet: where they lie in memory, in wire order.

Rules of this file: offsets are validated before a `Pages` is made, so nothing here checks them
again; nothing loops over pages in Python except `Pages.__iter__` and `Pages.runs`; a copy is
made only by `gather` and `scatter`, with numpy, which releases the GIL.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Buffer = bytes | bytearray | memoryview
Offsets = npt.NDArray[np.int64]

PACKET_BYTES = 512 * 1024
"""The most page bytes in a packet: MULTIFD_PACKET_SIZE, migration/multifd.h, QEMU 4.0 to 10.0."""


def flat(buffer: Buffer) -> Buffer:
    """A buffer as bytes in one dimension, without a copy: what has another shape or format is seen as its bytes.

    Raises:
        TypeError: it is no buffer.
        ValueError: it is not C-contiguous.
    """
    if isinstance(buffer, bytes | bytearray):
        return buffer
    view = memoryview(buffer)
    if view.ndim == 1 and view.itemsize == 1 and view.c_contiguous:
        return view
    if not view.c_contiguous:
        raise ValueError(f"a buffer of shape {view.shape} with strides {view.strides} is not contiguous")
    # `cast` refuses many formats, and zeros in the shape.
    return np.frombuffer(view, np.uint8).data if view.nbytes else b""


@dataclass(frozen=True)
class Geometry:
    """The shape of a packet, the same for a whole migration."""

    page_size: int
    """Bytes of a target page: a power of two from 4096 to 65536."""
    page_count: int
    """The most pages in a packet: `PACKET_BYTES` / page_size."""

    @classmethod
    def of(cls, page_size: int) -> Self:
        """The geometry that QEMU gives this page size."""
        return cls(page_size, PACKET_BYTES // page_size)


class Memory:
    """A buffer seen as pages, shared by every `Pages` that lies in it.

    Args:
        buffer: any C-contiguous buffer, a multiple of `page_size` long. It stays the caller's and
            must outlive this object; it is written only if it is writable and asked to be.
        page_size: bytes of a page.
    """

    __slots__ = ("array", "page_size", "view", "words")

    def __init__(self, buffer: memoryview | bytearray | bytes, page_size: int) -> None:
        self.view = memoryview(buffer).cast("B")
        self.page_size = page_size
        self.array = np.frombuffer(self.view, np.uint8).reshape(-1, page_size)
        self.words = np.frombuffer(self.view, np.uint64).reshape(-1, page_size // 8)


def runs(memory: Memory, offsets: Offsets) -> list[memoryview]:
    """Pages as few memoryviews as possible: neighbours coalesced, their order kept.

    Args:
        memory: where they lie.
        offsets: int64, shape (n,), bytes from its start, each a multiple of the page size.
    """
    if not len(offsets):
        return []
    view, page_size = memory.view, memory.page_size
    first, last = int(offsets[0]), int(offsets[-1])
    steps = offsets[1:] - offsets[:-1]
    if np.count_nonzero(steps == page_size) == len(steps):
        return [view[first : last + page_size]]
    breaks = (steps != page_size).nonzero()[0]
    starts = [first, *offsets[breaks + 1].tolist()]
    ends = [*offsets[breaks].tolist(), last]
    return [view[a : b + page_size] for a, b in zip(starts, ends, strict=True)]


class Pages:
    """Up to one packet's pages, in wire order.

    Args:
        memory: what the offsets count in.
        offsets: int64, shape (n,), bytes from the start of `memory`, each a multiple of the page
            size; kept, not copied.
        scratch: at least n pages, private to the channel, where `gather` puts its copy.
        is_private: nobody else writes to `memory` during the call, so `gather` need not copy
            pages that lie in one run.
        runs: what `runs` gives, if the maker knows.
    """

    __slots__ = ("_is_private", "_memory", "_runs", "_scratch", "offsets", "page_size")

    def __init__(
        self,
        memory: Memory,
        offsets: Offsets,
        scratch: Memory,
        *,
        is_private: bool = False,
        runs: list[memoryview] | None = None,
    ) -> None:
        self._memory, self.offsets, self._scratch = memory, offsets, scratch
        self._is_private, self._runs = is_private, runs
        self.page_size = memory.page_size

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages together."""
        return len(self.offsets) * self.page_size

    def __iter__(self) -> Iterator[memoryview]:
        """A memoryview for each page; writable at the receiver. Valid until the hook returns."""
        view, page_size = self._memory.view, self.page_size
        for offset in self.offsets.tolist():
            yield view[offset : offset + page_size]

    def runs(self) -> list[memoryview]:
        """The pages as few memoryviews as possible: neighbours coalesced, wire order kept."""
        if self._runs is None:
            self._runs = runs(self._memory, self.offsets)
        return self._runs

    def gather(self) -> memoryview:
        """The pages in one piece that no one else writes to, valid until the hook returns.

        A copy in the channel's scratch buffer, unless the pages already are private and in one
        piece. What a codec looks back into must come from here: a live guest writes to its pages.
        """
        runs = self.runs()
        if self._is_private and len(runs) == 1:
            return runs[0]
        n = len(self)
        target = self._scratch.array[:n]
        if len(runs) == 1:
            first = int(self.offsets[0]) // self.page_size
            np.copyto(target, self._memory.array[first : first + n])
        else:
            # mode="clip" writes straight into `out`; the default would buffer it.
            np.take(self._memory.array, self.offsets // self.page_size, axis=0, out=target, mode="clip")
        return self._scratch.view[: self.nbytes]

    def scatter(self, buffer: bytes | bytearray | memoryview) -> None:
        """Copy `buffer`, exactly the pages' bytes in wire order, into the pages."""
        data = np.frombuffer(buffer, np.uint8).reshape(len(self), self.page_size)
        if len(self.runs()) == 1:
            first = int(self.offsets[0]) // self.page_size
            np.copyto(self._memory.array[first : first + len(self)], data)
        else:
            self._memory.array[self.offsets // self.page_size] = data

    def scratch(self) -> memoryview:
        """A writable buffer of the pages' bytes, private to the channel, valid until return.

        For decoding into one piece before `scatter`; `gather` of the same packet overwrites it.
        """
        return self._scratch.view[: self.nbytes]

    def zero_mask(self) -> npt.NDArray[np.bool_] | None:
        """bool, shape (n,): which pages hold nothing but zero bytes; None if none does.

        Most pages that are not zero show it in their first word; only the others are read whole
        (measured: 4 us instead of 58 for a packet without zero pages).
        """
        words = self._memory.words
        if len(self.runs()) == 1:
            # A slice: numpy gives the GIL away for a selection, even a small one.
            first = int(self.offsets[0]) // self.page_size
            heads = words[first : first + len(self), 0]
        else:
            heads = words[self.offsets // self.page_size, 0]
        if np.count_nonzero(heads) == len(self):
            return None
        mask: npt.NDArray[np.bool_] = heads == 0
        suspects = mask.nonzero()[0]
        chosen = self.offsets[suspects] // self.page_size
        if (chosen[1:] - chosen[:-1] == 1).all():  # neighbours: no copy
            mask[suspects] = ~words[chosen[0] : chosen[-1] + 1].any(axis=1)
        else:
            mask[suspects] = ~words[chosen].any(axis=1)
        return mask if mask.any() else None

    def select(self, mask: npt.NDArray[np.bool_]) -> Pages:
        """The pages for which `mask` is true, in the same order."""
        return Pages(self._memory, self.offsets[mask], self._scratch, is_private=self._is_private)
