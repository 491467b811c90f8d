"""The first 64 bytes of a channel: refused, or the same once more but for the bytes that nobody reads."""

from __future__ import annotations

from collections.abc import Iterator

from multifd.errors import RemoteWireError
from multifd.wire.packet import INIT_BYTES, InitPacket

COVERS = ("multifd.wire.packet",)
LONGEST = INIT_BYTES + 1
_IGNORED = slice(27, 32)


def seeds() -> Iterator[bytes]:
    """As a QEMU sends them, and with all that is ours."""
    yield InitPacket(0).encode()
    yield InitPacket(7, bytes(range(16)), 8, 2, "lz4").encode()
    yield InitPacket(254, b"\xff" * 16, 255, 255, "m" * 31).encode()


def fields(data: bytes) -> Iterator[tuple[int, int]]:
    """Where they are."""
    yield from ((0, 4), (4, 4), (8, 16), (24, 1), (25, 1), (26, 1), (27, 5), (32, 1), (32, 31), (63, 1))


def run(data: bytes) -> str:
    """Decode, and encode again."""
    wrong: int | None = None
    try:
        packet = InitPacket.decode(data)
    except RemoteWireError as e:
        wrong = e.offset
    if wrong is not None:
        assert 0 <= wrong < max(len(data) + 1, INIT_BYTES)
        return "refused"
    expected = bytearray(data)
    expected[_IGNORED] = bytes(5)
    assert packet.encode() == expected
    return "packet"
