"""Sockets that were handed over, and vsock: as far as a machine has it, and by a stand-in."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import multifd
from multifd.errors import ChannelError, UsageError
from multifd.transport.access import Access
from multifd.transport.address import Uri
from multifd.transport.connect import connect
from multifd.transport.handed import HandedConnections
from multifd.transport.idle import IdleTimer
from multifd.transport.listen import Listener, listen

DEADLINE_S = 30
CLOSED = 10**6
"""No process here has so many descriptors."""


def handed(sock: socket.socket) -> int:
    """A descriptor as a manager leaves it: this process' alone, and no longer the socket object's."""
    return sock.detach()


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.fixture
def listening() -> Iterator[int]:
    fd = handed(socket.create_server(("127.0.0.1", 0)))
    yield fd
    with contextlib.suppress(OSError):
        os.close(fd)


# -- listening sockets ---------------------------------------------------------------------------------


def test_a_listening_socket_is_taken_over(listening):
    listener = Listener(Uri(fds=(listening,)))
    assert listener.uri.host == "127.0.0.1"  # where it listens, not which number it had
    assert not os.get_inheritable(listening)
    connect(listener.uri, IdleTimer(DEADLINE_S), timeout_s=DEADLINE_S).close()
    listener.close()
    assert not is_open(listening)


@pytest.mark.parametrize("path", ["sock", "\0multifd-test-{}"])
def test_a_listening_unix_sockets_file_is_its_makers(tmp_path, path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.format(os.getpid()) if "\0" in path else str(tmp_path / path))
        made.listen()
        fd = handed(made)
    listener = Listener(Uri(fds=(fd,)), Access(uids=(12345,)))  # its mode is its maker's affair, too
    assert listener.is_local
    assert str(listener.uri) == (f"fd:{fd}" if "\0" in path else f"unix:{tmp_path}/{path}")
    before = sorted(os.listdir(tmp_path))
    listener.close()
    assert sorted(os.listdir(tmp_path)) == before


def not_open() -> int:
    return CLOSED


def a_file() -> int:
    return os.open("/dev/null", os.O_RDONLY)


def a_datagram_socket() -> int:
    return handed(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))


def an_idle_socket() -> int:
    return handed(socket.socket())


WRONG = [not_open, a_file, a_datagram_socket, an_idle_socket]


@pytest.mark.parametrize("make", WRONG)
def test_what_is_no_listening_socket_is_left_as_it_was(make):
    fd = make()
    was_open = is_open(fd)
    with pytest.raises(UsageError, match=f"(descriptor |fd:){fd}"):
        Listener(Uri(fds=(fd,)))
    assert is_open(fd) == was_open
    if was_open:
        os.close(fd)


@pytest.mark.parametrize(("setting", "given"), [("uids", {"uids": (12345,)})])
def test_who_may_connect_must_fit_the_kind_of_socket(listening, setting, given):
    with pytest.raises(UsageError) as caught:
        Listener(Uri(fds=(listening,)), Access(**given))
    assert caught.value.setting == setting
    assert is_open(listening)


def test_networks_do_not_fit_a_unix_socket(tmp_path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "sock"))
        made.listen()
        with pytest.raises(UsageError) as caught:
            Listener(Uri(fds=(made.fileno(),)), Access(allow=("10.0.0.0/8",)))
    assert caught.value.setting == "allow"


# -- connected sockets ---------------------------------------------------------------------------------


def pairs(count: int) -> tuple[list[int], list[int]]:
    """Connections, by the descriptors of both ends."""
    both = [socket.socketpair() for _ in range(count)]
    return [handed(a) for a, _ in both], [handed(b) for _, b in both]


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_migration_over_connections_that_exist(channels):
    ours, theirs = pairs(channels + 1)
    memory, into, failures = os.urandom(1 << 20), bytearray(1 << 20), []

    def run() -> None:
        try:
            # In any order: what each is, it says itself.
            multifd.receive(str(Uri(fds=tuple(reversed(theirs)))), into, timeout=DEADLINE_S)
        except BaseException as e:
            failures.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    done = multifd.send(memory, str(Uri(fds=tuple(ours))), "zlib", channels=channels, timeout=DEADLINE_S)
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert failures == []
    assert (done.status, into == memory) == ("completed", True)
    assert not any(map(is_open, [*ours, *theirs]))


def test_one_connection_is_too_few_for_a_migration():
    (a,), (b,) = pairs(1)
    for call in (listen, Listener):
        with pytest.raises(UsageError, match="main and its channels"):
            call(Uri(fds=(a,)))
    with pytest.raises(UsageError, match="2 channels need 3: main's first") as caught:
        multifd.send(bytes(4096), f"fd:{a}", channels=2)
    assert caught.value.setting == "channels"
    for fd in (a, b):
        os.close(fd)


@pytest.mark.parametrize("make", [*WRONG, lambda: handed(socket.create_server(("127.0.0.1", 0)))])
def test_what_is_no_connection_is_left_as_it_was(make):
    (good,), (other,) = pairs(1)
    fd = make()
    was_open = is_open(fd)
    with pytest.raises(UsageError, match=f"descriptor {fd}"):
        listen(Uri(fds=(good, fd)))
    with pytest.raises(UsageError, match=f"descriptor {fd}"):
        connect(Uri(fds=(good, fd)), IdleTimer(DEADLINE_S), timeout_s=DEADLINE_S, number=1)
    assert is_open(good)
    assert is_open(fd) == was_open
    for each in (good, other, *([fd] if was_open else [])):
        os.close(each)


def test_nobody_can_be_kept_from_connections_that_exist():
    ours, theirs = pairs(2)
    with pytest.raises(UsageError, match="connected already"):
        listen(Uri(fds=tuple(ours)), Access(allow=("10.0.0.0/8",)))
    for fd in (*ours, *theirs):
        os.close(fd)


def test_each_is_given_once_and_what_is_left_is_closed():
    ours, theirs = pairs(3)
    door = listen(Uri(fds=tuple(ours)))
    assert isinstance(door, HandedConnections)
    assert door.is_local
    assert select.select([door], [], [], 0)[0]
    first = door.accept()
    assert first is not None
    assert first[1] == f"fd:{ours[0]}"
    assert door.objection(first[0]) == ""
    door.close()
    door.close()
    assert [is_open(fd) for fd in ours] == [True, False, False]
    first[0].close()
    for fd in theirs:
        os.close(fd)


def test_when_all_are_taken_nothing_is_readable():
    ours, theirs = pairs(2)
    door = listen(Uri(fds=tuple(ours)))
    taken = [door.accept() for _ in ours]
    assert door.accept() is None
    assert not select.select([door], [], [], 0)[0]
    for one in taken:
        assert one is not None
        one[0].close()
    door.close()
    for fd in theirs:
        os.close(fd)


def test_a_relay_needs_an_address_on_each_side():
    ours, theirs = pairs(2)
    from multifd.api import relay

    with pytest.raises(UsageError, match="connects anew for each migration"):
        relay("tcp:127.0.0.1:0", str(Uri(fds=tuple(ours))))
    with pytest.raises(UsageError, match="serve one migration"):
        relay(str(Uri(fds=tuple(ours))), "tcp:127.0.0.1:1")
    for fd in (*ours, *theirs):
        os.close(fd)


# -- vsock ---------------------------------------------------------------------------------------------


class StandIn(socket.socket):
    """A socket of AF_VSOCK that is one of AF_UNIX: the calls and what they give are vsock(7)'s, the way is not."""

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        self.is_vsock = family == socket.AF_VSOCK
        super().__init__(socket.AF_UNIX if self.is_vsock else family, type, proto, fileno)

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_VSOCK if self.is_vsock else super().family

    def name(self, address: tuple[int, int]) -> str:
        return f"\0multifd-test-{os.getpid()}-{address[1]}"

    def bind(self, address: Any) -> None:
        if self.is_vsock:
            cid, port = address
            self.address = address = (cid, 7777 if port == 0xFFFFFFFF else port)
        super().bind(self.name(address) if self.is_vsock else address)

    def connect_ex(self, address: Any) -> int:
        return super().connect_ex(self.name(address) if self.is_vsock else address)

    def getsockname(self) -> Any:
        return self.address if self.is_vsock else super().getsockname()

    def accept(self) -> tuple[socket.socket, Any]:
        sock, address = super().accept()
        if not self.is_vsock:
            return sock, address
        accepted = StandIn(fileno=sock.detach())
        accepted.is_vsock = True
        return accepted, (2, 1234)  # VMADDR_CID_HOST, and a port of its choice


