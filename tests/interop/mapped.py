"""What is in a mapped-ram file, read by nothing of multifd: a second opinion on the files that multifd writes.

The layout is that of QEMU's docs/devel/migration/mapped-ram.rst.
"""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import numpy as np

PAGE = 4096


def read_blocks(path: Path) -> dict[str, bytes]:
    """The RAM blocks by name; pages that the bitmap does not have are zero."""
    data = path.read_bytes()
    file = BytesIO(data)

    def number(code: str) -> int:
        found: int = struct.unpack(f">{code}", file.read(struct.calcsize(code)))[0]
        return found

    def name() -> str:
        return file.read(number("B")).decode()

    assert file.read(8) == b"QEVM\0\0\0\3"
    assert number("B") == 7  # configuration
    file.seek(number("I"), 1)  # machine type
    while (kind := number("B")) == 5:  # subsection
        subsection, _ = name(), number("I")
        if subsection == "configuration/capabilities":
            assert "mapped-ram" in [name() for _ in range(number("I"))]
        elif subsection == "configuration/uuid":
            file.seek(16, 1)
        else:
            raise AssertionError(subsection)
    while kind == 8:  # command
        number("H")
        file.seek(number("H"), 1)
        kind = number("B")
    assert (kind, number("I") >= 0, name(), number("I"), number("I")) == (1, True, "ram", 0, 4)
    word = number("Q")
    assert word & (PAGE - 1) == 4  # MEM_SIZE
    left, blocks = word & -PAGE, {}
    while left > 0:
        block, length = name(), number("Q")
        assert (number("I"), number("Q")) == (1, PAGE)  # header's version, page size
        bitmap_at, pages_at = number("Q"), number("Q")
        assert bitmap_at == file.tell()
        assert pages_at % (1 << 20) == 0
        bitmap = np.unpackbits(
            np.frombuffer(data, np.uint8, -(-length // PAGE // 64) * 8, bitmap_at), bitorder="little"
        )
        pages = np.frombuffer(data, np.uint8, length, pages_at).reshape(-1, PAGE)
        blocks[block] = np.where(bitmap[: len(pages), None], pages, 0).astype(np.uint8).tobytes()
        file.seek(pages_at + length)
        left -= length
    assert left == 0
    assert number("Q") == 0x10  # EOS
    return blocks
