"""The headers in a stored channel; payloads are stepped over, and not read."""

from __future__ import annotations

from collections.abc import Iterator

from multifd.ram.folder import StoredStream
from multifd.wire.packet import INIT_BYTES
from multifd.wire.walker import PacketWalker


def headers(channel: StoredStream, walker: PacketWalker) -> Iterator[bytearray]:
    """The headers of a channel's RAM packets.

    Args:
        channel: its file; stays the caller's.
        walker: new; what it knows at the end is the caller's, too.

    Raises:
        RamError: the file cannot be read.
        RemoteWireError: a header that cannot be.
    """
    at, view = INIT_BYTES, memoryview(bytearray(walker.longest))
    while got := channel.read(view[: walker.wanted()], at):
        yield from walker.feed(view[:got])
        at += got + walker.step_over(channel.entry.nbytes - at - got)
