"""Who may connect, where no certificate says it: networks over tcp, users over a unix socket.

Rules of this file: it answers, it closes nothing and logs nothing. What it is asked about is a connection that was just
accepted, before a byte of it was read.

Sources: SO_PEERCRED and its struct ucred, unix(7); the modes of a unix socket's file, unix(7), "Pathname socket
ownership and permissions".
"""

from __future__ import annotations

import contextlib
import errno
import grp
import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from multifd.errors import UsageError, about
from multifd.transport.address import Uri

_UCRED = struct.Struct("iII")
"""struct ucred: pid, uid, gid."""
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_MOST_ID = (1 << 32) - 2
"""uid_t is 32 bits, and its last value is no user's."""


@dataclass(frozen=True)
class Access:
    """Who may connect to a listener, and whose its socket is. It replaces no TLS: it neither encrypts nor proves.

    Raises:
        UsageError: a network, user, mode or group that cannot be meant, or a socket that is opened to others without
            a word on who they are.
    """

    allow: tuple[str, ...] = ()
    """The networks that may connect over tcp, ``10.0.0.0/8`` or ``fd00::/8`` or one address; empty: all."""
    uids: tuple[int, ...] = ()
    """The users that may connect to a unix socket, besides this process's own and root."""
    socket_mode: int | None = None
    """Of the file of a unix socket that is made here; None: 0600, or 0660 if it has a group."""
    socket_group: str | int | None = None
    """Of that file: a name or a number; None leaves the process's own."""

    def __post_init__(self) -> None:
        _ = self.networks, self.group_id
        for uid in self.uids:
            if not 0 <= uid <= _MOST_ID:
                raise about(UsageError(f"user {uid}, expected 0 to {_MOST_ID}"), "uids")
        if not 0 <= self.mode <= 0o777:
            raise about(UsageError(f"mode {self.mode:#o}, expected 0 to 0777"), "socket_mode")
        if self.socket_group is not None and not self.uids:
            raise about(UsageError("a socket of a group: say which users may connect, too"), "socket_group")
        if self.mode & _OTHERS and not self.uids:
            raise about(
                UsageError(f"mode {self.mode:04o} opens the socket to others: say which users may connect, too"),
                "socket_mode",
            )

    @cached_property
    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """Those of `allow`."""
        return tuple(map(_network, self.allow))

    @property
    def mode(self) -> int:
        """The socket's mode."""
        if self.socket_mode is None:
            return 0o600 if self.socket_group is None else 0o660
        return self.socket_mode

    @cached_property
    def group_id(self) -> int | None:
        """The socket's group, as a number."""
        group = self.socket_group
        if isinstance(group, str) and not group.isdecimal():
            try:
                return grp.getgrnam(group).gr_gid
            except (KeyError, ValueError):
                raise about(UsageError(f"there is no group {group!r} here"), "socket_group") from None
        if group is not None and not 0 <= int(group) <= _MOST_ID:
            raise about(UsageError(f"group {group}, expected 0 to {_MOST_ID}"), "socket_group")
        return None if group is None else int(group)

    def check(self, uri: Uri) -> None:
        """Raise if what is set can mean nothing at an address.

        Args:
            uri: where this process will listen. A descriptor may be a socket of any kind, whose file is another's.

        Raises:
            UsageError: it cannot.
        """
        if self.allow and (uri.path or uri.cid is not None):
            raise about(UsageError(f"networks say who may connect over tcp, not at {uri}"), "allow")
        if not uri.path:
            for setting in ("socket_mode", "socket_group", *(() if uri.fds else ("uids",))):
                if getattr(self, setting) not in (None, ()):
                    raise about(UsageError(f"that is for a unix socket made here, not for {uri}"), setting)
        elif not self.mode & _OTHERS and (others := set(self.uids) - {0, os.geteuid()}):
            raise about(
                UsageError(
                    f"users {_listed(others)} may connect, but mode {self.mode:04o} opens {uri} to its owner alone: "
                    "give it a group, or another mode"
                ),
                "uids",
            )

    def objection(self, sock: socket.socket) -> str:
        """Why who has connected may not, in words that begin with who it is; empty if he may.

        Args:
            sock: just accepted.

        Raises:
            OSError: the connection is gone.
        """
        if sock.family == socket.AF_UNIX:
            _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            allowed = {0, os.geteuid(), *self.uids}
            if uid not in allowed:
                return f"a process of user {uid}: only users {_listed(allowed)} may connect here"
        elif self.allow and sock.family in (socket.AF_INET, socket.AF_INET6):
            peer = ip_address(sock.getpeername()[0])
            if not any(peer in network for network in self.networks):
                return f"a client at {peer}: only {', '.join(self.allow)} may connect here"
        return ""


@lru_cache
def ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as getpeername gives it: without its scope, and as IPv4 if it came in over IPv4.

    Raises:
        ValueError: it is none.
    """
    found = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found


def set_owner(path: str, access: Access) -> None:
    """Give the file of a socket on which nobody listens yet its group and mode; through no link.

    Raises:
        OSError: the group is none of this process's, or the file is gone.
    """
    file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        mode = os.fstat(file).st_mode
        if not stat.S_ISSOCK(mode):
            raise OSError(errno.EEXIST, "its file was replaced by another meanwhile")
        itself = f"/proc/self/fd/{file}"
        if access.group_id is not None:
            try:
                os.chown(itself, -1, access.group_id)
            except OSError as e:
                raise OSError(e.errno, f"group {access.socket_group}: {e.strerror}") from e
        if stat.S_IMODE(mode) != access.mode or access.group_id is not None:
            os.chmod(itself, access.mode)
    finally:
        os.close(file)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_network(text)
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise about(
            UsageError(f"network {text!r}: expected an address, or one with its length, such as 10.0.0.0/8"), "allow"
        ) from None
    raise about(UsageError(f"network {text!r} has bits behind its length: {meant} or another length?"), "allow")


def _listed(uids: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(uids)))
