"""Listening at a URI."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from multifd.errors import ChannelError
from multifd.transport.address import Uri
from multifd.transport.connect import resolve

_BACKLOG = 512  # 255 channels, main, and room for strangers


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
    family, _, _, _, address = resolve(uri, socket.AI_PASSIVE)[0]
    return socket.create_server(address, family=family, backlog=_BACKLOG, reuse_port=False)
