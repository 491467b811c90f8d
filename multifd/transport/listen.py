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

from multifd.errors import ChannelError, UsageError, about
from multifd.transport import handed
from multifd.transport.access import Access, ip_address, set_owner
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
_ANY_OF_IPV6 = ip_address("::")
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Exhausted(Exception):
    """This process or machine can hold no more connections at the moment; the listener itself is sound."""


class Listener:
    """A listening socket. A unix socket's stale file is replaced, its own removed at the end.

    Without a host, and at ``[::]``, it listens on all addresses of IPv4 and IPv6, as QEMU does.

    Args:
        uri: where; with tcp's port 0, and vsock's 4294967295, the kernel chooses, and `uri` of this object says what.
            A descriptor is taken over and closed at the end; `uri` is its address then, if it has one.
        access: who may connect.

    Raises:
        ChannelError: the address cannot be had.
        UsageError: the descriptor is no listening socket, or `access` means nothing there.
    """

    def __init__(self, uri: Uri, access: Access | None = None) -> None:
        self._access = access or Access()
        self._access.check(uri)
        uri.refuse_folder()
        self._file: tuple[int, int] | None = None
        try:
            if uri.fds:
                self.sock = _adopt(uri, self._access)
            elif uri.path:
                self.sock = _listen_unix(uri.path, self._access)
                self._file = _identity(uri.path)
            elif uri.cid is not None:
                self.sock = _listen_vsock(uri.cid, uri.port)
            else:
                self.sock = _listen_tcp(uri)
        except OSError as e:
            raise ChannelError(f"cannot listen on {uri}: {e.strerror or e}") from e
        self.sock.setblocking(False)
        self.uri = _address_of(self.sock, uri)

    @classmethod
    def adopt(cls, sock: socket.socket, access: Access | None = None) -> Listener:
        """A socket that listens already, such as one that systemd handed over; its file, if it has one, stays.

        Args:
            sock: taken over.
            access: who may connect.

        Raises:
            ChannelError: it does not listen, or is neither TCP nor a unix stream socket.
            UsageError: `access` means nothing there.
        """
        listener = cls.__new__(cls)
        listener._access = access or Access()
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
        _check_kind(sock, str(listener.uri), listener._access)
        listener._file = None
        listener.sock = sock
        sock.setblocking(False)
        return listener

    def check(self, access: Access) -> None:
        """Raise unless others may be allowed from now on.

        Raises:
            UsageError: `access` means nothing here, or the file of the socket would have to change.
        """
        if (access.mode, access.group_id) != (self._access.mode, self._access.group_id):
            raise about(
                UsageError(f"the mode and group of {self.uri} stay as long as it is listened at"),
                "socket_mode" if access.mode != self._access.mode else "socket_group",
            )
        if self._file is not None:
            access.check(self.uri)
        else:
            _check_kind(self.sock, str(self.uri), access)

    def reconfigure(self, access: Access) -> None:
        """Allow others from now on. From any thread.

        Args:
            access: something that `check` takes.
        """
        self._access = access

    @property
    def is_local(self) -> bool:
        """Whether only processes of this host can connect: at a unix socket.

        Not at a loopback address: whatever comes from another host through ssh or stunnel comes from there.
        """
        return self.sock.family == socket.AF_UNIX

    @property
    def is_exposed(self) -> bool:
        """Whether what arrives has crossed a network: at any address of tcp but the loopback's."""
        if self.sock.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        return not ip_address(self.sock.getsockname()[0]).is_loopback

    def fileno(self) -> int:
        """What is readable when somebody connects."""
        return self.sock.fileno()

    def objection(self, sock: socket.socket) -> str:
        """Why who has connected may not, in words; empty if he may.

        Args:
            sock: from `accept`.

        Raises:
            OSError: the connection is gone.
        """
        return self._access.objection(sock)

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
        if self.sock.family == socket.AF_VSOCK:
            return f"vsock:{address[0]}:{address[1]}"
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


def origin_of(peer: str) -> str:
    """Where a connection comes from: what the names of all connections of one source begin with.

    Args:
        peer: its name, as a listener gives it: the host's address without the port, vsock's machine; one for all at
            a unix socket, and for all that were handed over.
    """
    return peer.rpartition(":")[0]


