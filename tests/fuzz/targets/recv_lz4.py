"""lz4's recv: exactly the pages, or refused."""

from __future__ import annotations

from collections.abc import Iterator

from multifd.registry import load_method
from tests.fuzz import channel
from tests.fuzz.channel import fields as fields

COVERS = ("multifd_lz4",)
LONGEST = 7500
_METHOD = load_method("lz4")
_ENDS = channel.by_both_hooks(_METHOD)


def seeds() -> Iterator[bytes]:
    """Blocks, and pages as they are."""
    yield from channel.seeds(_METHOD, kinds=("text", "almost-zero", "constant"))
    yield b"\0\x10\x01\0" + bytes(range(256)) * 16


def run(data: bytes) -> str:
    """Receive it."""
    return channel.outcome(channel.run(data, _ENDS))
