"""A connection's first bytes: four decide, and what was decided does not change with what follows."""

from __future__ import annotations

from collections.abc import Iterator

from multifd.errors import printable
from multifd.wire.greeting import DECIDING_BYTES, Kind, classify, closed

COVERS = ("multifd.wire.greeting",)
LONGEST = 8


def seeds() -> Iterator[bytes]:
    """Who connects to such a port."""
    yield from (
        b"QEVM\0\0\0\3",
        b"\x11\x22\x33\x44",
        b"\x16\x03\x01\x02",
        b"GET / HT",
        b"\r\n\r\n\0\r\nQ",
        b'{"execut',
        b"SSH-2.0-",
    )


def run(data: bytes) -> str:
    """Classify every beginning of it."""
    closed(data)
    kind = Kind.UNDECIDED
    for end in range(1, len(data) + 1):
        greeting = classify(data[:end])
        assert kind in (Kind.UNDECIDED, greeting.kind)
        assert bool(greeting.words) == (greeting.kind is Kind.STRANGER)
        assert printable(greeting.words) == greeting.words
        kind = greeting.kind
    assert kind is not Kind.UNDECIDED or len(data) < DECIDING_BYTES
    return kind.name
