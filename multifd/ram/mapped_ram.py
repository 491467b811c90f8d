"""The layout of QEMU's mapped-ram file: what a capture writes, and what QEMU 9.0 and later writes and loads.

It is a main stream whose ram section lists, after each block, where in the file the block's pages
lie and a bitmap of those that are not zero; the devices' state follows. Source: migration/ram.c of
QEMU 10.0 (MappedRamHeader, mapped_ram_setup_ramblock), confirmed with files written and loaded by
QEMU 10.0.2. All places are bytes of the file, whatever comes before the stream in it (measured with
``file:PATH,offset=4096`` and libvirt 11.3's sparse save images).

The bitmap is of the writing host's words; a file of a big-endian host is not understood.
"""

from __future__ import annotations

import struct

CAPABILITY = "mapped-ram"
HEADER = struct.Struct(">IQQQ")  # version, page_size, bitmap_offset, pages_offset
VERSION = 1


def bitmap_bytes(used_length: int, page_size: int) -> int:
    """Length of a block's bitmap: whole words of 64 bits."""
    return -(-used_length // page_size // 64) * 8
