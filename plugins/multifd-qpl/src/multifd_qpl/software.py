"""qpl's pages by ISA-L, one by one through the isal package: where the C code is missing, or has no ISA-L to use.

The streams are those of ``_isal.c``; a page costs 6.8 and 4.6 us where that takes 4.5 and 3.4 (as measured in
`multifd_qpl.isal_library`), and channels wait for one another.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from isal import igzip_lib

from multifd.method import RecvParams, SendParams
from multifd.pages import Geometry
from multifd_qpl.errors import TornDown
from multifd_qpl.inflate import inflate_page

_LEVEL = 0
"""One code for all streams; see `multifd_qpl.isal_library` for the other levels."""
_WINDOW_BITS = 12
"""QPL and the device keep 4 KiB of history: longer distances end in their status 217."""
_ANY_WINDOW_BITS = 15
"""A receiver takes what any raw deflate encoder may produce."""


class IsalEngine:
    """One channel and direction; a page costs one call, which releases the GIL.

    Args:
        geometry: the migration's.
    """

    def __init__(self, geometry: Geometry) -> None:
        self._page_size = geometry.page_size
        self._counters = dict.fromkeys(("software", "raw"), 0)

    def compress(self, p: SendParams) -> None:
        """Append the length table and a buffer for each page to ``p.iov``.

        Raises:
            TornDown: the migration was aborted.
        """
        pages = []
        for page in p.pages:
            if p.abort[0]:
                raise TornDown
            pages.append(self._deflate(page))
        lengths = [len(page) for page in pages]
        p.iov.append(struct.pack(f">{len(lengths)}I", *lengths))
        p.iov.extend(pages)
        self._count(lengths, p.counters)

    def _deflate(self, page: memoryview) -> bytes | memoryview:
        """The page's stream, or the page itself if that saves less than a quarter; ``_compress.c`` says why."""
        stream = igzip_lib.compress(page, _LEVEL, igzip_lib.COMP_DEFLATE, 0, _WINDOW_BITS)
        return stream if len(stream) <= self._page_size - self._page_size // 4 else page

    def decompress(self, lengths: Sequence[int], p: RecvParams) -> None:
        """Fill ``p.pages`` from what follows the length table in ``p.payload``.

        Raises:
            CodecError: a page's stream does not give exactly a page (see `multifd_qpl.inflate`).
            TornDown: the migration was aborted.
        """
        start, page_size = 4 * len(lengths), self._page_size
        for i, (length, page) in enumerate(zip(lengths, p.pages, strict=True)):
            if p.abort[0]:
                raise TornDown
            data = p.payload[start : start + length]
            page[:] = data if length == page_size else self._inflate(i, data)
            start += length
        self._count(lengths, p.counters)

    def _inflate(self, i: int, stream: memoryview) -> bytes:
        """Exactly a page. Of a stream without an end mark ISA-L does not always give the last byte."""
        inflater = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE, _ANY_WINDOW_BITS)
        try:
            page = inflater.decompress(stream, self._page_size + 1)
        except igzip_lib.error as e:  # type: ignore[misc]  # its stub has no base class
            return inflate_page(i, stream, self._page_size, str(e))
        is_page = inflater.eof and len(page) == self._page_size
        return page if is_page else inflate_page(i, stream, self._page_size)

    def _count(self, lengths: Sequence[int], counters: dict[str, int]) -> None:
        raw = sum(length == self._page_size for length in lengths)
        self._counters["raw"] += raw
        self._counters["software"] += len(lengths) - raw
        counters.update(self._counters)

    def native_send(self, p: SendParams) -> None:
        """There is none."""

    def native_recv(self, p: RecvParams) -> None:
        """There is none."""

    def close(self) -> None:
        """Nothing is held."""
