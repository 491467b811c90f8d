"""zstd's recv, into preallocated buffers in Python and in C, and by the public API: the same pages or three refusals.

The first two say the same words, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import zstandard

from multifd.registry import load_method
from multifd.testing.harness import RecvEnd
from tests.fuzz import channel
from tests.fuzz.channel import PAGE
from tests.fuzz.channel import fields as fields

COVERS = ("multifd.methods._libzstd", "multifd.methods._zstandard")
LONGEST = 3300
_LIBZSTD, _PUBLIC = load_method("zstd:engine=libzstd"), load_method("zstd:engine=zstandard")
_ENDS = [*channel.by_both_hooks(_LIBZSTD), RecvEnd(_PUBLIC, PAGE)]


def seeds() -> Iterator[bytes]:
    """Channels of one frame, of a frame a packet, and of a level that looks far back."""
    yield from channel.seeds(_LIBZSTD, kinds=("text", "almost-zero", "constant"))
    yield next(channel.seeds(load_method("zstd:level=19"), kinds=("text",)))
    frames = [zstandard.ZstdCompressor(write_checksum=True).compress(bytes([i]) * PAGE) for i in (1, 2)]
    yield b"".join(b"\0" + len(frame).to_bytes(2, "big") + frame for frame in frames)


def run(data: bytes) -> str:
    """Receive it."""
    seen = channel.run(data, _ENDS)
    assert seen[1][:1] == seen[1][1:2]
    return channel.outcome(seen)
