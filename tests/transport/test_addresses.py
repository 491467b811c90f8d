"""URIs, listening, connecting: whose socket it is, which families, and who gets how much of the time."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from beside import DEADLINE_S, beside

from multifd.errors import ChannelError, UsageError
from multifd.transport.address import Uri
from multifd.transport.connect import connect
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.transport.listen import Listener

# -- URIs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("tcp:127.0.0.1:4444", Uri(host="127.0.0.1", port=4444)),
        ("tcp:host.example:0", Uri(host="host.example")),
        ("tcp::65535", Uri(port=65535)),
        ("tcp:[::1]:80", Uri(host="::1", port=80)),
        ("tcp:[fe80::1%eth0]:80", Uri(host="fe80::1%eth0", port=80)),
        ("unix:/run/a b:c", Uri(path="/run/a b:c")),
        ("unix:relative", Uri(path="relative")),
        ("vsock:3:1024", Uri(cid=3, port=1024)),
        ("vsock:4294967295:4294967295", Uri(cid=4294967295, port=4294967295)),
        ("fd:3", Uri(fds=(3,))),
        ("fd:5,4,17", Uri(fds=(5, 4, 17))),
    ],
)
def test_uri(text: str, uri: Uri) -> None:
    assert Uri.parse(text) == uri
    assert str(uri) == text


@pytest.mark.parametrize(
    "text",
    ["", "tcp", "tcp:", "tcp:host", "tcp:host:", "tcp:host:x", "tcp:host:65536", "tcp:host:-1", "tcp:host:+1",
     "tcp:host:1 ", "tcp:::1:80", "tcp:[::1]", "tcp:host:\u0661", "unix:", "unix", "fd:", "fd:x", "fd:3,", "fd:3,3",
     "fd:-1",
     "fd:1234567890", "fd:" + ",".join(map(str, range(257))), "vsock:3", "vsock:3:", "vsock::3", "vsock:-1:3",
     "vsock:4294967296:3", "vsock:3:4294967296", "vsock:3:\u0661", "exec:cat",
     "TCP:host:1", "unix:" + "x" * 108, "unix:a\0b", "tcp:a\0b:1", "tcp:a..b:1",
     "tcp:[[]]:0", "tcp:a]:0", "tcp:[a:0",
     "tcp:" + "x" * 64 + ":1"],
)  # fmt: skip
def test_uri_damaged(text: str) -> None:
    with pytest.raises(UsageError):
        Uri.parse(text)


def test_longest_unix_path() -> None:
    assert Uri.parse("unix:" + "x" * 107).path == "x" * 107
    with pytest.raises(UsageError, match="107 bytes"):
        Uri.parse("unix:" + "ä" * 54)


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def accept(listener: Listener) -> tuple[socket.socket, str]:
    """The connection that is on its way."""
    assert select.select([listener.sock], [], [], DEADLINE_S)[0]
    accepted = listener.accept()
    assert accepted is not None
    return accepted


# -- listening -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["tcp:127.0.0.1:0", "tcp:localhost:0", "unix:{}/sock"])
def test_listen_and_connect(tmp_path: Path, text: str) -> None:
    listener = Listener(Uri.parse(text.format(tmp_path)))
    assert listener.is_local == text.startswith("unix:")
    assert listener.uri.path or listener.uri.port
    assert listener.accept() is None
    silence = IdleTimer(DEADLINE_S)
    client = connect(listener.uri, silence, timeout_s=DEADLINE_S)
    accepted = accept(listener)
    server = Connection(accepted[0], silence, accepted[1])
    client.send([b"hello"])
    got = bytearray(5)
    server.recv_exactly([memoryview(got)])
    assert got == b"hello"
    for each in (client, server, listener):
        each.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0, 0o022])
def test_a_unix_sockets_file_is_its_owners_from_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    """It is made so, whatever the umask lets through; nothing is changed afterwards, which would need /proc."""
    monkeypatch.delattr(os, "chmod")
    before = os.umask(umask)
    try:
        listener = Listener(Uri(path=f"{tmp_path}/sock"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(f"{tmp_path}/sock").st_mode) == 0o600
    listener.close()


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@needs_ipv6
@pytest.mark.parametrize("host", ["", "[::]", "[::0]", "[0:0:0:0:0:0:0:0]"])
def test_every_address_of_both_families(host: str) -> None:
    listener = Listener(Uri.parse(f"tcp:{host}:0"))
    assert str(listener.uri) == f"tcp:{host}:{listener.uri.port}"
    for address, name in (("127.0.0.1", "127.0.0.1:"), ("::1", "[::1]:")):
        with socket.create_connection((address, listener.uri.port), DEADLINE_S):
            accepted = accept(listener)
            assert accepted[1].startswith(name)
            accepted[0].close()
    listener.close()


def test_without_ipv6_a_listener_without_host_has_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> socket.socket:
        if kwargs.get("family") == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        return real(*args, **kwargs)

    real = socket.create_server
    monkeypatch.setattr(socket, "create_server", refuse)
    for dualstack in (True, False):
        monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda dualstack=dualstack: dualstack)
        listener = Listener(Uri.parse("tcp::0"))
        socket.create_connection(("127.0.0.1", listener.uri.port), DEADLINE_S).close()
        listener.close()
        with pytest.raises(ChannelError, match="cannot listen"):
            Listener(Uri.parse("tcp:[::]:0"))


def test_ipv4_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener(Uri.parse("tcp:0.0.0.0:0"))
    assert listener.sock.family == socket.AF_INET
    assert not listener.is_local
    listener.close()


def test_closing_leaves_a_successors_socket(tmp_path: Path) -> None:
    """The file was replaced while we listened: it is the other's."""
    uri = Uri(path=str(tmp_path / "sock"))
    ours = Listener(uri)
    os.unlink(uri.path)
    theirs = Listener(uri)
    ours.close()
    ours.close()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(uri.path)
    theirs.close()
    assert list(tmp_path.iterdir()) == []


