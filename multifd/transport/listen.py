"""Listening at a URI."""

from __future__ import annotations

import errno
import os
import socket

from multifd.errors import ChannelError, UsageError, about
from multifd.transport import handed
from multifd.transport.access import Access, ip_address
from multifd.transport.address import Uri
from multifd.transport.bind import bind_tcp, bind_unix, bind_vsock, identity, remove_own

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
                self.sock = bind_unix(uri.path, self._access)
                self._file = identity(uri.path)
            elif uri.cid is not None:
                self.sock = bind_vsock(uri.cid, uri.port)
            else:
                self.sock = bind_tcp(uri)
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
            remove_own(self.uri.path, self._file)
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
