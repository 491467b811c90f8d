"""The vmdesc and the devices' state that it describes: nothing but the two is needed, and no lie in it does harm.

An input's first byte says whether the rest is the end of a stream as it is, or two bytes of length, so much state, and
the text of a vmdesc that is put behind it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

from device_state import build_state, clock, cpu

from multifd.errors import printable
from multifd.ram import x86_notes
from multifd.wire import vmdesc, vmstate

COVERS = ("multifd.wire.vmdesc", "multifd.wire.vmstate", "multifd.ram.x86_notes")

RAW, BUILT = 0, 1


def seeds() -> Iterator[bytes]:
    """Devices that are looked for, and none."""
    whole = build_state([cpu(), cpu(1, b"\5sub"), clock(1 << 31, 1 << 30)])
    state, _, text = whole.rpartition(b"\0\6")
    yield bytes([BUILT]) + struct.pack(">H", len(state)) + state + text[4:]
    small = build_state([clock(1 << 28)])
    yield bytes([RAW]) + small
    yield bytes([RAW]) + b"\0" + vmdesc.encode(4096)
    yield bytes([RAW]) + b"\3\0\0\0\2\0\0\0\0\0\0\0\x10\x7e\0\0\0\2\0"


LONGEST = 6000


def run(data: bytes) -> str:
    """Look for the stream's end, and at what it says of the devices."""
    tail = data[1:]
    if data[:1] == bytes([BUILT]):
        (length,) = struct.unpack(">H", data[1:3].ljust(2, b"\0"))
        text = data[3 + length :]
        tail = data[3 : 3 + length] + b"\0\6" + struct.pack(">I", len(text)) + text
    description = vmdesc.find(tail)
    assert vmdesc.ends(tail) == (description is not None)
    for has_footers in (False, True):
        vmdesc.may_end(tail, has_footers=has_footers)
    if description is None:
        return "none"
    for line in vmdesc.devices(description):
        printable(line).encode()
    for section in vmstate.sections(tail, description, "mc146818rtc"):
        assert sum(len(field.data) for field in section.fields.values()) <= len(tail)
    cpus = x86_notes.cpu_sections(tail, description)
    notes = b"".join(note.encode() for note in x86_notes.cpu_notes(cpus))
    assert bool(notes) == bool(cpus)
    json.dumps(description)
    return f"vmdesc, {len(cpus)} CPUs"
