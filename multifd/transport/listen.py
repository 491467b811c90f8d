"""Listening at a URI."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator

from multifd.errors import ChannelError
from multifd.transport.address import Uri
from multifd.transport.resolve import resolve

_BACKLOG = 512  # 255 channels, main, and room for strangers
_RESOLVE_S = 10.0
"""How long the name of an own address may take to look up."""
_LOCK_S = 5.0
"""How long another process may take to put its socket into the same folder."""
_NOT_THE_LISTENER = frozenset(
    {errno.EAGAIN, errno.ECONNABORTED, errno.EINTR, errno.EPERM, errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT,
     errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.ETIMEDOUT}
)  # fmt: skip
"""What accept reports of the connection that it would have given; accept(2), "Error handling"."""
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Exhausted(Exception):
    """This process or machine can hold no more connections at the moment; the listener itself is sound."""


class Listener:
    """A listening socket. A unix socket's stale file is replaced, its own removed at the end.

    Without a host, and at ``[::]``, it listens on all addresses of IPv4 and IPv6, as QEMU does.

    Args:
        uri: where; with port 0 the kernel chooses, and `uri` of this object says what.

    Raises:
        ChannelError: the address cannot be had.
    """

    def __init__(self, uri: Uri) -> None:
        self._file: tuple[int, int] | None = None
        try:
            if uri.path:
                self.sock = _listen_unix(uri.path)
                self._file = _identity(uri.path)
            else:
                self.sock = _listen_tcp(uri)
        except OSError as e:
            raise ChannelError(f"cannot listen on {uri}: {e.strerror or e}") from e
        self.sock.setblocking(False)
        self.uri = uri if uri.path else Uri(host=uri.host, port=self.sock.getsockname()[1])

    @classmethod
    def adopt(cls, sock: socket.socket) -> Listener:
        """A socket that listens already, such as one that systemd handed over; its file, if it has one, stays.

        Args:
            sock: taken over.

        Raises:
            ChannelError: it does not listen, or is neither TCP nor a unix stream socket.
        """
        listener = cls.__new__(cls)
        try:
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ChannelError(f"descriptor {sock.fileno()} does not listen")
            if sock.type != socket.SOCK_STREAM:
                raise ChannelError(f"descriptor {sock.fileno()} is no stream socket")
            address = sock.getsockname()
            if sock.family == socket.AF_UNIX:
                # An abstract name is shown as ss and systemd do.
                name = address if isinstance(address, str) else "@" + os.fsdecode(address[1:])
                listener.uri = Uri(path=name or "@")
            elif sock.family in (socket.AF_INET, socket.AF_INET6):
                listener.uri = Uri(host=address[0], port=address[1])
            else:
                raise ChannelError(f"descriptor {sock.fileno()} is neither a TCP nor a unix socket")
        except OSError as e:
            raise e if isinstance(e, ChannelError) else ChannelError(f"cannot listen: {e.strerror}") from e
        listener._file = None
        listener.sock = sock
        sock.setblocking(False)
        return listener

    @property
    def is_local(self) -> bool:
        """Whether only processes of this host can connect: at a unix socket.

        Not at a loopback address: whatever comes from another host through ssh or stunnel comes from there.
        """
        return bool(self.uri.path)

    def accept(self) -> tuple[socket.socket, str] | None:
        """A connection and its peer's name, or None if none is waiting.

        Raises:
            Exhausted: there is no descriptor or memory for it; it goes on waiting.
            ChannelError: the listener broke.
        """
        try:
            sock, address = self.sock.accept()
        except OSError as e:
            if e.errno in _NOT_THE_LISTENER:
                return None
            if e.errno in _EXHAUSTED:
                raise Exhausted(e.strerror) from e
            raise ChannelError(f"cannot accept on {self.uri}: {e.strerror}") from e
        return sock, self._name(address)

    def _name(self, address: object) -> str:
        if not isinstance(address, tuple):
            return str(self.uri)
        host, port = address[0].removeprefix("::ffff:"), address[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def close(self) -> None:
        """Stop listening; connections that nobody accepted are reset. Twice is harmless.

        The socket's file goes first, and only if it is still this one's: as long as it is there, who wants the same
        path finds it in use.
        """
        if self._file is not None:
            with contextlib.suppress(OSError), _folder_lock(self.uri.path):
                if _identity(self.uri.path) == self._file:
                    os.unlink(self.uri.path)
            self._file = None
        self.sock.close()


def _listen_unix(path: str) -> socket.socket:
    with _folder_lock(path):
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.bind(path)
            sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
        return sock


def _remove_stale(path: str) -> None:
    """Remove a socket's file on which nobody listens.

    Raises:
        OSError: somebody does, or it is something else.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "the path exists and is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            # Connecting to a unix socket waits for nothing but room in its backlog, and then somebody listens.
            probe.setblocking(False)
            code = probe.connect_ex(path)
        if code == errno.ECONNREFUSED:
            os.unlink(path)
        elif code in (0, errno.EAGAIN, errno.EINPROGRESS):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        elif code != errno.ENOENT:
            raise OSError(code, os.strerror(code))


@contextlib.contextmanager
def _folder_lock(path: str) -> Iterator[None]:
    """Hold the lock of a socket's folder: between a look at its file and what follows from it no other acts.

    Between processes of multifd only. Where the folder cannot be read there is no lock.

    Raises:
        OSError: another holds it for too long.
    """
    try:
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        yield
        return
    try:
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(errno.EADDRINUSE, "its folder is locked by another process") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(folder)


def _identity(path: str) -> tuple[int, int]:
    info = os.lstat(path)
    return info.st_dev, info.st_ino


def _listen_tcp(uri: Uri) -> socket.socket:
    if uri.host in ("", "::"):
        return _listen_everywhere(uri)
    failure = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, address in resolve(uri, _RESOLVE_S, flags=socket.AI_PASSIVE):
        try:
            return socket.create_server(address, family=family, backlog=_BACKLOG)
        except OSError as e:
            failure = e
    raise failure


def _listen_everywhere(uri: Uri) -> socket.socket:
    """At every address of both families, or of IPv4 on a machine without IPv6."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("::", uri.port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
        except OSError as e:
            if uri.host or e.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    elif uri.host:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    return socket.create_server(("0.0.0.0", uri.port), backlog=_BACKLOG)
