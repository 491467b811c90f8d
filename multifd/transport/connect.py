"""Connecting to a listener.

Rules of this file: addresses are tried one after the other, never two at once: a QEMU up to 7.2 takes the first
connection it sees for main, so one that is only tried must not get through beside another. Nothing blocks for longer
than `_POLL_S`, so an abort ends it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable

from multifd.errors import ChannelError, UsageError
from multifd.transport import handed
from multifd.transport.address import Uri
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.transport.limit import RateLimit
from multifd.transport.resolve import Address, resolve
from multifd.transport.tls import TlsClient
from multifd.transport.tls_connection import TlsConnection

_POLL_S = 0.05
_TEMPORARY = (ConnectionRefusedError, FileNotFoundError, ConnectionResetError, ConnectionAbortedError)
"""What a destination answers that does not listen yet."""


def connect(
    uri: Uri,
    idle: IdleTimer,
    *,
    timeout_s: float,
    limit: RateLimit | None = None,
    retry: bool = False,
    number: int = 0,
    tls: TlsClient | None = None,
) -> Connection:
    """Connect to a listener, or take a connection that was handed over.

    Args:
        uri: of the listener. If its host has several addresses, each gets an equal share of the time that is left,
            so that one behind a dead route does not take it all.
        idle: the migration's; while nothing is connected it does not run.
        timeout_s: how long to try.
        limit: for what is sent.
        retry: go on while nobody listens yet, so that it does not matter which end starts first.
        number: which of the migration's connections it is, 0 for main: the place of its descriptor in `uri`.
        tls: of an encrypted connection; the handshake has a time of its own.

    Raises:
        ChannelError: nobody answered in time, or the migration was aborted.
        TlsError: somebody answered, and TLS with him failed.
        UsageError: the time cannot be meant, the descriptor is no connected socket, or `uri` is a folder.
    """
    if not timeout_s > 0:
        raise UsageError(f"connect timeout: got {timeout_s}, expected seconds above 0")
    uri.refuse_folder()
    if uri.fds:
        sock, peer = handed.take_connected(uri.fds[number]), f"fd:{uri.fds[number]}"
    else:
        attempt, peer = _Attempt(uri, idle, time.monotonic() + timeout_s), str(uri)
        try:
            sock = attempt.run(retry=retry)
        except OSError as e:
            if isinstance(e, ChannelError):
                raise
            raise ChannelError(f"cannot connect to {uri} within {timeout_s:g} s: {attempt.describe(e)}") from e
    return Connection(sock, idle, peer, limit) if tls is None else _encrypted(sock, idle, peer, limit, tls)


def _encrypted(
    sock: socket.socket, idle: IdleTimer, peer: str, limit: RateLimit | None, tls: TlsClient
) -> TlsConnection:
    connection = TlsConnection(sock, tls.session(), tls.side(), idle, peer, limit, tls.count_failure)
    try:
        connection.shake_hands(tls.handshake_timeout_s)
    except BaseException:
        connection.close()
        raise
    return connection


class _Attempt:
    """One call of `connect`."""

    def __init__(self, uri: Uri, idle: IdleTimer, deadline: float) -> None:
        self._uri, self._idle, self._deadline = uri, idle, deadline
        self._failures: dict[str, OSError] = {}

    def run(self, *, retry: bool) -> socket.socket:
        """Try every address, again and again if that may help.

        Raises:
            OSError: the last address's failure.
        """
        addresses = self._resolve()
        while True:
            failure: OSError = OSError(errno.ENOENT, "it has no address")
            hangs: list[Address] = []
            may_help = False
            for i, address in enumerate(addresses):
                share = self._left() / (len(addresses) - i)
                try:
                    return self._connect(address, time.monotonic() + share)
                except ChannelError:
                    raise  # aborted
                except OSError as e:
                    failure = self._remember(address, e)
                    may_help = may_help or isinstance(e, _TEMPORARY)
                    if isinstance(e, TimeoutError):
                        hangs.append(address)
            if not (retry and may_help) or self._left() <= 0:
                raise failure
            # What did not answer at all gets no time again as long as others refuse at once.
            addresses = [address for address in addresses if address not in hangs]
            self._idle.abort.wait(min(_POLL_S, self._left()))
            self._check()

    def _remember(self, address: Address, error: OSError) -> OSError:
        """What this address is said to have answered: its last word, not that there was no time for another."""
        name = _name(address)
        if not (isinstance(error, TimeoutError) and isinstance(self._failures.get(name), _TEMPORARY)):
            self._failures[name] = error
        return self._failures[name]

    def describe(self, error: OSError) -> str:
        """Why it failed: each address's reason, where there are several."""
        if len(self._failures) > 1:
            return "; ".join(f"{name}: {_reason(failure)}" for name, failure in self._failures.items())
        return _reason(error)

    def _resolve(self) -> list[Address]:
        if self._uri.path:
            return [(socket.AF_UNIX, self._uri.path)]
        if self._uri.cid is not None:
            return [(socket.AF_VSOCK, (self._uri.cid, self._uri.port))]
        return resolve(self._uri, self._left(), self._check)

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _check(self) -> None:
        self._idle.check()
        self._idle.touch()

    def _connect(self, address: Address, deadline: float) -> socket.socket:
        family, where = address
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            code = sock.connect_ex(where)
            while code == errno.EAGAIN:  # a unix socket whose backlog is full at the moment
                self._wait(lambda slice_s: self._idle.abort.wait(slice_s), deadline)
                code = sock.connect_ex(where)
            if code == errno.EINPROGRESS:
                ready = select.poll()
                ready.register(sock, select.POLLOUT)
                while not self._wait(lambda slice_s: ready.poll(slice_s * 1000), deadline):
                    pass
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            return sock
        except BaseException:
            sock.close()
            raise

    def _wait(self, wait: Callable[[float], object], deadline: float) -> bool:
        """Wait for one slice; whether `wait` says that it is over.

        Raises:
            TimeoutError: the deadline has passed.
            ChannelError: the migration was aborted.
        """
        # What has come is looked at even when the time is up: a refusal says more than that it is late.
        is_over = bool(wait(min(_POLL_S, max(0.0, deadline - time.monotonic()))))
        self._check()
        if not is_over and time.monotonic() >= deadline:
            raise TimeoutError(errno.ETIMEDOUT, "timed out")
        return is_over


def _reason(error: OSError) -> str:
    return (
        "timed out"
        if isinstance(error, TimeoutError) and error.errno == errno.ETIMEDOUT
        else error.strerror or str(error)
    )


def _name(address: Address) -> str:
    return str(address[1][0]) if isinstance(address[1], tuple) else str(address[1])
