"""The TLS twin of a connection: the same calls, the same deadlines, ciphertext on the socket.

Rules of this file: the bytes that the counters count, the rate limit limits and the idle timer sees are the socket's.
Nobody waits under the session's lock. Encrypting and writing is one step under `_sending`, so records leave in
their order; reading and feeding is one under `_receiving`.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from multifd.errors import Aborted, ChannelError, TlsError
from multifd.pages import Buffer, flat
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.transport.limit import RateLimit
from multifd.transport.tls_session import TlsSession
from multifd.transport.tls_words import Side, is_tls

_PIECE_BYTES = 1 << 19
"""Encrypted at once: a packet's pages. Half of it was as fast, a quarter slower (benchmarks/tls.py, two cores)."""
_READ_BYTES = 1 << 18
"""Read at once. Four times as much was no faster, a quarter slower."""
_POLL_S = 0.05
_FINISH_S = 1.0
"""How long `finish` waits for a write that is under way in another thread."""


class TlsConnection(Connection):
    """A TLS connection on a connected stream socket.

    Thread rule: as `Connection`: one thread reads and one writes, which may be the same.

    Args:
        sock: taken over.
        session: its TLS, new or with the handshake done.
        side: for words.
        idle: the migration's; every byte moved touches it.
        peer: the other end, as error messages name it.
        limit: for what is sent; None is unlimited.
        on_failure: called once if TLS ends it, in the handshake or later.
    """

    takes_mapped = False

    def __init__(
        self, sock: socket.socket, session: TlsSession, side: Side, idle: IdleTimer, peer: str,
        limit: RateLimit | None = None, on_failure: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        super().__init__(sock, idle, peer, limit)
        self._session, self._side, self._on_failure = session, side, on_failure
        self._has_failed = False
        self._sending, self._receiving = threading.Lock(), threading.Lock()
        self._ciphertext = memoryview(bytearray(_READ_BYTES))
        self._is_cut_off = False  # a record is out in part: nothing can follow it
        self._has_ended = self._has_said_end = False

    @property
    def descriptor(self) -> int | None:
        """None: nobody else can read or write this socket."""
        return None

    def shake_hands(self, timeout_s: float) -> None:
        """The client's handshake.

        Raises:
            TlsError: the other end is not who was expected, or refuses, or does not speak TLS, or is too slow.
            ChannelError: the connection broke, or the migration was aborted.
        """
        deadline = time.monotonic() + timeout_s
        has_answer = False
        try:
            while not self._session.shake_hands():
                self._send_outgoing()
                while (data := super().recv_available(_READ_BYTES)) is None:
                    if time.monotonic() > deadline:
                        raise self._failed(self._side.late(timeout_s))
                    self._idle.check()
                    super().wait_readable(_POLL_S)
                if not data:
                    raise self._failed(self._side.closed())
                if not has_answer and not is_tls(data[0]):
                    raise self._failed(self._side.plain())
                has_answer = True
                self._session.feed(data)
            self._send_outgoing()
        except ssl.SSLError as e:
            with contextlib.suppress(ChannelError):
                self._send_outgoing()  # the alert
            raise self._tls_error(e) from e
        except ChannelError as e:
            if isinstance(e, Aborted | TlsError) or self._idle.abort.is_set() or not self._is_reset:
                raise
            raise self._failed(self._side.closed()) from e

    def _send_outgoing(self) -> None:
        if data := self._session.outgoing():
            super().send([data])

    # -- sending ------------------------------------------------------------------------------------

    def send(self, iov: Sequence[Buffer]) -> None:
        """See `Connection.send`; `iov` lies in memory that this process may read."""
        with self._sending:
            for piece in _gathered(iov):
                if self._is_cut_off:
                    raise ChannelError(f"{self.peer}: connection broke while sending")
                try:
                    super().send([self._session.encrypt(piece)])
                except ssl.SSLError as e:
                    raise self._tls_error(e) from e
                except BaseException as e:
                    self._is_cut_off = True
                    if isinstance(e, ChannelError) and (word := self._last_word()) is not None:
                        raise word from e
                    raise

    def send_file(self, fd: int, offset: int, nbytes: int) -> int:
        """See `Connection.send_file`; it is encrypted here."""
        return self._send_read(fd, offset, min(nbytes, _PIECE_BYTES))

    def _last_word(self) -> TlsError | None:
        """What the other end said before it closed, if nobody reads this connection just now: an alert."""
        if self._idle.abort.is_set() or not self._receiving.acquire(blocking=False):
            return None
        try:
            scratch = memoryview(bytearray(16384))
            while not self._has_ended:
                if self._session.decrypt_into(scratch) is None:
                    if not (data := super().recv_available(_READ_BYTES)):
                        return None
                    self._session.feed(data)
                else:
                    return None  # plaintext, or its end: somebody else's to read, and the connection is lost
        except ssl.SSLError as e:
            return self._tls_error(e)
        except ChannelError:
            return None
        finally:
            self._receiving.release()
        return None

    def finish(self) -> None:
        """See `Connection.finish`: with close_notify."""
        if self._sending.acquire(timeout=_FINISH_S):
            try:
                if not self._is_cut_off:
                    with contextlib.suppress(ChannelError):
                        super().send([self._session.close_notify()])
            finally:
                self._sending.release()
        super().finish()

    def end_marked(self) -> None:
        """See `Connection.end_marked`: OpenSSL calls an end without close_notify an error; no QEMU reads it on main."""

    def end_answered(self) -> None:
        """See `Connection.end_answered`: an alert of OpenSSL's for want of close_notify is not read."""
        self.shutdown()

    # -- receiving ----------------------------------------------------------------------------------

    def recv_into(self, views: Sequence[memoryview], *, at_least: int | None = None) -> int:
        """See `Connection.recv_into`; `views` lie in memory that this process may write."""
        pending = [view for view in views if view]
        wanted = sum(map(len, pending)) if at_least is None else at_least
        done = 0
        with self._receiving:
            while pending:
                got = self._decrypt_into(pending[0])
                if got is None:
                    if done >= wanted:
                        break
                    self._has_ended = not self._fill()
                elif got:
                    done += got
                    pending[0] = pending[0][got:]
                    if not pending[0]:
                        del pending[0]
                else:
                    self._idle.abort.check()
                    if done and done < wanted:
                        raise ChannelError(f"{self.peer} closed the connection after {done} of {wanted} bytes")
                    break
        return done

    def recv_available(self, limit: int = 65536) -> bytes | None:
        """See `Connection.recv_available`."""
        buffer = bytearray(limit)
        with self._receiving:
            while (got := self._decrypt_into(memoryview(buffer))) is None:
                data = super().recv_available(_READ_BYTES)
                if data is None:
                    return None
                self._session.feed(data)
                self._has_ended = not data
        return bytes(buffer[:got])

    def wait_readable(self, timeout_s: float) -> bool:
        """See `Connection.wait_readable`."""
        return self._session.has_input or super().wait_readable(timeout_s)

    @property
    def may_be_cut(self) -> bool:
        """See `Connection.may_be_cut`."""
        return self._has_ended and not self._has_said_end

    def silence_hint(self) -> str:
        """See `Connection.silence_hint`."""
        if self._session.is_server or self._session.bytes_read:
            return ""
        return f"if {self.peer} {self._side.refused()}"

    def _decrypt_into(self, view: memoryview) -> int | None:
        if self._has_ended:
            return 0
        try:
            got = self._session.decrypt_into(view)
        except ssl.SSLError as e:
            raise self._tls_error(e) from e
        if got == 0:
            self._has_ended = self._has_said_end = True
        return got

    def _fill(self) -> bool:
        """Wait for ciphertext; whether any came."""
        got = super().recv_into([self._ciphertext], at_least=1)
        self._session.feed(self._ciphertext[:got])
        return got > 0

    def _tls_error(self, error: ssl.SSLError) -> TlsError:
        return self._failed(self._side.failure(error, self._session))

    def _failed(self, words: str) -> TlsError:
        if not self._has_failed:
            self._has_failed = True
            self._on_failure()
        return TlsError(f"{self.peer}: {words}")


def _gathered(iov: Sequence[Buffer]) -> Iterator[Buffer]:
    """The bytes of `iov` in pieces of at most `_PIECE_BYTES`; small buffers are joined, which is the only copy."""
    group: list[Buffer] = []
    size = 0
    for buffer in iov:
        view = memoryview(flat(buffer))
        while view:
            part = view[: _PIECE_BYTES - size]
            group.append(part)
            size, view = size + len(part), view[len(part) :]
            if size == _PIECE_BYTES:
                yield group[0] if len(group) == 1 else b"".join(group)
                group, size = [], 0
    if group:
        yield group[0] if len(group) == 1 else b"".join(group)
