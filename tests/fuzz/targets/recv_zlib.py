"""zlib's recv, by ISA-L and by zlib itself: both give the same pages, or both refuse."""

from __future__ import annotations

from collections.abc import Iterator

from multifd.registry import load_method
from multifd.testing.harness import RecvEnd
from tests.fuzz import channel
from tests.fuzz.channel import PAGE
from tests.fuzz.channel import fields as fields

COVERS = ("multifd.methods.zlib",)

_METHODS = [load_method(f"zlib:engine={engine}") for engine in ("isal", "zlib")]


def seeds() -> Iterator[bytes]:
    """Channels of both engines, and one of stored blocks."""
    yield from channel.seeds(*_METHODS, load_method("zlib:level=9"), kinds=("almost-zero", "constant"))
    yield next(channel.seeds(_METHODS[0], kinds=("text",)))


LONGEST = 3300


def run(data: bytes) -> str:
    """Receive it."""
    return channel.outcome(channel.run(data, [RecvEnd(method, PAGE) for method in _METHODS]))
