"""A connection that has just come and has not said yet what it is."""

from __future__ import annotations

import fcntl
import socket
import sys
import termios
from typing import Protocol


class Incoming(Protocol):
    """What an `Acceptor` reads a new connection through; an encrypted twin shakes hands inside `recv`.

    Thread rule: one thread.
    """

    peer: str
    """The other end's name."""

    def fileno(self) -> int:
        """What to wait on until it is readable."""
        ...

    def recv(self, nbytes: int) -> bytes | None:
        """At most `nbytes` that have arrived; None if nothing has yet, b"" if the connection has ended or broken.

        Never waits, and takes nothing from the connection that it does not return: the rest is for whoever the
        connection is given to.
        """
        ...

    def readable_bytes(self) -> int:
        """How many bytes have arrived that were not read; 0 also if the connection has ended."""
        ...

    def take(self) -> socket.socket:
        """The socket for a `Connection`; this object is of no use any more."""
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
        self._sock, self.peer = sock, peer

    def fileno(self) -> int:
        """See `Incoming`."""
        return self._sock.fileno()

    def recv(self, nbytes: int) -> bytes | None:
        """See `Incoming`."""
        try:
            return self._sock.recv(nbytes)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def readable_bytes(self) -> int:
        """See `Incoming`: FIONREAD, ioctl_tty(2)."""
        count = bytearray(4)
        fcntl.ioctl(self._sock, termios.FIONREAD, count)
        return int.from_bytes(count, sys.byteorder)

    def take(self) -> socket.socket:
        """See `Incoming`."""
        return self._sock

    def close(self) -> None:
        """See `Incoming`."""
        self._sock.close()
