"""none's recv: the payload is the pages or is refused."""

from __future__ import annotations

from collections.abc import Iterator

from multifd.registry import load_method
from tests.fuzz import channel
from tests.fuzz.channel import fields as fields

COVERS = ("multifd.methods.none",)
LONGEST = 3 * 4096
_METHOD = load_method("none")
_ENDS = channel.by_both_hooks(_METHOD)


def seeds() -> Iterator[bytes]:
    """A good packet, and one that is cut short."""
    yield next(channel.seeds(_METHOD))[: 3 + 4096]
    yield next(channel.seeds(_METHOD))[:4000]


def run(data: bytes) -> str:
    """Receive it."""
    return channel.outcome(channel.run(data, _ENDS))
