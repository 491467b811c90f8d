"""An ELF core of guest-physical memory, for debuggers and forensics: its bytes in front of memory.

As QEMU's dump-guest-memory without paging lays it out (System V ABI, chapters 4 and 5): one PT_NOTE, and a PT_LOAD for
each piece of memory at its physical address. The virtual address is the physical one too, as there, so that gdb, which
knows no other, reads physical memory.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from multifd.ram.physical import Extent
from multifd.ram.x86_notes import Note

ALIGNMENT = 4096
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_ET_CORE, _EM_X86_64, _EV_CURRENT = 4, 62, 1
_PT_LOAD, _PT_NOTE = 1, 4
_IDENT = b"\x7fELF" + bytes([2, 1, _EV_CURRENT])  # 64 bits, little-endian


def encode(extents: Sequence[Extent], notes: Sequence[Note]) -> tuple[bytes, list[int]]:
    """Everything in front of memory, and where in the file each extent goes.

    Args:
        extents: at most 65534.
        notes: in their order.
    """
    note_data = b"".join(note.encode() for note in notes)
    note_start = _EHDR.size + _PHDR.size * (len(extents) + 1)
    start = -(-(note_start + len(note_data)) // ALIGNMENT) * ALIGNMENT
    places: list[int] = []
    count = len(extents) + 1
    out = _EHDR.pack(
        _IDENT, _ET_CORE, _EM_X86_64, _EV_CURRENT, 0, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, count, 0, 0, 0
    )  # fmt: skip
    out += _PHDR.pack(_PT_NOTE, 0, note_start, 0, 0, len(note_data), len(note_data), 0)
    for extent in extents:
        places.append(start)
        out += _PHDR.pack(_PT_LOAD, 0, start, extent.address, extent.address, extent.nbytes, extent.nbytes, 0)
        start += extent.nbytes
    return (out + note_data).ljust(places[0], b"\0"), places
