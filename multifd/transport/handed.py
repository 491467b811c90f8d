"""Sockets that whoever started this process has handed over, by their descriptors' numbers.

A listening socket takes a migration like any other. Connected ones are the migration's connections themselves, since
nobody else can come: main and each channel has its own. QEMU has neither with multifd: 10.0 refuses ``fd:`` at both
ends ("Migration requires multi-channel URIs"; tests/interop/test_descriptors.py).

Rules of this file: what is taken over is closed by who took it; what turns out to be no such socket is left as it was.
"""

from __future__ import annotations

import os
import socket
from collections import deque

from multifd.errors import UsageError
from multifd.transport.address import Uri


def take(fd: int) -> socket.socket:
    """The socket that a descriptor is; taken over, and not inherited by further processes.

    Raises:
        UsageError: it is not open, or no stream socket.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError as e:
        raise UsageError(f"descriptor {fd}: {e.strerror}; expected a socket that was handed to this process") from e
    if sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise UsageError(f"descriptor {fd}: expected a stream socket")
    sock.set_inheritable(False)
    return sock


def listens(sock: socket.socket) -> bool:
    """Whether it is a listening socket."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def take_connected(fd: int) -> socket.socket:
    """As `take`, a connection.

    Raises:
        UsageError: it is none.
    """
    sock = take(fd)
    try:
        sock.getpeername()
    except OSError:
        what = "it listens" if listens(sock) else "it is not connected"
        sock.detach()
        raise UsageError(f"descriptor {fd}: {what}; expected a connected socket") from None
    return sock


class HandedConnections:
    """Connected sockets in the place of a `multifd.transport.listen.Listener`: each is accepted once.

    Whoever handed them over has decided who is at their other ends.

    Thread rule: as a listener's, one thread.

    Args:
        uri: of at least two descriptors: main and one channel, in any order.

    Raises:
        UsageError: they are something else.
    """

    def __init__(self, uri: Uri) -> None:
        self.uri = uri
        self._left: deque[tuple[socket.socket, str]] = deque()
        self._readable = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # as a listener's socket, until all are taken
        try:
            if len(uri.fds) < 2:
                raise UsageError(
                    f"{uri} is one connection, and a migration has two and more, main and its channels: hand over a "
                    "listening socket, or a connected one for each (fd:N,N,...)"
                )
            for fd in uri.fds:
                self._left.append((take_connected(fd), f"fd:{fd}"))
        except BaseException:
            for sock, _ in self._left:
                sock.detach()
            os.close(self._readable)
            raise
        self.is_local = all(sock.family == socket.AF_UNIX for sock, _ in self._left)

    def fileno(self) -> int:
        """What is readable as long as `accept` has something to give."""
        return self._readable

    def accept(self) -> tuple[socket.socket, str] | None:
        """The next connection and its name, None after the last."""
        if not self._left:
            return None
        if len(self._left) == 1:
            os.eventfd_read(self._readable)
        return self._left.popleft()

    def objection(self, sock: socket.socket) -> str:
        """Why it may not connect: whoever handed it over has decided that."""
        return ""

    def close(self) -> None:
        """Close those that nobody accepted. Twice is harmless."""
        while self._left:
            self._left.popleft()[0].close()
        if self._readable >= 0:
            os.close(self._readable)
            self._readable = -1
