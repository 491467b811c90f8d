"""Which streams are a page: one rule for all engines.

A stream is a page if it is raw deflate that gives exactly a page, with any distance that RFC 1951 allows. Whether
the end mark is there, and what stands behind it, is not looked at: libqpl's software path reports neither (it
takes up to eight bytes behind the end mark for its own), and so QEMU's qpl does not, either. What an engine does
not decode to exactly a page, or does not read to the end, is decoded again by `inflate_page`, whose word is final.
"""

from __future__ import annotations

import zlib

from multifd.method import CodecError

_ANY_WINDOW_BITS = 15


def inflate_page(index: int, stream: memoryview, page_size: int, first_answer: str = "") -> bytes:
    """A page by zlib.

    Args:
        index: of the page in its packet, for the error.
        stream: the page's bytes on the wire.
        page_size: bytes of a page.
        first_answer: what the engine said of it, for the error.

    Raises:
        CodecError: the stream does not give exactly a page.
    """
    inflater = zlib.decompressobj(-_ANY_WINDOW_BITS)
    try:
        page = inflater.decompress(stream, page_size + 1)
    except zlib.error as e:
        raise CodecError(f"page {index}: {len(stream)} bytes that do not inflate: {first_answer or e}") from None
    if len(page) != page_size:
        length = f"more than {page_size}" if len(page) > page_size else f"{len(page)}"
        raise CodecError(f"page {index}: {len(stream)} bytes inflate to {length} bytes, expected {page_size}")
    return page
