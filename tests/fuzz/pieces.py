"""Bytes in pieces that depend on them alone, so that an input is always given in the same ones."""

from __future__ import annotations

import zlib


def pieces(data: bytes) -> list[bytes]:
    """The same bytes in up to five pieces, some of them empty."""
    chance = zlib.crc32(data)
    cuts = sorted(chance // step % (len(data) + 1) for step in (1, 251, 65521, 1 << 22))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