def test_the_file_goes_before_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who binds while a listener closes is not taken for a stale one: there is no moment at which it looks stale."""
    uri = Uri(path=str(tmp_path / "sock"))
    ours, successors = Listener(uri), []
    unlink = os.unlink

    def then_bind(path: str) -> None:
        unlink(path)
        monkeypatch.setattr(os, "unlink", unlink)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(uri.path)
        sock.listen()
        successors.append(sock)

    monkeypatch.setattr(os, "unlink", then_bind)
    ours.close()
    with pytest.raises(ChannelError, match="in use"):
        Listener(uri)
    successors[0].close()


def test_many_start_at_a_stale_socket_at_once(tmp_path: Path) -> None:
    """One gets it, and that one is reachable."""
    for _ in range(10):
        path = str(tmp_path / "sock")
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        got: list[Listener] = []
        start = threading.Barrier(6)

        def listen(start: threading.Barrier = start, path: str = path, got: list[Listener] = got) -> None:
            start.wait(DEADLINE_S)
            with contextlib.suppress(ChannelError):
                got.append(Listener(Uri(path=path)))

        threads = [threading.Thread(target=listen) for _ in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(DEADLINE_S)
        assert len(got) == 1
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            accept(got[0])[0].close()
        got[0].close()


def test_a_full_backlog_is_in_use_and_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(tmp_path / "sock"))
        busy.listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(str(tmp_path / "sock"))
        with pytest.raises(ChannelError, match="in use"):
            Listener(Uri(path=str(tmp_path / "sock")))
        with pytest.raises(ChannelError, match="timed out"):
            connect(Uri(path=str(tmp_path / "sock")), IdleTimer(DEADLINE_S), timeout_s=0.2)
        for client in clients:
            client.close()


def test_unix_path_stale_busy_and_foreign(tmp_path: Path) -> None:
    uri = Uri(path=str(tmp_path / "sock"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(uri.path)
    listener = Listener(uri)  # nobody listens on the old one
    with pytest.raises(ChannelError, match="in use"):
        Listener(uri)
    assert os.path.exists(uri.path)
    listener.close()
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(ChannelError, match="not a socket"):
        Listener(Uri(path=str(tmp_path / "file")))
    assert (tmp_path / "file").read_bytes() == b"precious"
    with pytest.raises(ChannelError, match="No such file"):
        Listener(Uri(path=str(tmp_path / "missing" / "sock")))


def test_tcp_port_in_use() -> None:
    listener = Listener(Uri.parse("tcp:127.0.0.1:0"))
    with pytest.raises(ChannelError, match="cannot listen"):
        Listener(listener.uri)
    listener.close()


@pytest.mark.parametrize("retry", [False, True])
def test_nobody_listens(tmp_path: Path, retry: bool) -> None:
    with pytest.raises(ChannelError, match=r"cannot connect .* within 0\.1 s"):
        connect(Uri(path=str(tmp_path / "sock")), IdleTimer(DEADLINE_S), timeout_s=0.1, retry=retry)


def test_the_listener_may_come_later(tmp_path: Path) -> None:
    uri, made = Uri(path=str(tmp_path / "sock")), []
    tried = threading.Event()

    class Watching(IdleTimer):
        def check(self) -> None:
            tried.set()

    with beside(lambda: made.append(connect(uri, Watching(DEADLINE_S), timeout_s=DEADLINE_S, retry=True))):
        assert tried.wait(DEADLINE_S)
        listener = Listener(uri)
    made[0].close()
    listener.close()


def test_abort_ends_the_attempts(tmp_path: Path) -> None:
    silence = IdleTimer(DEADLINE_S)
    silence.abort.set()
    with pytest.raises(ChannelError, match="aborted"):
        connect(Uri(path=str(tmp_path / "sock")), silence, timeout_s=DEADLINE_S, retry=True)


def test_host_that_does_not_exist() -> None:
    with pytest.raises(ChannelError, match="cannot connect"):
        connect(Uri(host="no-such-host.invalid", port=1), IdleTimer(DEADLINE_S), timeout_s=5)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_a_time_that_cannot_be_meant(timeout_s: float) -> None:
    with pytest.raises(UsageError, match="connect timeout"):
        connect(Uri(host="127.0.0.1", port=1), IdleTimer(DEADLINE_S), timeout_s=timeout_s)


@pytest.mark.parametrize("timeout_s", [float("inf"), 1e300])
@pytest.mark.parametrize("text", ["tcp:127.0.0.1:0", "tcp:localhost:0", "unix:{}/sock"])
def test_for_ever_is_a_time(tmp_path: Path, timeout_s: float, text: str) -> None:
    listener = Listener(Uri.parse(text.format(tmp_path)))
    silence = IdleTimer(timeout_s)
    connect(listener.uri, silence, timeout_s=timeout_s, retry=True).close()
    silence.abort.set()
    with pytest.raises(ChannelError, match="aborted"):
        connect(Uri(path=str(tmp_path / "none")), silence, timeout_s=timeout_s, retry=True)
    listener.close()


# -- several addresses, slow names ---------------------------------------------------------------------


@contextlib.contextmanager
def dead_address() -> Iterator[tuple[str, int]]:
    """A port whose backlog is full: a connection gets no answer at all, as behind a dead route."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        yield full.getsockname()


