"""lz4 for multifd: each page is an lz4 block of its own, or itself if that is not smaller.

Payload, wire version 1: a big-endian u32 length for each page, then the pages' bytes in the same order.
A length equal to the page size is the page as it is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import lz4.block

from multifd.method import (
    PACKET_BYTES,
    Availability,
    Capabilities,
    CodecError,
    MethodOptions,
    MultifdMethods,
    RecvParams,
    SendParams,
    option,
)

_LENGTH_BYTES = 4
_MOST_PAGES = PACKET_BYTES // 4096


@dataclass(frozen=True)
class Lz4Options(MethodOptions):
    """Options of lz4."""

    # 65537 is LZ4_ACCELERATION_MAX, lib/lz4.c of lz4 1.9.4; the library clamps silently.
    acceleration: int = option(1, "each step is faster and compresses less", low=1, high=65537)


class Lz4Method(MultifdMethods):
    """Pages as independent lz4 blocks; no state, so channels have nothing to share."""

    name = "lz4"
    api = 1
    wire_version = 1
    capabilities = Capabilities(
        streaming=False,
        page_independent=True,
        deterministic=True,
        max_payload=PACKET_BYTES + _LENGTH_BYTES * _MOST_PAGES,
    )
    Options = Lz4Options
    options: Lz4Options

    @classmethod
    def availability(cls, options: MethodOptions) -> Availability:
        """Everywhere: this module does not import without the library."""
        return Availability(True, f"liblz4 {lz4.library_version_string()}")

    # [send]
    def send_prepare(self, p: SendParams) -> None:
        """A table of lengths, then a block for each page.

        Each page is read by one call, which looks back into that page only: a guest that writes to it
        meanwhile spoils that page and no other. A raw page is copied, so its length and bytes stay true.
        """
        page_size, acceleration = p.pages.page_size, self.options.acceleration
        blocks = []
        for page in p.pages:
            block = lz4.block.compress(page, mode="fast", acceleration=acceleration, store_size=False)
            blocks.append(block if len(block) < page_size else bytes(page))
        p.iov.append(struct.pack(f">{len(blocks)}I", *map(len, blocks)))
        p.iov.extend(blocks)

    # [recv]
    def recv(self, p: RecvParams) -> None:
        """Check the table against the payload before any of it is used, then each page's length."""
        page_size, payload = p.pages.page_size, p.payload
        at = _LENGTH_BYTES * len(p.pages)
        if len(payload) < at:
            raise CodecError(f"lz4 payload of {len(payload)} bytes, its table alone has {at}")
        lengths = struct.unpack_from(f">{len(p.pages)}I", payload)
        if at + sum(lengths) != len(payload):
            raise CodecError(f"lz4 payload of {len(payload)} bytes, its table says {at + sum(lengths)}")
        for page, length in zip(p.pages, lengths, strict=True):
            block = payload[at : at + length]
            at += length
            page[:] = block if length == page_size else self._decode(block, page_size)

    @staticmethod
    def _decode(block: memoryview, page_size: int) -> bytes:
        try:
            # Never more than a page: the library gives an error instead of output beyond this size.
            data: bytes = lz4.block.decompress(block, uncompressed_size=page_size)
        except (lz4.block.LZ4BlockError, ValueError) as e:
            raise CodecError(f"lz4 block of {len(block)} bytes: {e}") from e
        if len(data) != page_size:
            raise CodecError(f"lz4 block of {len(block)} bytes gives {len(data)} bytes, a page has {page_size}")
        return data

    # [end]
