"""The return path, sans-IO: what a destination answers on the main connection."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from multifd.errors import StreamError

SHUT, PONG = 1, 2


def encode_answer(kind: int, value: int) -> bytes:
    """A message of the return path: SHUT or PONG with its u32."""
    return struct.pack(">HHI", kind, 4, value)


class ReturnPathReader:
    """The source's side of the return path: `feed` bytes, get (type, value)."""

    _LENGTHS: Mapping[int, int] = {SHUT: 4, PONG: 4}

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int]]:
        """The messages that these bytes complete.

        Raises:
            StreamError: a message that a precopy destination does not send.
        """
        self._buffer += data
        messages = []
        while len(self._buffer) >= 4:
            kind, length = struct.unpack_from(">HH", self._buffer)
            if self._LENGTHS.get(kind) != length:
                raise StreamError(f"return path: message {kind} of {length} bytes, expected SHUT or PONG of 4")
            if len(self._buffer) < 4 + length:
                break
            messages.append((kind, int.from_bytes(self._buffer[4 : 4 + length], "big")))
            del self._buffer[: 4 + length]
        return messages
