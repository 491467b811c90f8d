"""The return path, sans-IO: what a destination answers on the main connection."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from multifd.errors import StreamError

SHUT, PONG = 1, 2  # enum mig_rp_message_type, migration/migration.h, QEMU 7.2 and 10.0


def encode_answer(kind: int, value: int) -> bytes:
    """A message of the return path: u16 type, u16 length, u32 value.

    Args:
        kind: `SHUT` or `PONG`.
        value: of SHUT 0 for success, of PONG its PING's.
    """
    return struct.pack(">HHI", kind, 4, value)


class ReturnPathReader:
    """The source's side of the return path: `feed` bytes, get (type, value).

    A message is given before what follows it is looked at: a destination that has confirmed has, whatever it says then.

    Thread rule: one thread. What is not a whole message is kept, at most 7 bytes.
    """

    _LENGTHS: Mapping[int, int] = {SHUT: 4, PONG: 4}

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, int]]:
        """The messages that these bytes complete, each looked for when it is asked for.

        Raises:
            StreamError: a message that a precopy destination does not send.
        """
        self._buffer += data
        while len(self._buffer) >= 4:
            kind, length = struct.unpack_from(">HH", self._buffer)
            self._check(kind, length)
            if len(self._buffer) < 4 + length:
                break
            value = int.from_bytes(self._buffer[4 : 4 + length], "big")
            del self._buffer[: 4 + length]
            yield kind, value

    def _check(self, kind: int, length: int) -> None:
        if self._LENGTHS.get(kind) != length:
            raise StreamError(f"return path: message {kind} of {length} bytes, expected SHUT or PONG of 4")


class ReturnPathWatcher(ReturnPathReader):
    """As who only passes it on sees it: messages of other kinds, as that a switchover is agreed to, are given, too.

    What is not a whole message is kept, at most 515 bytes.
    """

    _MOST_KINDS, _MOST_BYTES = 64, 512
    """QEMU 10.0 has 7 kinds, and room for so many bytes (migration/migration.c, source_return_path_thread)."""

    def _check(self, kind: int, length: int) -> None:
        if kind in self._LENGTHS or not 0 < kind <= self._MOST_KINDS or length > self._MOST_BYTES:
            super()._check(kind, length)
