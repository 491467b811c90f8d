"""The sender's main connection: the stream it writes and the answers it reads.

Thread rule: the caller's thread reads and writes; channel threads write ZERO words of the round that is open, each
piece whole, under the same lock.
"""

from __future__ import annotations

import threading

from multifd.engine.refusal import Seen
from multifd.errors import ChannelError, PeerFailed
from multifd.pages import Buffer
from multifd.transport.connection import Connection
from multifd.wire.return_path import PONG, SHUT, ReturnPathReader
from multifd.wire.writer import encode_ping, encode_return_path


class SourceMain:
    """Main, with what the destination has said on it so far.

    Args:
        connection: taken over.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._lock = threading.Lock()
        self._answers = ReturnPathReader()
        self._ping = 0
        self._pong = 0
        self.has_confirmed = False
        """SHUT 0 has come: the destination has the memory."""
        self.has_failed = False
        """SHUT 1 has come."""

    @property
    def has_answered(self) -> bool:
        """Whether the destination has read anything of the stream: it has answered a PING."""
        return self._pong > 0

    def write(self, data: Buffer) -> None:
        """Bytes of the stream, in one piece.

        Raises:
            ChannelError: the connection broke.
        """
        with self._lock:
            self.connection.send([data])

    def open_return_path(self) -> None:
        """Ask for answers; the first PING goes with it."""
        self._ping = 1
        self.write(encode_return_path())

    def ping(self) -> None:
        """Ask for a PONG, which comes when everything before it on main was done."""
        self._ping += 1
        self.write(encode_ping(self._ping))

    def expect_pong(self, value: int) -> None:
        """A PING with this value is on its way in the stream."""
        self._ping = value

    def is_pong_due(self) -> bool:
        """Whether the last PING is not answered yet."""
        return self._pong < self._ping

    def wait(self, timeout_s: float) -> None:
        """Wait for an answer, for at most `timeout_s`, and read what there is.

        Raises:
            PeerFailed: the destination says that it failed.
            ChannelError: the connection ended.
            StreamError: an answer that cannot be.
        """
        if self.connection.wait_readable(timeout_s):
            self.read()

    def read(self) -> None:
        """Read what the destination has said, without waiting.

        Raises:
            PeerFailed: the destination says that it failed.
            ChannelError: the connection ended.
            StreamError: an answer that cannot be.
        """
        while (data := self.connection.recv_available()) is not None:
            if not data:
                raise ChannelError(f"{self.connection.peer} closed the main connection")
            for kind, value in self._answers.feed(data):
                if kind == PONG:
                    self._pong = max(self._pong, value)
                elif kind == SHUT and value:
                    self.has_failed = True
                    raise PeerFailed("the destination reports that it failed; its own message says why")
                elif kind == SHUT:
                    self.has_confirmed = True
                    return


def seen(connection: Connection) -> Seen:
    """What the source sees of one connection now."""
    if connection.was_reset():
        return Seen.UNREAD
    return Seen.CLOSED if connection.has_hung_up() else Seen.OPEN