@pytest.mark.parametrize(("port", "chosen"), [(5000, 5000), (0xFFFFFFFF, 7777)])
def test_a_migration_over_a_stand_in_for_vsock(monkeypatch, receiver, port, chosen):
    monkeypatch.setattr(socket, "socket", StandIn)
    into = bytearray(os.urandom(1 << 20))
    end = receiver(into, f"vsock:4294967295:{port}")
    assert end.uri == f"vsock:4294967295:{chosen}"
    memory = os.urandom(1 << 20)
    assert multifd.send(memory, f"vsock:3:{chosen}", "zstd").status == "completed"
    end.join()
    assert into == memory


def test_nobody_listens_over_vsock(monkeypatch):
    monkeypatch.setattr(socket, "socket", StandIn)
    with pytest.raises(ChannelError, match=r"cannot connect to vsock:3:1 within 0\.1 s"):
        connect(Uri.parse("vsock:3:1"), IdleTimer(DEADLINE_S), timeout_s=0.1, retry=True)


def test_a_machine_without_vsock_says_so(monkeypatch):
    class Without(socket.socket):
        def __init__(self, family: int = -1, *args: Any, **kwargs: Any) -> None:
            if family == socket.AF_VSOCK:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, *args, **kwargs)

    monkeypatch.setattr(socket, "socket", Without)
    with pytest.raises(ChannelError, match="cannot listen on vsock:3:1: Address family not supported"):
        Listener(Uri.parse("vsock:3:1"))
    with pytest.raises(ChannelError, match=r"cannot connect to vsock:3:1 .*Address family not supported"):
        connect(Uri.parse("vsock:3:1"), IdleTimer(DEADLINE_S), timeout_s=1)


def test_a_migration_over_vsocks_own_loopback(receiver):
    """Where the kernel has one: module vsock_loopback, CID 1."""
    try:
        with socket.socket(socket.AF_VSOCK) as probe:
            probe.bind((1, 0xFFFFFFFF))
    except OSError as e:
        pytest.skip(f"this kernel has no vsock loopback: {e.strerror}")
    into, memory = bytearray(1 << 20), os.urandom(1 << 20)
    end = receiver(into, "vsock:1:4294967295")
    assert multifd.send(memory, end.uri, "zstd").status == "completed"
    end.join()
    assert into == memory
