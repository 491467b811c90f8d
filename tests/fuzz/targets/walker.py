"""A channel's packets that are walked over: in whatever pieces they come, and with payloads stepped over, the same.

An input is a channel's bytes after its init packet; each byte 0xff of it stands for 64 zeros, since headers are long.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from multifd.errors import RemoteWireError
from multifd.pages import Geometry
from multifd.wire.packet import DEVICE_STATE_BYTES, NO_OFFSETS, PacketEncoder
from multifd.wire.walker import PacketWalker

COVERS = ("multifd.wire.walker",)
LONGEST = 400
GEOMETRY = Geometry.of(65536)
"""Eight pages in a packet, so headers are as short as they can be."""
_ZEROS, _MARK = bytes(64), b"\xff"


def seeds() -> Iterator[bytes]:
    """Pages, zero pages, a SYNC and devices' state."""
    encoder = PacketEncoder(GEOMETRY)
    pages = np.array([0, 65536], np.int64)
    wire = bytes(encoder.data(0, 1, "ram", pages, NO_OFFSETS, 9)) + b"9 bytes.."
    wire += bytes(encoder.data(0, 2, "ram", NO_OFFSETS, pages, 0)) + bytes(encoder.sync(3))
    yield wire.replace(_ZEROS, _MARK)
    head = bytes.fromhex("112233440000000100000040")
    device = head + bytes(DEVICE_STATE_BYTES - len(head) - 4) + (5).to_bytes(4, "big") + b"state"
    yield (device + wire).replace(_ZEROS, _MARK)


def run(data: bytes) -> str:
    """Walk over it at once, in small pieces, and by steps."""
    wire = memoryview(data.replace(_MARK, _ZEROS))
    at_once, by_sevens, by_steps = ([*_walk(wire, way)] for way in (len(wire) or 1, 7, 0))
    assert at_once == by_sevens == by_steps
    return str(at_once[-1])


def _walk(wire: memoryview, step: int) -> Iterator[object]:
    """The headers, and how it ends; step 0 feeds headers alone."""
    walker, at = PacketWalker(GEOMETRY), 0
    try:
        while at < len(wire):
            piece = wire[at : at + (step or walker.wanted())]
            yield from map(bytes, walker.feed(piece))
            at += len(piece)
            if not step:
                at += walker.step_over(len(wire) - at)
    except RemoteWireError as e:
        yield f"refused in packet {min(walker.packets, 2)}: {e.offset}"
        return
    yield f"{min(walker.packets, 3)} packets, cut: {bool(walker.pending or walker.missing)}"
