"""A connection that has just come and speaks TLS: the handshake, then what it begins with."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Sequence

from multifd.transport import certificate as cert
from multifd.transport.idle import IdleTimer
from multifd.transport.tls_connection import TlsConnection
from multifd.transport.tls_session import TlsSession
from multifd.transport.tls_words import Side, is_tls

_READ_BYTES = 1 << 16


class TlsIncoming:
    """See `multifd.transport.incoming.Incoming`. A handshake goes on by as much as has come and never waits, so one
    that stalls holds nobody up.

    Args:
        sock: taken over.
        peer: the other end's name.
        session: new.
        side: for words.
        authz: see `Tls.authz`.
        timeout_s: how long the handshake may take.
        on_failure: called if it fails.
    """

    def __init__(
        self, sock: socket.socket, peer: str, session: TlsSession, side: Side, authz: Sequence[str], timeout_s: float,
        on_failure: Callable[[], object],
    ) -> None:  # fmt: skip
        sock.setblocking(False)
        self._sock, self.peer = sock, peer
        self._session, self._side, self._authz, self._on_failure = session, side, authz, on_failure
        self.since = time.monotonic()
        self._timeout_s, self._deadline = timeout_s, self.since + timeout_s
        self._is_shaken = self._has_begun = False
        self._bytes_read = self._bytes_sent = 0
        self.trouble = ""

    def fileno(self) -> int:
        """See `Incoming`."""
        return self._sock.fileno()

    def recv(self, nbytes: int) -> bytes | None:
        """See `Incoming`."""
        buffer = bytearray(nbytes)
        got = self._go_on(lambda: self._session.decrypt_into(memoryview(buffer)))
        return None if got is None else bytes(buffer[:got])

    def has_more(self) -> bool | None:
        """See `Incoming`."""
        more = self._go_on(lambda: _as_count(self._session.look_ahead()))
        return None if more is None else bool(more)

    def is_late(self) -> bool:
        """See `Incoming`."""
        if not self._is_shaken and not self.trouble and time.monotonic() > self._deadline:
            self._fail(self._side.late(self._timeout_s))
        return bool(self.trouble)

    def take(self, idle: IdleTimer, peer: str) -> TlsConnection:
        """See `Incoming`."""
        connection = TlsConnection(self._sock, self._session, self._side, idle, peer)
        connection.bytes_received, connection.bytes_sent = self._bytes_read, self._bytes_sent
        connection.since = self.since
        return connection

    def close(self) -> None:
        """See `Incoming`."""
        self._sock.close()

    def _go_on(self, read: Callable[[], int | None]) -> int | None:
        """Read, with what has arrived; None if that is not enough, 0 at the end, whatever it is."""
        try:
            while not self.trouble:
                got = read() if self._is_shaken or self._shake_hands() else None
                if got is not None:
                    return got
                try:
                    data = self._sock.recv(_READ_BYTES)
                except BlockingIOError:
                    return None
                if not data:
                    if not self._is_shaken and self._has_begun:
                        self._fail(self._side.closed())
                    return 0
                self._feed(data)
        except ssl.SSLError as e:
            self._fail(self._side.failure(e, self._session))
            self._send_outgoing()
        except OSError:
            if not self._is_shaken and self._has_begun:
                self._fail(self._side.closed())
        return 0

    def _feed(self, data: bytes) -> None:
        if not self._has_begun and not is_tls(data[0]):
            self._fail(self._side.plain(data))
            return
        self._has_begun = True
        self._bytes_read += len(data)
        self._session.feed(data)

    def _shake_hands(self) -> bool:
        """Whether the handshake is done and the other end may be here."""
        self._is_shaken = self._session.shake_hands()
        self._send_outgoing()
        if self._is_shaken and not cert.may_connect(shown := self._session.peer_certificate(), self._authz):
            self._is_shaken = False
            self._fail(
                f"tls-authz does not allow its certificate, {cert.describe(shown)}; allowed: {', '.join(self._authz)}"
            )
        return self._is_shaken

    def _send_outgoing(self) -> None:
        """A handshake's few thousand bytes fit a fresh socket; who made them not fit is no peer of ours."""
        try:
            if data := self._session.outgoing():
                self._sock.sendall(data)
                self._bytes_sent += len(data)
        except OSError:
            if not self.trouble:
                self._fail(self._side.closed())

    def _fail(self, words: str) -> None:
        self.trouble = words
        self._on_failure()


def _as_count(more: bool | None) -> int | None:
    return None if more is None else int(more)
