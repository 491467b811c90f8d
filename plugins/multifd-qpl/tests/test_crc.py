"""The CRC that results of the device are compared with: zlib's."""

from __future__ import annotations

import random
import zlib

import pytest
from multifd_qpl._batch import ffi, lib
from qpl_ends import PAGE_SIZES


@pytest.mark.parametrize("length", [0, 1, 7, 8, 63, 64, 100, 128, 192, *PAGE_SIZES])
@pytest.mark.parametrize("offset", [0, 1, 8])
def test_is_that_of_zlib(length: int, offset: int) -> None:
    """By the processor's multiplication, if it has one, and by table, wherever the bytes lie."""
    memory = random.Random(length).randbytes(offset + length)
    start, expected = ffi.from_buffer(memory) + offset, zlib.crc32(memory[offset:])
    assert lib.mq_crc(ffi.cast("uint8_t *", start), length) == expected
    assert lib.mq_crc_by_table(0xFFFFFFFF, ffi.cast("uint8_t *", start), length) ^ 0xFFFFFFFF == expected
