"""Who may connect: networks, users, and whose a unix socket is."""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multifd.errors import ChannelError, UsageError
from multifd.transport import clear
from multifd.transport.accept import Acceptor
from multifd.transport.access import Access
from multifd.transport.address import Uri
from multifd.transport.connect import connect
from multifd.transport.idle import IdleTimer
from multifd.transport.listen import Listener, origin_of

DEADLINE_S = 30
OTHER = 65534
"""A user that is neither this process' nor root."""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="being another user needs root")

# -- what can be said ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "words", "given"),
    [
        ("allow", "expected an address", {"allow": ("x",)}),
        ("allow", "expected an address", {"allow": ("",)}),
        ("allow", "expected an address", {"allow": ("10.0.0.0/33",)}),
        ("allow", "10.0.0.0/8 or another length", {"allow": ("10.0.0.1/8",)}),
        ("uids", "user -1", {"uids": (-1,)}),
        ("uids", "user 4294967295", {"uids": (4294967295,)}),
        ("socket_mode", "mode 0o1000", {"socket_mode": 0o1000}),
        ("socket_mode", "mode 0660 opens the socket to others", {"socket_mode": 0o660}),
        ("socket_mode", "mode 0602 opens the socket to others", {"socket_mode": 0o602}),
        ("socket_group", "which users may connect", {"socket_group": 1}),
        ("socket_group", "no group 'no such group'", {"socket_group": "no such group", "uids": (1,)}),
        ("socket_group", "group 4294967295", {"socket_group": "4294967295", "uids": (1,)}),
        ("socket_group", "group -1", {"socket_group": -1, "uids": (1,)}),
    ],
)
def test_what_cannot_be_meant(setting, words, given):
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        Access(**given)
    assert caught.value.setting == setting


@pytest.mark.parametrize(
    ("setting", "given", "text"),
    [
        ("allow", {"allow": ("10.0.0.0/8",)}, "unix:/run/x"),
        ("allow", {"allow": ("10.0.0.0/8",)}, "vsock:3:5"),
        ("uids", {"uids": (OTHER,)}, "tcp::0"),
        ("uids", {"uids": (OTHER,)}, "vsock:3:5"),
        ("socket_mode", {"uids": (OTHER,), "socket_mode": 0o660}, "tcp::0"),
        ("socket_mode", {"uids": (OTHER,), "socket_mode": 0o660}, "fd:9"),
        ("socket_group", {"uids": (OTHER,), "socket_group": 0}, "fd:9"),
        ("uids", {"uids": (OTHER,)}, "unix:/run/x"),  # who could not even open it
    ],
)
def test_what_means_nothing_there(setting, given, text):
    with pytest.raises(UsageError) as caught:
        Listener(Uri.parse(text), Access(**given))
    assert caught.value.setting == setting


def test_who_may_connect_anyway_may_be_named(tmp_path):
    Listener(Uri(path=str(tmp_path / "sock")), Access(uids=(0, os.geteuid()))).close()


# -- networks ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def accepted_from(address: str, at: str, access: Access) -> Iterator[str]:
    """What is objected to a client that comes from an address."""
    with contextlib.closing(Listener(Uri.parse(at), access)) as listener:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as client:
            client.bind((address, 0))
            client.settimeout(DEADLINE_S)
            client.connect((address if at.startswith("tcp::") else listener.uri.host, listener.uri.port))
            deadline = time.monotonic() + DEADLINE_S
            while (accepted := listener.accept()) is None:
                assert time.monotonic() < deadline
            with accepted[0]:
                yield listener.objection(accepted[0])


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.parametrize("at", ["tcp:127.0.0.1:0", "tcp::0"])
@pytest.mark.parametrize(
    ("address", "allow", "may"),
    [
        ("127.0.0.1", (), True),
        ("127.0.0.1", ("127.0.0.0/8",), True),
        ("127.0.0.1", ("127.0.0.1",), True),
        ("127.0.0.2", ("127.0.0.1",), False),
        ("127.0.0.2", ("10.0.0.0/8", "127.0.0.2/32"), True),
        ("127.0.0.1", ("10.0.0.0/8", "::/0"), False),
    ],
)
def test_a_network_says_who_may_connect(at, address, allow, may):
    with accepted_from(address, at, Access(allow=allow)) as objection:
        assert (objection == "") is may
        if not may:
            assert objection == f"a client at {address}: only {', '.join(allow)} may connect here"


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(("allow", "may"), [(("::1",), True), (("fd00::/8",), False), (("0.0.0.0/0",), False)])
def test_a_network_of_ipv6(allow, may):
    with accepted_from("::1", "tcp:[::1]:0", Access(allow=allow)) as objection:
        assert (objection == "") is may


