"""Connections over socket pairs, URIs, listeners."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multifd.errors import ChannelError, UsageError
from multifd.transport.address import Uri
from multifd.transport.connect import connect
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.transport.limit import RateLimit
from multifd.transport.listen import Listener

DEADLINE_S = 30


class Pair:
    """Two connections that face each other."""

    def __init__(self, timeout_s: float = DEADLINE_S, limit: RateLimit | None = None) -> None:
        one, other = socket.socketpair()
        self.silence = IdleTimer(timeout_s)
        self.one = Connection(one, self.silence, "one", limit)
        self.other = Connection(other, IdleTimer(timeout_s), "other")


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.one.close()
    made.other.close()


@contextlib.contextmanager
def thread(run: Callable[[], object]) -> Iterator[None]:
    """Run beside the block; what it raises is raised here."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as e:
            errors.append(e)

    worker = threading.Thread(target=guarded)
    worker.start()
    try:
        yield
    finally:
        worker.join(DEADLINE_S)
    assert not worker.is_alive()
    if errors:
        raise errors[0]


# -- whole writes, exact reads ----------------------------------------------------------------------


@pytest.mark.parametrize("limited", [False, True])
def test_many_buffers_larger_than_the_socket(limited: bool) -> None:
    pair = Pair(limit=RateLimit(1 << 40, threading.Event()) if limited else None)
    rng = random.Random(1)
    iov = [rng.randbytes(rng.choice([0, 1, 100, 5000])) for _ in range(2500)]  # more than one IOV_MAX
    data = b"".join(iov)
    got = bytearray(len(data))
    views = [memoryview(got)[i : i + 700] for i in range(0, len(got), 700)]  # divided elsewhere
    with thread(lambda: pair.one.send(iov)):
        assert pair.other.recv_into(views) == len(data)
    assert got == data
    assert pair.one.bytes_sent == pair.other.bytes_received == len(data)
    pair.one.close()
    pair.other.close()


def test_send_leaves_its_argument_alone(pair: Pair) -> None:
    iov = [b"abc", bytearray(b"def"), memoryview(b"gh")]
    pair.one.send(iov)
    assert iov == [b"abc", b"def", b"gh"]


def test_a_byte_at_a_time(pair: Pair) -> None:
    got = bytearray(10)

    def send() -> None:
        for byte in b"0123456789":
            pair.one.send([bytes([byte])])

    with thread(send):
        pair.other.recv_exactly([memoryview(got)[:3], memoryview(got)[3:4], memoryview(got)[4:]])
    assert got == b"0123456789"


def test_at_least(pair: Pair) -> None:
    pair.one.send([b"abcdef"])
    got = bytearray(100)
    assert pair.other.recv_into([memoryview(got)], at_least=1) == 6
    assert got[:6] == b"abcdef"


def test_available(pair: Pair) -> None:
    assert pair.other.recv_available() is None
    pair.one.send([b"abcdef"])
    assert pair.other.wait_readable(DEADLINE_S)
    assert pair.other.recv_available(4) == b"abcd"
    assert pair.other.recv_available() == b"ef"
    assert pair.other.recv_available() is None
    assert not pair.other.wait_readable(0)
    pair.one.shutdown()
    assert pair.other.recv_available() == b""
    assert pair.other.bytes_received == 6


# -- ends --------------------------------------------------------------------------------------------


def test_clean_end(pair: Pair) -> None:
    pair.one.shutdown()
    assert pair.other.recv_into([memoryview(bytearray(8))]) == 0
    with pytest.raises(ChannelError, match="in the middle of a packet"):
        pair.other.recv_exactly([memoryview(bytearray(8))])


def test_end_in_the_middle(pair: Pair) -> None:
    pair.one.send([b"abc"])
    pair.one.shutdown()
    with pytest.raises(ChannelError, match="after 3 of 8 bytes"):
        pair.other.recv_into([memoryview(bytearray(8))])


def test_sending_to_nobody(pair: Pair) -> None:
    pair.other.close()
    with pytest.raises(ChannelError, match="closed by the peer"):
        pair.one.send([b"abc"])


def test_silence() -> None:
    pair = Pair(timeout_s=0.01)
    with pytest.raises(ChannelError, match=r"no byte moved .* for 0\.01 s"):
        pair.one.recv_into([memoryview(bytearray(1))])
    with pytest.raises(ChannelError, match="no byte moved"):
        pair.one.send([bytes(64 << 20)])  # the peer does not read
    pair.one.close()
    pair.other.close()


def test_a_byte_anywhere_ends_the_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("multifd.transport.idle.time.monotonic", lambda: clock[0])
    silence = IdleTimer(10)
    clock[0] = 110.0
    silence.check()
    silence.touch()
    clock[0] = 120.0
    silence.check()
    clock[0] = 120.5
    with pytest.raises(ChannelError, match="no byte moved"):
        silence.check()


