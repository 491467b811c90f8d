"""LiME, version 1: memory as ranges, each behind a header of 32 bytes (LiME's doc/README.md)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from multifd.ram.physical import Extent

_HEADER = struct.Struct("<IIQQ8x")  # magic, version, first and last address
_MAGIC, _VERSION = 0x4C694D45, 1


def encode(extents: Sequence[Extent]) -> list[bytes]:
    """The header in front of each extent."""
    return [_HEADER.pack(_MAGIC, _VERSION, e.address, e.address + e.nbytes - 1) for e in extents]