def wait(acceptor: Acceptor, until: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not until():
        assert time.monotonic() < deadline
        assert not list(acceptor.wait(0.05))


def test_who_may_not_connect_is_closed_counted_and_told_once_in_a_while(caplog):
    caplog.set_level(logging.INFO, "multifd")
    listener = Listener(Uri.parse("tcp:127.0.0.1:0"), Access(allow=("10.0.0.0/8",)))
    acceptor = Acceptor(listener, DEADLINE_S)
    try:
        for n in range(3):
            with socket.create_connection((listener.uri.host, listener.uri.port), DEADLINE_S) as client:
                wait(acceptor, lambda n=n: acceptor.rejected == n + 1)
                assert client.recv(1) == b""  # before it said a word
    finally:
        acceptor.close()
        listener.close()
    assert acceptor.last_stranger == "a client at 127.0.0.1: only 10.0.0.0/8 may connect here"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "INFO"]


# -- users ---------------------------------------------------------------------------------------------

CLIENT = """
import os, socket, sys
os.setgid(int(sys.argv[2]))
os.setgroups([])
os.setuid(int(sys.argv[1]))
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(30)
try:
    sock.connect(sys.argv[3])
    sock.sendall(b"QEVM")
    print("closed" if sock.recv(1) == b"" else "served")
except PermissionError:
    print("no permission")
except ConnectionError:
    print("closed")
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user can reach."""
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        made.chmod(0o755)
        if not all(part.stat().st_mode & stat.S_IXOTH for part in made.parents):
            pytest.skip("other users do not reach this machine's folder for temporary files")
        yield made


def knock(listener: Listener, uid: int, gid: int) -> str:
    """What another user sees who connects: no permission, or closed, or served."""
    acceptor = Acceptor(listener, DEADLINE_S)
    client = subprocess.Popen(
        [sys.executable, "-S", "-c", CLIENT, str(uid), str(gid), listener.uri.path], stdout=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + DEADLINE_S
        while client.poll() is None:
            assert time.monotonic() < deadline
            for _ in acceptor.wait(0.05):
                pass
            for pending in list(acceptor._pending):
                if pending.start:
                    pending.incoming._sock.send(b"x")
        return client.communicate(timeout=DEADLINE_S)[0].strip()
    finally:
        client.kill()
        client.communicate()
        acceptor.close()


@needs_root
@pytest.mark.parametrize(
    ("given", "uid", "gid", "seen"),
    [
        ({}, OTHER, OTHER, "no permission"),
        ({}, 0, 0, "served"),
        ({"uids": (OTHER,), "socket_mode": 0o666}, OTHER, OTHER, "served"),
        ({"uids": (OTHER,), "socket_mode": 0o666}, OTHER - 1, OTHER, "closed"),
        ({"uids": (OTHER,), "socket_group": OTHER}, OTHER, OTHER, "served"),
        ({"uids": (OTHER,), "socket_group": OTHER}, OTHER, OTHER - 1, "no permission"),
    ],
)
def test_other_users(folder, given, uid, gid, seen):
    with contextlib.closing(Listener(Uri(path=str(folder / "sock")), Access(**given))) as listener:
        assert knock(listener, uid, gid) == seen


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize(
    ("given", "mode"),
    [({}, 0o600), ({"socket_mode": 0o666}, 0o666), ({"socket_mode": 0o620}, 0o620), ({"socket_group": True}, 0o660)],
)
def test_the_sockets_file_is_what_was_asked_for_whatever_the_umask(tmp_path, umask, given, mode):
    own = os.getegid()
    if given:
        given = {**given, "uids": (OTHER,), **({"socket_group": own} if "socket_group" in given else {})}
    before = os.umask(umask)
    try:
        listener = Listener(Uri(path=str(tmp_path / "sock")), Access(**given))
    finally:
        os.umask(before)
    info = os.stat(tmp_path / "sock")
    listener.close()
    assert (stat.S_IMODE(info.st_mode), info.st_gid) == (mode, own)


def test_a_group_by_its_name():
    own = grp.getgrgid(os.getegid())
    assert Access(socket_group=own.gr_name, uids=(OTHER,)).group_id == own.gr_gid


def test_a_group_that_the_process_may_not_give_leaves_nothing_behind(tmp_path, monkeypatch):
    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(ChannelError, match=r"cannot listen on unix:.*: group 12345: Operation not permitted"):
        Listener(Uri(path=str(tmp_path / "sock")), Access(uids=(OTHER,), socket_group=12345))
    assert list(tmp_path.iterdir()) == []


# -- where from ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "origin"),
    [
        ("10.0.0.1:4444", "10.0.0.1"),
        ("[fe80::1%eth0]:80", "[fe80::1%eth0]"),
        ("vsock:3:1024", "vsock:3"),
        ("fd:5", "fd"),
        ("unix:/run/a:b", "unix:/run/a"),
    ],
)
def test_origin(peer, origin):
    assert origin_of(peer) == origin


