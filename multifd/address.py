"""QEMU's URIs, and how to listen and connect at them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

from multifd.channel import Connection, RateLimit, Silence
from multifd.errors import ChannelError, UsageError

_BACKLOG = 512  # 255 channels, main, and room for strangers


@dataclass(frozen=True)
class Uri:
    """Where to connect or listen, as QEMU writes it: ``tcp:HOST:PORT`` or ``unix:PATH``."""

    path: str = ""
    """Of a unix socket; empty for tcp."""
    host: str = ""
    """Empty: every address of this host when listening, the loopback when connecting."""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Uri:
        """Read a URI; an IPv6 host stands in brackets.

        Raises:
            UsageError: not one of the two forms.
        """
        kind, _, rest = text.partition(":")
        if kind == "unix" and rest and "\0" not in rest:
            if len(os.fsencode(rest)) > 107:  # sun_path, unix(7)
                raise UsageError(f"URI {text!r}: a unix socket's path has at most 107 bytes")
            return cls(path=rest)
        host, colon, port = rest.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if kind == "tcp" and colon and port.isascii() and port.isdecimal() and int(port) < 65536:
            if bracketed:
                host = host[1:-1]
            if (bracketed or ":" not in host) and _is_host(host):
                return cls(host=host, port=int(port))
        raise UsageError(
            f"URI {text!r}: expected tcp:HOST:PORT (an IPv6 host in brackets, port 0 to 65535) or unix:PATH"
        )

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"tcp:{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def _is_host(host: str) -> bool:
    """Whether getaddrinfo takes it; of others it raises a UnicodeError or a plain ValueError."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return "\0" not in host


class Listener:
    """A listening socket. A unix socket's stale file is replaced, its own removed at the end.

    Args:
        uri: where; with port 0 the kernel chooses, and `uri` of this object says what.

    Raises:
        ChannelError: the address cannot be had.
    """

    def __init__(self, uri: Uri) -> None:
        try:
            self.sock = _listen_unix(uri.path) if uri.path else _listen_tcp(uri)
        except OSError as e:
            raise ChannelError(f"cannot listen on {uri}: {e.strerror or e}") from e
        self.sock.setblocking(False)
        self.uri = uri if uri.path else Uri(host=uri.host, port=self.sock.getsockname()[1])

    @property
    def is_local(self) -> bool:
        """Whether only processes of this host can connect: a unix socket, or a loopback address."""
        if self.uri.path:
            return True
        address: str = self.sock.getsockname()[0]
        return address.startswith("127.") or address == "::1"

    def accept(self) -> tuple[socket.socket, str] | None:
        """A connection and its peer's name, or None if none is waiting."""
        try:
            sock, address = self.sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as e:
            raise ChannelError(f"cannot accept on {self.uri}: {e.strerror}") from e
        return sock, f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(self.uri)

    def close(self) -> None:
        """Stop listening; connections that nobody accepted are reset."""
        self.sock.close()
        if self.uri.path:
            with contextlib.suppress(OSError):
                os.unlink(self.uri.path)


def _listen_unix(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "the path exists and is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(path)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _listen_tcp(uri: Uri) -> socket.socket:
    family, _, _, _, address = _resolve(uri, socket.AI_PASSIVE)[0]
    return socket.create_server(address, family=family, backlog=_BACKLOG, reuse_port=False)


def _resolve(uri: Uri, flags: int = 0) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    return socket.getaddrinfo(  # type: ignore[return-value]
        uri.host or None, uri.port, type=socket.SOCK_STREAM, flags=flags
    )


def connect(
    uri: Uri, silence: Silence, *, timeout_s: float, limit: RateLimit | None = None, retry: bool = False
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
        targets = iter([(info[0], info[4]) for info in _resolve(uri)])
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
