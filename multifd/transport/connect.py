"""Connecting to a listener."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator

from multifd.errors import ChannelError
from multifd.transport.address import Uri
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.transport.limit import RateLimit


def resolve(uri: Uri, flags: int = 0) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    return socket.getaddrinfo(  # type: ignore[return-value]
        uri.host or None, uri.port, type=socket.SOCK_STREAM, flags=flags
    )


def connect(
    uri: Uri, silence: IdleTimer, *, timeout_s: float, limit: RateLimit | None = None, retry: bool = False
) -> Connection:
    """Connect to a listener.

    Args:
        uri: of the listener.
        silence: the migration's.
        timeout_s: how long to try.
        limit: for what is sent.
        retry: go on while nobody listens yet, so that it does not matter which end starts first.

    Raises:
        ChannelError: nobody answered in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return Connection(_connect_once(uri, deadline), silence, str(uri), limit)
        except OSError as e:
            temporary = isinstance(e, ConnectionRefusedError | FileNotFoundError | ConnectionResetError)
            left = deadline - time.monotonic()
            if not (retry and temporary) or left <= 0:
                reason = "timed out" if isinstance(e, TimeoutError) else e.strerror or str(e)
                raise ChannelError(f"cannot connect to {uri} within {timeout_s:g} s: {reason}") from e
        silence.stopped.wait(min(0.05, max(left, 0)))
        silence.check()
        silence.touch()


def _connect_once(uri: Uri, deadline: float) -> socket.socket:
    if uri.path:
        targets: Iterator[tuple[int, object]] = iter([(socket.AF_UNIX, uri.path)])
    else:
        targets = iter([(info[0], info[4]) for info in resolve(uri)])
    failure: OSError = ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    for family, address in targets:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(max(deadline - time.monotonic(), 0.01))
            sock.connect(address)  # type: ignore[arg-type]
            return sock
        except OSError as e:
            sock.close()
            failure = e
    raise failure
