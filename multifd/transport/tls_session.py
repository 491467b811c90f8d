"""One TLS session, sans-IO: ciphertext that arrived goes in, ciphertext to be sent comes out.

OpenSSL works on memory here, not on the socket: one system call moves a whole packet's ciphertext, and nothing of
OpenSSL ever waits. Against an `SSLSocket` (a read call for each record's header and one for its body, a write for each
record) a receiver took two thirds of the CPU time, a sender as much (two cores, 2026, benchmarks/tls.py has today's).

Rules of this file: every call into OpenSSL is made under the session's lock. Two threads in one session crash the
interpreter (CPython issue 124984).
"""

from __future__ import annotations

import contextlib
import ssl
import threading

from multifd.pages import Buffer
from multifd.transport import certificate as cert


class TlsSession:
    """The state of one connection's TLS.

    Thread rule: any thread; what `encrypt` gave must be sent in the order in which it was given.

    Args:
        context: the side's.
        is_server: whether the other end begins.
        hostname: what the client asks for and checks, None for nothing.
    """

    def __init__(self, context: ssl.SSLContext, *, is_server: bool, hostname: str | None = None) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._in, self._out, server_side=is_server, server_hostname=hostname)
        self._lock = threading.Lock()
        self._ahead = b""
        self._error: ssl.SSLError | None = None
        self.is_server, self.is_shaken = is_server, False
        self.bytes_read = 0
        """Plaintext that was given out."""

    def shake_hands(self) -> bool:
        """Go on with the handshake by what has arrived; whether it is complete on this side.

        Under TLS 1.3 a server's refusal of the client's certificate comes after that, as the first thing read.

        Raises:
            ssl.SSLError: it failed; `outgoing` has what to tell the other end.
        """
        with self._lock:
            try:
                self._ssl.do_handshake()
            except ssl.SSLWantReadError:
                return False
            self.is_shaken = True
            return True

    def feed(self, data: Buffer) -> None:
        """What has arrived."""
        with self._lock:
            self._in.write(data)

    def outgoing(self) -> bytes:
        """What OpenSSL wants to be sent: of the handshake, alerts."""
        with self._lock:
            return self._out.read()

    def encrypt(self, data: Buffer) -> bytes:
        """Everything that must be sent now so that the other end reads `data`."""
        with self._lock:
            view = memoryview(data)
            while view:
                view = view[self._ssl.write(view) :]
            return self._out.read()

    def close_notify(self) -> bytes:
        """What tells the other end that nothing comes any more."""
        with self._lock:
            with contextlib.suppress(ssl.SSLError):  # its answer is not waited for: a QEMU gives none
                self._ssl.unwrap()
            return self._out.read()

    def decrypt_into(self, view: memoryview) -> int | None:
        """As much of the plaintext that has arrived as `view` takes, which is not empty.

        Returns:
            Its bytes; None if more must be fed first, 0 at the end (close_notify).

        Raises:
            ssl.SSLError: an alert, or what arrived is damaged.
        """
        if self._ahead:
            got = min(len(view), len(self._ahead))
            view[:got], self._ahead = self._ahead[:got], self._ahead[got:]
        else:
            with self._lock:
                filled = self._fill(view)
            if not filled:
                return filled
            got = filled
        self.bytes_read += got
        return got

    def _fill(self, view: memoryview) -> int | None:
        """Record after record: a QEMU sends each page of method none as one."""
        if self._error is not None:
            raise self._error
        got, read = 0, self._ssl.read
        try:
            while got < len(view) and (more := int(read(len(view) - got, view[got:]))):
                got += more
        except ssl.SSLWantReadError:
            return got or None
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError as e:
            self._error = e  # what came before it is given out first
            if not got:
                raise
        return got

    def look_ahead(self) -> bool | None:
        """Whether plaintext has arrived; None if more must be fed to know, False at the end.

        Raises:
            ssl.SSLError: see `decrypt_into`.
        """
        if not self._ahead:
            buffer = bytearray(16384)  # a record's, RFC 8446 section 5.1
            got = self.decrypt_into(memoryview(buffer))
            if not got:
                return None if got is None else False
            self.bytes_read -= got
            self._ahead = bytes(buffer[:got])
        return True

    @property
    def has_input(self) -> bool:
        """Whether something was fed that nobody has looked at: a read may give something without more."""
        with self._lock:
            return bool(self._ahead) or self._ssl.pending() > 0 or self._in.pending > 0

    def peer_certificate(self) -> cert.Certificate:
        """The other end's, checked; empty if none was asked for or shown."""
        with self._lock:
            return self._ssl.getpeercert() or {}

    def shown_certificate(self) -> cert.Certificate:
        """The one that the other end showed, whether it passed or not; empty if that cannot be known."""
        with self._lock:
            return cert.shown(self._ssl)

    def describe(self) -> str:
        """Version and cipher suite, of a complete handshake."""
        with self._lock:
            cipher = self._ssl.cipher()
            return f"{self._ssl.version()}, {cipher[0] if cipher else 'no cipher'}"
