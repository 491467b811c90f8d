"""Connections as they come: main and channels in any order, told apart by what they start with.

The first four bytes are read, never peeked at; a connection that starts with neither magic is
closed and counted.
"""

from __future__ import annotations

import os
import selectors
import socket
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
        self._kept: deque[Arrival] = deque()
        self._selector.register(listener.sock, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self.strangers = 0
        """Connections that were not a migration's and were closed."""

    def wait(self, timeout_s: float) -> Iterator[Arrival]:
        """Wait for at most `timeout_s` and give who came.

        The magic of main, or the init packet, is read; the socket is the caller's from then on.

        Raises:
            RemoteWireError: a channel's init packet is none.
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

    def take_kept(self) -> Iterator[Arrival]:
        """Those that were kept for this migration, in the order in which they came."""
        while self._kept:
            yield self._kept.popleft()

    def keep(self, arrival: Arrival) -> None:
        """Take one back: it belongs to the migration after this one."""
        self._kept.append(arrival)
        if len(self._kept) > _MAX_PENDING:
            self.dismiss(self._kept.popleft()[0])

    def dismiss(self, sock: socket.socket) -> None:
        """Close a connection that is not the migration's, and count it."""
        if sock in self._pending:
            self._release(sock)
        sock.close()
        self.strangers += 1

    def close(self) -> None:
        """Close whom nobody took; the listener stays open."""
        for sock in [*self._pending, *(sock for sock, _, _ in self._kept)]:
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
        """Read what a new connection starts with, never more than it takes to know what it is."""
        start, peer, _ = self._pending[sock]
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
                init = InitPacket.decode(start)
            except RemoteWireError:
                self.dismiss(sock)
                raise
            self._release(sock)
            yield sock, peer, init

    def _release(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        del self._pending[sock]
