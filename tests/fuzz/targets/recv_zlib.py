"""zlib's recv, by ISA-L and by zlib itself: where both take a packet, they give the same pages.

One may refuse what the other takes, if no sender made it: of a payload without its flush ISA-L keeps the last bytes
back, and it takes code lengths that zlib finds incomplete.
"""

from __future__ import annotations

from collections.abc import Iterator

from multifd.registry import load_method
from multifd.testing.harness import RecvEnd
from tests.fuzz import channel
from tests.fuzz.channel import PAGE
from tests.fuzz.channel import fields as fields

COVERS = ("multifd.methods.zlib",)

_METHODS = [load_method(f"zlib:engine={engine}") for engine in ("isal", "zlib")]
_ENDS = [[RecvEnd(method, PAGE), RecvEnd(method, PAGE)] for method in _METHODS]


def seeds() -> Iterator[bytes]:
    """Channels of both engines, and one of stored blocks."""
    yield from channel.seeds(*_METHODS, load_method("zlib:level=9"), kinds=("almost-zero", "constant"))
    yield next(channel.seeds(_METHODS[0], kinds=("text",)))


LONGEST = 3300


def run(data: bytes) -> str:
    """Receive it by both, each twice."""
    seen = [channel.run(data, ends) for ends in _ENDS]
    assert all(a == b for a, b in zip(*(accepted for accepted, _ in seen), strict=False))
    return channel.outcome(seen[0])