@pytest.mark.parametrize("shut", [False, True])
def test_abort_ends_a_blocked_read_and_a_blocked_write(shut: bool) -> None:
    """The peer keeps the connection open; with `shut` the abort also shuts it, without it the kernel timeout does."""
    for block in (
        lambda c: c.recv_into([memoryview(bytearray(1))]),
        lambda c: c.send([bytes(64 << 20)]),
    ):
        pair = Pair()
        stop = [pair.silence.stop, pair.one.shutdown] if shut else [pair.silence.stop]
        with pytest.raises(ChannelError, match="aborted"), thread(lambda p=pair, b=block: b(p.one)):
            _ = [call() for call in stop]
        assert pair.silence.abort == b"\1"
        pair.one.close()
        pair.other.close()


# -- rate ----------------------------------------------------------------------------------------------


def test_rate_limit_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test: each second passes its share and no more."""
    clock = [50.0]

    class Stopped(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            clock[0] += timeout or 0
            return False

    monkeypatch.setattr("multifd.transport.limit.time.monotonic", lambda: clock[0])
    limit = RateLimit(1_000_000, Stopped())
    assert limit.piece == 10_000
    for _ in range(300):
        limit.wait(limit.piece)
    assert 2.95 <= clock[0] - 50 <= 3.0
    clock[0] += 100  # what was not used is gone
    start = clock[0]
    for _ in range(100):
        limit.wait(limit.piece)
    assert 0.95 <= clock[0] - start <= 1.0


def test_rate_limit_ends_with_the_migration() -> None:
    stopped = threading.Event()
    stopped.set()
    limit = RateLimit(1, stopped)
    for _ in range(3):
        limit.wait(1 << 30)


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
    ],
)
def test_uri(text: str, uri: Uri) -> None:
    assert Uri.parse(text) == uri
    assert str(uri) == text


@pytest.mark.parametrize(
    "text",
    ["", "tcp", "tcp:", "tcp:host", "tcp:host:", "tcp:host:x", "tcp:host:65536", "tcp:host:-1", "tcp:host:+1",
     "tcp:host:1 ", "tcp:::1:80", "tcp:[::1]", "tcp:host:\u0661", "unix:", "unix", "fd:3", "exec:cat",
     "TCP:host:1", "unix:" + "x" * 108, "unix:a\0b", "tcp:a\0b:1", "tcp:a..b:1",
     "tcp:" + "x" * 64 + ":1"],
)  # fmt: skip
def test_uri_damaged(text: str) -> None:
    with pytest.raises(UsageError):
        Uri.parse(text)


def test_longest_unix_path() -> None:
    assert Uri.parse("unix:" + "x" * 107).path == "x" * 107
    with pytest.raises(UsageError, match="107 bytes"):
        Uri.parse("unix:" + "ä" * 54)


# -- listening -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["tcp:127.0.0.1:0", "tcp:localhost:0", "unix:{}/sock"])
def test_listen_and_connect(tmp_path: Path, text: str) -> None:
    listener = Listener(Uri.parse(text.format(tmp_path)))
    assert listener.is_local
    assert listener.uri.path or listener.uri.port
    assert listener.accept() is None
    silence = IdleTimer(DEADLINE_S)
    client = connect(listener.uri, silence, timeout_s=DEADLINE_S)
    accepted = listener.accept()
    assert accepted is not None
    server = Connection(accepted[0], silence, accepted[1])
    client.send([b"hello"])
    got = bytearray(5)
    server.recv_exactly([memoryview(got)])
    assert got == b"hello"
    for each in (client, server, listener):
        each.close()
    assert list(tmp_path.iterdir()) == []


def test_every_address_is_not_local() -> None:
    listener = Listener(Uri.parse("tcp:0.0.0.0:0"))
    assert not listener.is_local
    listener.close()


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

    with thread(lambda: made.append(connect(uri, Watching(DEADLINE_S), timeout_s=DEADLINE_S, retry=True))):
        assert tried.wait(DEADLINE_S)
        listener = Listener(uri)
    made[0].close()
    listener.close()


def test_abort_ends_the_attempts(tmp_path: Path) -> None:
    silence = IdleTimer(DEADLINE_S)
    silence.stop()
    with pytest.raises(ChannelError, match="aborted"):
        connect(Uri(path=str(tmp_path / "sock")), silence, timeout_s=DEADLINE_S, retry=True)


def test_host_that_does_not_exist() -> None:
    with pytest.raises(ChannelError, match="cannot connect"):
        connect(Uri(host="no-such-host.invalid", port=1), IdleTimer(DEADLINE_S), timeout_s=5)


def test_a_limit_that_was_lifted_holds_nobody_up():
    limit = RateLimit(1, threading.Event())
    limit.wait(3600)
    limit.lift()
    limit.wait(1 << 30)  # an hour and more, if it were not
    assert limit.piece >= 1 << 20