def listen(uri: Uri, access: Access | None = None) -> Listener | handed.HandedConnections:
    """Where one migration comes in: a `Listener`, or the connections themselves if their descriptors were handed over.

    Args:
        uri: a single descriptor is a listening socket.
        access: who may connect; nobody can to connections that exist.

    Raises:
        ChannelError: the address cannot be had.
        UsageError: the descriptors are something else, or `access` means nothing there.
    """
    if len(uri.fds) > 1:
        if access not in (None, Access()):
            raise UsageError(f"{uri}: who may connect is said of a listening socket; these are connected already")
        return handed.HandedConnections(uri)
    return Listener(uri, access)


def _adopt(uri: Uri, access: Access) -> socket.socket:
    if len(uri.fds) > 1:
        raise UsageError(f"{uri}: connections that exist serve one migration; expected one listening socket")
    sock = handed.take(uri.fds[0])
    try:
        _check_listens(sock, uri)
        _check_kind(sock, str(uri), access)
    except UsageError:
        sock.detach()
        raise
    return sock


def _check_listens(sock: socket.socket, uri: Uri) -> None:
    if not handed.listens(sock):
        raise UsageError(
            f"{uri} does not listen. One connection is too few for a migration, which has main and its channels: hand "
            "over a listening socket, or where one migration is received a connected one for each (fd:N,N,...)"
        )


def _check_kind(sock: socket.socket, name: str, access: Access) -> None:
    """Raise `UsageError` if what is set can mean nothing at a socket that was made elsewhere."""
    if access.socket_mode is not None or access.socket_group is not None:
        raise about(
            UsageError(f"that is for a unix socket made here, not for {name}"),
            "socket_group" if access.socket_mode is None else "socket_mode",
        )
    if access.allow and sock.family not in (socket.AF_INET, socket.AF_INET6):
        raise about(UsageError(f"networks say who may connect over tcp, which {name} is not"), "allow")
    if access.uids and sock.family != socket.AF_UNIX:
        raise about(UsageError(f"users may connect to a unix socket, which {name} is not"), "uids")


def _address_of(sock: socket.socket, uri: Uri) -> Uri:
    """Where it listens; what was asked for as far as that says it."""
    name = sock.getsockname()
    if uri.path:
        return uri
    if sock.family == socket.AF_UNIX:
        return Uri(path=name) if isinstance(name, str) and name else uri
    if sock.family == socket.AF_VSOCK:
        return Uri(cid=name[0] if uri.fds else uri.cid, port=name[1])
    return Uri(host=name[0] if uri.fds else uri.host, port=name[1])


def _listen_vsock(cid: int, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_VSOCK)
    try:
        sock.bind((cid, port))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _listen_unix(path: str, access: Access) -> socket.socket:
    with _folder_lock(path):
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX)
        try:
            os.fchmod(sock.fileno(), access.mode)  # which its file is made with, less the umask (unix(7), Linux)
            sock.bind(path)
        except BaseException:
            sock.close()
            raise
        try:
            set_owner(path, access)  # before anybody can connect
            sock.listen(_BACKLOG)
        except BaseException:
            os.unlink(path)
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
    if not uri.host or _is_any_of_ipv6(uri.host):
        return _listen_everywhere(uri)
    failure = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, address in resolve(uri, _RESOLVE_S, flags=socket.AI_PASSIVE):
        try:
            return _create_server(address, family)
        except OSError as e:
            failure = e
    raise failure


def _is_any_of_ipv6(host: str) -> bool:
    """Whether it is ``::``, however it is written."""
    with contextlib.suppress(ValueError):
        return ip_address(host) == _ANY_OF_IPV6
    return False


def _listen_everywhere(uri: Uri) -> socket.socket:
    """At every address of both families, or of IPv4 on a machine without IPv6."""
    if socket.has_dualstack_ipv6():
        try:
            return _create_server(("::", uri.port), socket.AF_INET6, dualstack_ipv6=True)
        except OSError as e:
            if uri.host or e.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    elif uri.host:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    return _create_server(("0.0.0.0", uri.port), socket.AF_INET)


def _create_server(
    address: tuple[str, int], family: socket.AddressFamily, *, dualstack_ipv6: bool = False
) -> socket.socket:
    try:
        return socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=dualstack_ipv6)
    except OSError as e:
        if not e.errno:
            raise
        raise OSError(e.errno, os.strerror(e.errno)) from e  # Python has added what it was about to do
