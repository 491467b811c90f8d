"""A connection that has just come and has not said yet what it is."""

from __future__ import annotations

import fcntl
import select
import socket
import termios
import time
from typing import Protocol

from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer


class Incoming(Protocol):
    """What an `Acceptor` reads a new connection through; an encrypted twin shakes hands inside `recv`.

    Thread rule: one thread.
    """

    peer: str
    """The other end's name."""
    trouble: str
    """Why it can be no migration's, in words; empty if nothing is known against it."""
    since: float
    """When it came, by the monotonic clock."""

    def fileno(self) -> int:
        """What to wait on until it is readable."""
        ...

    def recv(self, nbytes: int) -> bytes | None:
        """At most `nbytes` that have arrived; None if nothing has yet, b"" if the connection has ended or broken.

        Never waits, and takes nothing from the connection that it does not return: the rest is for whoever the
        connection is given to.
        """
        ...

    def has_more(self) -> bool | None:
        """Whether something has arrived that was not read; None if nothing has yet, False if the connection has ended.

        Never waits, as `recv`.
        """
        ...

    def is_late(self) -> bool:
        """Whether it has used up its time for what comes before its first byte; `trouble` says then for what."""
        ...

    def take(self, idle: IdleTimer, peer: str) -> Connection:
        """The connection, for a migration, with what was read and sent so far counted; this object is of no use then.

        Args:
            idle: the migration's.
            peer: the other end, as error messages name it.
        """
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class PlainIncoming:
    """A plain socket.

    Args:
        sock: taken over.
        peer: the other end's name.
    """

    def __init__(self, sock: socket.socket, peer: str) -> None:
        sock.setblocking(False)
        self._sock, self.peer, self.trouble = sock, peer, ""
        self.since = time.monotonic()
        self._bytes_read = 0

    def fileno(self) -> int:
        """See `Incoming`."""
        return self._sock.fileno()

    def recv(self, nbytes: int) -> bytes | None:
        """See `Incoming`."""
        try:
            data = self._sock.recv(nbytes)
        except BlockingIOError:
            return None
        except OSError:
            return b""
        self._bytes_read += len(data)
        return data

    def has_more(self) -> bool | None:
        """See `Incoming`."""
        # In this order: what arrives between the two is taken for more, never for the end.
        ready = select.poll()
        ready.register(self._sock, select.POLLIN)
        is_readable = bool(ready.poll(0))
        count = bytearray(4)
        fcntl.ioctl(self._sock, termios.FIONREAD, count)  # ioctl_tty(2)
        if any(count):
            return True
        return False if is_readable else None

    def is_late(self) -> bool:
        """See `Incoming`: it has nothing to do before."""
        return False

    def take(self, idle: IdleTimer, peer: str) -> Connection:
        """See `Incoming`."""
        connection = Connection(self._sock, idle, peer)
        connection.bytes_received, connection.since = self._bytes_read, self.since
        return connection

    def close(self) -> None:
        """See `Incoming`."""
        self._sock.close()
