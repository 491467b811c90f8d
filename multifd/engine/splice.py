"""Bytes from one connection on to another, in order, in pieces as large as they come.

A channel is small headers between large payloads: read and written one by one, each would be a system
call and wake somebody. Here one call takes what has arrived, and one passes on what may go on.

Rules of this file: everything belongs to one thread, which alone reads the one connection and writes
the other. Nothing is held back: what may go on is written before more is waited for, so a slow
destination holds the source back.
"""

from __future__ import annotations

from collections.abc import Sequence

from multifd.errors import ChannelError
from multifd.pages import Buffer
from multifd.transport.connection import Connection


class Splice:
    """From `source` to `destination`.

    Args:
        source, destination: the caller closes them.
        buffer: writable, the caller's; the most that is read ahead, and the most that `peek` can show.
    """

    def __init__(self, source: Connection, destination: Connection, buffer: memoryview) -> None:
        self._source, self._destination, self._buffer = source, destination, buffer
        # buffer[sent:due] may go on, buffer[due:at] was taken out, buffer[at:end] is still to be looked at.
        self._sent = self._due = self._at = self._end = 0

    def peek(self, nbytes: int) -> memoryview:
        """The next `nbytes`, without a step forward; the caller may change them until they are sent.

        Returns:
            A view of the buffer; empty if the source closed before the first of these bytes.

        Raises:
            ChannelError: a connection broke, or the source closed in between.
        """
        if self._end - self._at < nbytes and not self._read(nbytes):
            return self._buffer[:0]
        return self._buffer[self._at : self._at + nbytes]

    def pass_on(self, nbytes: int) -> None:
        """Let the next `nbytes`, as many as they may be, go on as they are; `send` sends the last of them.

        Raises:
            ChannelError: a connection broke, or the source closed in between.
        """
        while nbytes:
            if self._at == self._end and not self._read(1):
                raise ChannelError(f"{self._source.peer} closed the connection in the middle of a packet")
            step = min(nbytes, self._end - self._at)
            self._at = self._due = self._at + step
            nbytes -= step

    def recv_exactly(self, views: Sequence[memoryview]) -> None:
        """Take the next bytes out: they do not go on, and no others before `send`.

        Raises:
            ChannelError: the source broke or closed too early.
        """
        missing = []
        for view in views:
            step = min(len(view), self._end - self._at)
            view[:step] = self._buffer[self._at : self._at + step]
            self._at += step
            if step < len(view):
                missing.append(view[step:])
        if missing:
            self._source.recv_exactly(missing)

    def send(self, iov: Sequence[Buffer] = ()) -> None:
        """Write what may go on, and `iov` after it; the buffers are free again on return.

        Raises:
            ChannelError: the destination broke.
        """
        if self._sent < self._due:
            iov = [self._buffer[self._sent : self._due], *iov]
        if iov:
            self._destination.send(iov)
        self._sent = self._due = self._at

    def _read(self, nbytes: int) -> bool:
        """Have `nbytes` to look at; False if the source closed before the first of them."""
        self.send()
        have = self._end - self._at
        self._buffer[:have] = self._buffer[self._at : self._end]
        self._sent = self._due = self._at = 0
        self._end = have + self._source.recv_into([self._buffer[have:]], at_least=nbytes - have)
        if have and self._end == have:
            raise ChannelError(f"{self._source.peer} closed the connection after {have} of {nbytes} bytes")
        return self._end > 0
