"""Connections as they come: main and channels in any order, told apart by what they start with.

The first four bytes are read, never peeked at; a connection that starts with neither magic is
closed and counted.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import socket
import sys
import termios
import threading
import time
from collections import deque
from collections.abc import Iterator

from multifd.errors import RemoteWireError
from multifd.transport.listen import Listener
from multifd.wire import stream
from multifd.wire.packet import INIT_BYTES, MAGIC_BYTES, InitPacket

Arrival = tuple[socket.socket, str, InitPacket | None]
"""A socket, its peer's name, and a channel's init packet, None for main."""
_MAX_PENDING = 512
"""Connections that have not said yet what they are."""


class Acceptor:
    """What connects to a listener; belongs to one thread, but for `wake`.

    Args:
        listener: the caller closes it.
        patience_s: a connection that has not said by then what it is, is closed.
    """

    def __init__(self, listener: Listener, patience_s: float) -> None:
        self.listener, self._patience_s = listener, patience_s
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wake_lock = threading.Lock()
        self._pending: dict[socket.socket, tuple[bytearray, str, float]] = {}
        self._deferred: deque[Arrival] = deque()
        self._selector.register(listener.sock, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self.rejected = 0
        """Connections that were not a migration's and were closed."""

    def wait(self, timeout_s: float) -> Iterator[Arrival]:
        """Wait for at most `timeout_s` and give who came.

        The magic of main, or the init packet, is read; the socket is the caller's from then on.

        Raises:
            ChannelError: the listener broke.
        """
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self.listener.sock:
                self._accept()
            elif key.fd == self._wake:
                os.eventfd_read(self._wake)
            elif key.fileobj in self._pending:
                yield from self._identify(key.fileobj)
        oldest = time.monotonic() - self._patience_s
        for sock in [sock for sock, (_, _, since) in self._pending.items() if since < oldest]:
            self.dismiss(sock)

    def wake(self) -> None:
        """End a `wait` that is going on, or the next one. From any thread, after `close` too."""
        with self._wake_lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def deferred(self) -> Iterator[Arrival]:
        """Those that were kept for this migration, in the order in which they came."""
        while self._deferred:
            yield self._deferred.popleft()

    def defer(self, arrival: Arrival) -> None:
        """Take one back: it belongs to the migration after this one."""
        self._deferred.append(arrival)
        if len(self._deferred) > _MAX_PENDING:
            self.dismiss(self._deferred.popleft()[0])

    def dismiss(self, sock: socket.socket) -> None:
        """Close a connection that is not the migration's, and count it."""
        if sock in self._pending:
            self._release(sock)
        sock.close()
        self.rejected += 1

    def close(self) -> None:
        """Close whom nobody took; the listener stays open."""
        for sock in [*self._pending, *(sock for sock, _, _ in self._deferred)]:
            self.dismiss(sock)
        self._selector.close()
        with self._wake_lock:
            os.close(self._wake)
            self._wake = -1

    def _accept(self) -> None:
        while (accepted := self.listener.accept()) is not None:
            sock, peer = accepted
            if len(self._pending) >= _MAX_PENDING:
                self.dismiss(next(iter(self._pending)))
            sock.setblocking(False)
            self._pending[sock] = (bytearray(), peer, time.monotonic())
            self._selector.register(sock, selectors.EVENT_READ)

    def _identify(self, sock: socket.socket) -> Iterator[Arrival]:
        """Read what a new connection starts with, never more than it takes to know what it is.

        A channel counts only once something follows its init packet, as on every real one at once: 64 bytes that
        anybody may have sent are not a channel.
        """
        start, peer, _ = self._pending[sock]
        if len(start) == INIT_BYTES:
            if _readable_bytes(sock):
                self._release(sock)
                yield sock, peer, InitPacket.decode(start)
            else:  # it was closed
                self.dismiss(sock)
            return
        is_channel = start.startswith(MAGIC_BYTES)
        try:
            data = sock.recv((INIT_BYTES if is_channel else len(MAGIC_BYTES)) - len(start))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        start += data
        if not data or not any(m.startswith(start[:4]) for m in (MAGIC_BYTES, stream.MAGIC_BYTES)):
            self.dismiss(sock)
        elif start == stream.MAGIC_BYTES:
            self._release(sock)
            yield sock, peer, None
        elif len(start) == INIT_BYTES:
            try:
                InitPacket.decode(start)
            except RemoteWireError:
                self.dismiss(sock)

    def _release(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        del self._pending[sock]


def _readable_bytes(sock: socket.socket) -> int:
    """What has arrived and was not read: FIONREAD, ioctl_tty(2)."""
    count = bytearray(4)
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return int.from_bytes(count, sys.byteorder)
