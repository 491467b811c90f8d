"""The packets of a stored channel: the same headers in whatever pieces they come, and as many as a relay passes on.

An input is as `packet`'s.
"""

from __future__ import annotations

from multifd.errors import RemoteWireError
from multifd.pages import Geometry
from multifd.wire.walker import PacketWalker
from tests.fuzz.pieces import pieces
from tests.fuzz.targets import packet
from tests.fuzz.targets.packet import LONGEST as LONGEST
from tests.fuzz.targets.packet import fields as fields
from tests.fuzz.targets.packet import seeds as seeds

COVERS = ("multifd.wire.walker",)
_GEOMETRY = Geometry.of(packet.PAGE)


def _walk(parts: list[bytes]) -> tuple[list[bytes], str, int, int]:
    walker, headers, error = PacketWalker(_GEOMETRY), list[bytes](), ""
    try:
        for part in parts:
            headers.extend(map(bytes, walker.feed(memoryview(part))))
    except RemoteWireError as e:
        return headers, str(e), walker.packets, 0
    return headers, error, walker.packets, walker.pending + walker.missing


def run(data: bytes) -> str:
    """Walk it at once and in pieces."""
    wire = packet.expand(data[1:])
    whole = _walk([wire])
    assert _walk(pieces(wire)) == whole
    headers, error, packets, left = whole
    assert len(headers) <= packets
    assert all(header in wire for header in headers)
    return "refused" if error else "cut short" if left else "walked"