def addresses(monkeypatch: pytest.MonkeyPatch, *found: tuple[str, int]) -> None:
    monkeypatch.setattr(
        "multifd.transport.connect.resolve", lambda *args, **kwargs: [(socket.AF_INET, where) for where in found]
    )


@pytest.mark.parametrize("retry", [False, True])
def test_a_dead_route_does_not_take_all_the_time(monkeypatch: pytest.MonkeyPatch, retry: bool) -> None:
    listener = Listener(Uri.parse("tcp:127.0.0.1:0"))
    with dead_address() as dead:
        addresses(monkeypatch, dead, ("127.0.0.1", listener.uri.port))
        # Whatever the share of each is: the second is reached within the time.
        connect(Uri(host="two", port=1), IdleTimer(DEADLINE_S), timeout_s=4, retry=retry).close()
    listener.close()


def test_what_each_address_answered_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with dead_address() as dead, socket.socket() as closed:
        closed.bind(("127.0.0.2", 0))
        addresses(monkeypatch, dead, closed.getsockname())
        with pytest.raises(ChannelError) as caught:
            connect(Uri(host="two", port=1), IdleTimer(DEADLINE_S), timeout_s=0.5)
    assert "127.0.0.1: timed out" in str(caught.value)
    assert "127.0.0.2: Connection refused" in str(caught.value)


def test_an_abort_ends_a_connect_that_hangs() -> None:
    silence = IdleTimer(DEADLINE_S)
    with (
        dead_address() as dead,
        pytest.raises(ChannelError, match="aborted"),
        beside(lambda: connect(Uri(host=dead[0], port=dead[1]), silence, timeout_s=float("inf"))),
    ):
        silence.abort.set()


class SlowResolver:
    """getaddrinfo that answers names when it is told to, and numbers at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.answer = threading.Event(), threading.Event()
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: str, *args: Any, flags: int = 0, **kwargs: Any) -> Any:
        if host == "slow.example":
            if flags & socket.AI_NUMERICHOST:
                raise socket.gaierror(socket.EAI_NONAME, "not a number")
            self.asked.set()
            assert self.answer.wait(DEADLINE_S)
            host = "127.0.0.1"
        return self._real(host, *args, flags=flags, **kwargs)


def test_a_resolver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = SlowResolver(monkeypatch)
    uri = Uri(host="slow.example", port=1)
    try:
        with pytest.raises(ChannelError, match=r"resolver did not answer for 'slow\.example'"):
            connect(uri, IdleTimer(DEADLINE_S), timeout_s=0.1)
        monkeypatch.setattr("multifd.transport.bind._RESOLVE_S", 0.1)
        with pytest.raises(ChannelError, match="resolver did not answer"):
            Listener(uri)
        silence = IdleTimer(DEADLINE_S)
        resolver.asked.clear()
        with contextlib.ExitStack() as stack:
            stack.enter_context(pytest.raises(ChannelError, match="aborted"))
            stack.enter_context(beside(lambda: connect(uri, silence, timeout_s=float("inf"))))
            assert resolver.asked.wait(DEADLINE_S)
            silence.abort.set()
    finally:
        resolver.answer.set()
    for each in threading.enumerate():
        if each.name == "multifd_resolve":
            each.join(DEADLINE_S)


def test_a_name_that_is_slow_but_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    listener, made = Listener(Uri.parse("tcp:127.0.0.1:0")), []
    resolver, uri = SlowResolver(monkeypatch), Uri(host="slow.example", port=listener.uri.port)
    with beside(lambda: made.append(connect(uri, IdleTimer(DEADLINE_S), timeout_s=DEADLINE_S))):
        assert resolver.asked.wait(DEADLINE_S)
        resolver.answer.set()
    made[0].close()
    listener.close()
