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
from multifd.pages import Buffer, Geometry
from multifd.pump import library
from multifd.pump.library import Stop
from multifd.pump.splicing import SplicePump, Window
from multifd.transport.connection import Connection


class Splice:
    """From `source` to `destination`.

    Args:
        source, destination: the caller closes them.
        buffer: writable, the caller's; the most that is read ahead, and the most that `peek` can show.
    """

    def __init__(self, source: Connection, destination: Connection, buffer: memoryview) -> None:
        self._source, self._destination, self._buffer = source, destination, buffer
        self._window = Window()

    def peek(self, nbytes: int) -> memoryview:
        """The next `nbytes`, without a step forward; the caller may change them until they are sent.

        Returns:
            A view of the buffer; empty if the source closed before the first of these bytes.

        Raises:
            ChannelError: a connection broke, or the source closed in between.
        """
        w = self._window
        if w.end - w.at < nbytes and not self._read(nbytes):
            return self._buffer[:0]
        return self._buffer[w.at : w.at + nbytes]

    def pass_on(self, nbytes: int) -> None:
        """Let the next `nbytes`, as many as they may be, go on as they are; `send` sends the last of them.

        Raises:
            ChannelError: a connection broke, or the source closed in between.
        """
        w = self._window
        while nbytes:
            if w.at == w.end and not self._read(1):
                raise ChannelError(f"{self._source.peer} closed the connection in the middle of a packet")
            step = min(nbytes, w.end - w.at)
            w.at = w.due = w.at + step
            nbytes -= step

    def recv_exactly(self, views: Sequence[memoryview]) -> None:
        """Take the next bytes out: they do not go on, and no others before `send`.

        Raises:
            ChannelError: the source broke or closed too early.
        """
        w = self._window
        missing = []
        for view in views:
            step = min(len(view), w.end - w.at)
            view[:step] = self._buffer[w.at : w.at + step]
            w.at += step
            if step < len(view):
                missing.append(view[step:])
        if missing:
            self._source.recv_exactly(missing)

    def open_pump(self, geometry: Geometry, abort: bytearray, code_in: int, code_out: int) -> SplicePump | None:
        """A pump for packets whose payload is the pages; None if they must go through Python.

        Args:
            geometry: the migration's.
            abort: one byte, not zero once the migration is torn down.
            code_in, code_out: the methods' codes on the wire.
        """
        source, destination = self._source.descriptor, self._destination.descriptor
        if source is None or destination is None or library.unavailable_reason():
            return None
        return SplicePump(source, destination, geometry, abort, self._buffer, code_in, code_out)

    def run(self, pump: SplicePump) -> Stop:
        """Pass packets on by the pump, once; `peek` shows what it leaves.

        Raises:
            ChannelError: a connection broke, or the source closed in the middle of a payload.
        """
        stop, figures = pump.run(self._window), pump.figures
        self._source.received(figures.bytes_in)
        self._destination.sent(figures.bytes_out)
        if stop is Stop.WAIT:
            if self._window.sent < self._window.due:
                self._destination.stalls += 1
            self._source.check_idle()
        elif stop is Stop.BROKEN and figures.has_failed_out:
            raise self._destination.sending_failed(figures.error)
        elif stop is Stop.BROKEN:
            raise self._source.receiving_failed(figures.error)
        elif stop is Stop.END:
            self.pass_on(figures.left)
        return stop

    def send(self, iov: Sequence[Buffer] = ()) -> None:
        """Write what may go on, and `iov` after it; the buffers are free again on return.

        Raises:
            ChannelError: the destination broke.
        """
        w = self._window
        if w.sent < w.due:
            iov = [self._buffer[w.sent : w.due], *iov]
        if iov:
            self._destination.send(iov)
        w.sent = w.due = w.at

    def _read(self, nbytes: int) -> bool:
        """Have `nbytes` to look at; False if the source closed before the first of them."""
        w = self._window
        self.send()
        have = w.end - w.at
        self._buffer[:have] = self._buffer[w.at : w.end]
        w.sent = w.due = w.at = 0
        w.end = have + self._source.recv_into([self._buffer[have:]], at_least=nbytes - have)
        if have and w.end == have:
            raise ChannelError(f"{self._source.peer} closed the connection after {have} of {nbytes} bytes")
        return w.end > 0