# -- in the clear --------------------------------------------------------------------------------------


def own_address() -> str:
    """An address of this machine that is no loopback address; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return ""


@pytest.fixture
def warnings(caplog, monkeypatch) -> Callable[[], list[str]]:
    monkeypatch.setattr(clear, "_warned", set())
    return lambda: [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("at", "is_exposed"),
    [("tcp:127.0.0.1:0", False), ("tcp:127.0.0.2:0", False), ("tcp:localhost:0", False), ("tcp:0.0.0.0:0", True),
     ("tcp::0", True), ("unix:{}/sock", False)],
)  # fmt: skip
def test_a_listener_that_a_network_reaches_is_warned_of_once(tmp_path, warnings, at, is_exposed):
    with contextlib.closing(Listener(Uri.parse(at.format(tmp_path)))) as listener:
        for _ in range(2):
            clear.warn_arriving(listener, Access())
        assert len(warnings()) == is_exposed
        if is_exposed:
            assert str(listener.uri) in warnings()[0]
            assert "from whoever reaches this address" in warnings()[0]


def test_who_is_limited_to_networks_hears_only_that_it_is_in_the_clear(warnings):
    access = Access(allow=("127.0.0.0/8",))
    with contextlib.closing(Listener(Uri.parse("tcp:0.0.0.0:0"), access)) as listener:
        clear.warn_arriving(listener, access)
    assert "in the clear" in warnings()[0]
    assert "whoever" not in warnings()[0]


@pytest.mark.parametrize("at", ["tcp:127.0.0.1:0", "tcp:{}:0"])
def test_what_stays_on_this_host_is_in_nobodys_sight(warnings, at):
    """Also at an address of a network's, if it is this host's own."""
    if not (own := own_address()):
        pytest.skip("this machine has no address but the loopback's")
    with contextlib.closing(Listener(Uri.parse(at.format(own)))) as listener:
        connection = connect(listener.uri, IdleTimer(DEADLINE_S), timeout_s=DEADLINE_S)
        clear.warn_leaving(connection, listener.uri)
        connection.close()
        assert not connection.is_exposed  # nor is one that is closed
    assert warnings() == []


def test_what_leaves_this_host_is_warned_of_once(warnings):
    class Far:
        is_exposed = True

    for port in (1, 1, 2):
        clear.warn_leaving(Far(), Uri(host="10.0.0.1", port=port))
    assert [re.match(r"tcp:10\.0\.0\.1:(\d)", text)[1] for text in warnings()] == ["1", "2"]


def test_the_addresses_that_were_warned_of_are_bounded(warnings, monkeypatch):
    monkeypatch.setattr(clear, "_MOST", 2)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            listener = stack.enter_context(contextlib.closing(Listener(Uri.parse("tcp:0.0.0.0:0"))))
            clear.warn_arriving(listener, Access())
    assert len(warnings()) == 2
