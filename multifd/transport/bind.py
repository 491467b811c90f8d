"""Listening sockets at an address of each kind. What goes wrong is an `OSError` with words."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator

from multifd.transport.access import Access, ip_address, set_owner
from multifd.transport.address import Uri
from multifd.transport.resolve import resolve

_ANY_OF_IPV6 = ip_address("::")
_BACKLOG = 512  # 255 channels, main, and room for strangers
_RESOLVE_S = 10.0
"""How long the name of an own address may take to look up."""
_LOCK_S = 5.0
"""How long another process may take to put its socket into the same folder."""


def bind_vsock(cid: int, port: int) -> socket.socket:
    """Of a machine's own CID, or any; port 4294967295 lets the kernel choose."""
    sock = socket.socket(socket.AF_VSOCK)
    try:
        sock.bind((cid, port))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def bind_unix(path: str, access: Access) -> socket.socket:
    """A stale file is replaced; mode and group are those of `access` before anybody can connect."""
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
            set_owner(path, access)
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


def identity(path: str) -> tuple[int, int]:
    """Of a socket's file, by which its owner knows it again."""
    info = os.lstat(path)
    return info.st_dev, info.st_ino


def remove_own(path: str, own: tuple[int, int]) -> None:
    """Remove a socket's file, unless another process has put its own there meanwhile.

    Args:
        path: the file's.
        own: the `identity` that it had.
    """
    with contextlib.suppress(OSError), _folder_lock(path):
        if identity(path) == own:
            os.unlink(path)


def bind_tcp(uri: Uri) -> socket.socket:
    """Without a host, and at ``[::]``, on all addresses of IPv4 and IPv6, as QEMU does; port 0: the kernel chooses."""
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
