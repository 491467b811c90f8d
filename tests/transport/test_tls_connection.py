"""TLS connections: what a plain one promises, and that nothing which was changed on the way gets through."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from beside import beside
from certificates import Folders

from multifd.errors import ChannelError, TlsError
from multifd.transport.address import Uri
from multifd.transport.connection import Connection
from multifd.transport.idle import Abort, IdleTimer
from multifd.transport.limit import RateLimit
from multifd.transport.tls import Tls, TlsClient, TlsServer
from multifd.transport.tls_connection import TlsConnection

DEADLINE_S = 60
HERE = Uri.parse("tcp:localhost:1")


class Pair:
    """A client and a server that have shaken hands, and the sockets between them."""

    def __init__(
        self, folder: Path, *, limit: RateLimit | None = None, version: ssl.TLSVersion | None = None,
        far: tuple[socket.socket, socket.socket] | None = None,
    ) -> None:  # fmt: skip
        one, other = far or socket.socketpair()
        client, server = TlsClient(Tls(folder), HERE), TlsServer(Tls(folder))
        if version is not None:
            client._context.maximum_version = version
        self.idle = IdleTimer(DEADLINE_S)
        self.one = TlsConnection(one, client.session(), client.side(), self.idle, "one", limit)
        incoming = server.open(other, "other")
        with beside(lambda: self.one.shake_hands(DEADLINE_S)):
            deadline = time.monotonic() + DEADLINE_S
            while not incoming._is_shaken:
                assert time.monotonic() < deadline
                assert incoming.has_more() is None, incoming.trouble
                select.select([incoming], [], [], 0.05)
        self.other = incoming.take(IdleTimer(DEADLINE_S), "other")

    def close(self) -> None:
        self.one.close()
        self.other.close()


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def pair(credentials: Folders, request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(credentials.good, version=request.param)
    yield made
    made.close()


# -- what a plain connection promises ---------------------------------------------------------------


@pytest.mark.parametrize("limited", [False, True])
def test_many_buffers_larger_than_the_socket(credentials: Folders, limited: bool) -> None:
    pair = Pair(credentials.good, limit=RateLimit(1 << 40, Abort()) if limited else None)
    rng = random.Random(1)
    iov = [rng.randbytes(rng.choice([0, 1, 100, 5000, 700_000])) for _ in range(60)]
    data = b"".join(iov)
    got = bytearray(len(data))
    views = [memoryview(got)[i : i + 70_001] for i in range(0, len(got), 70_001)]  # divided elsewhere
    with beside(lambda: pair.one.send(iov)):
        assert pair.other.recv_into(views) == len(data)
    assert got == data
    assert pair.one.bytes_sent == pair.other.bytes_received > len(data)  # as the wire has them
    pair.close()


def test_a_file(pair: Pair, tmp_path: Path) -> None:
    data = random.Random(3).randbytes(1_500_001)
    (tmp_path / "file").write_bytes(data)
    got = bytearray(len(data))

    def send() -> None:
        at = 0
        with (tmp_path / "file").open("rb") as file:
            while sent := pair.one.send_file(file.fileno(), at, 1 << 20):
                at += sent

    with beside(send):
        assert pair.other.recv_into([memoryview(got)]) == len(data)
    assert got == data


def test_views_of_every_kind(pair: Pair) -> None:
    import numpy as np

    iov = [np.arange(9, dtype=">u4"), memoryview(bytes(12)).cast("B", (3, 4)), bytearray(b"abc"), b"", b"x"]
    data = b"".join(bytes(memoryview(buffer)) for buffer in iov)
    pair.one.send([memoryview(buffer) for buffer in iov])
    got = bytearray(len(data))
    assert pair.other.recv_into([memoryview(got)]) == len(data)
    assert got == data


def test_at_least_and_available(pair: Pair) -> None:
    assert pair.other.recv_available() is None
    assert not pair.other.wait_readable(0)
    pair.one.send([b"abcdef"])
    got = bytearray(100)
    assert pair.other.recv_into([memoryview(got)], at_least=2) == 6
    pair.one.send([b"abcdef"])
    assert pair.other.wait_readable(DEADLINE_S)
    assert pair.other.recv_available(4) == b"abcd"
    assert pair.other.wait_readable(0)  # at no socket any more, but here
    assert pair.other.recv_available() == b"ef"
    assert pair.other.recv_available() is None


def test_what_nobody_else_may_touch(pair: Pair) -> None:
    """Neither the pump nor memory that only the kernel may read."""
    assert pair.one.descriptor is None
    assert not pair.one.takes_mapped
    assert Connection.takes_mapped


def test_an_end_that_was_said(pair: Pair) -> None:
    pair.one.send([b"last"])
    pair.one.finish()
    pair.one.finish()  # twice is harmless
    assert pair.other.recv_into([memoryview(bytearray(4))]) == 4
    assert pair.other.recv_into([memoryview(bytearray(4))]) == 0
    assert pair.other.recv_available() == b""
    assert not pair.other.may_be_cut
    pair.other.send([b"the other direction goes on"])
    assert pair.one.recv_into([memoryview(bytearray(99))], at_least=1) == 27


def test_an_end_that_was_not_said(pair: Pair) -> None:
    pair.one.send([b"last"])
    pair.one.shutdown_write()
    assert pair.other.recv_into([memoryview(bytearray(4))]) == 4
    assert pair.other.recv_into([memoryview(bytearray(4))]) == 0
    assert pair.other.may_be_cut


@pytest.mark.parametrize("is_said", [False, True])
def test_an_end_in_the_middle_is_an_error(pair: Pair, is_said: bool) -> None:
    pair.one.send([b"half"])
    (pair.one.finish if is_said else pair.one.shutdown_write)()
    with pytest.raises(ChannelError, match="closed the connection after 4 of 8 bytes"):
        pair.other.recv_into([memoryview(bytearray(8))])


def test_both_directions_at_once(pair: Pair) -> None:
    """Main is read and written by two threads. One session that two threads are in crashes the interpreter."""
    data = random.Random(3).randbytes(4 << 20)

    def send(connection: Connection) -> None:
        for at in range(0, len(data), 30_000):
            connection.send([data[at : at + 30_000]])

    def receive(connection: Connection) -> None:
        got = bytearray(len(data))
        for at in range(0, len(got), 7_000):
            connection.recv_exactly([memoryview(got)[at : at + 7_000]])
        assert got == data

    with (
        beside(lambda: send(pair.one)),
        beside(lambda: send(pair.other)),
        beside(lambda: receive(pair.one)),
        beside(lambda: receive(pair.other)),
    ):
        pass


@pytest.mark.parametrize("shut", [False, True])
def test_abort_ends_a_blocked_read_and_a_blocked_write(credentials: Folders, shut: bool) -> None:
    for block in (
        lambda c: c.recv_into([memoryview(bytearray(1))]),
        lambda c: c.send([bytes(64 << 20)]),
    ):
        pair = Pair(credentials.good)
        stop = [pair.idle.abort.set, pair.one.shutdown] if shut else [pair.idle.abort.set]
        with pytest.raises(ChannelError, match="aborted"), beside(lambda p=pair, b=block: b(p.one)):
            _ = [call() for call in stop]
        pair.close()


# -- damage -------------------------------------------------------------------------------------------


class Between:
    """A pair with somebody in the middle, who can pass on what he wants."""

    def __init__(self, folder: Path) -> None:
        near, self._from = socket.socketpair()
        self._to, far = socket.socketpair()
        self.passed = bytearray()
        with self._passing():
            self.pair = Pair(folder, far=(near, far))

    @contextlib.contextmanager
    def _passing(self) -> Iterator[None]:
        """Both directions, untouched, until the block ends."""
        stop = threading.Event()

        def pass_on() -> None:
            ends = {self._from: self._to, self._to: self._from}
            while not stop.is_set() or select.select(list(ends), [], [], 0)[0]:
                for sock in select.select(list(ends), [], [], 0.02)[0]:
                    ends[sock].sendall(sock.recv(1 << 16))

        with beside(pass_on):
            try:
                yield
            finally:
                stop.set()

    def record(self, data: bytes) -> bytes:
        """What the client sends for `data`."""
        self.pair.one.send([data])
        return self._from.recv(1 << 16)

    def deliver(self, ciphertext: bytes) -> None:
        self._to.sendall(ciphertext)

    def close(self) -> None:
        self.pair.close()
        self._from.close()
        self._to.close()


@pytest.fixture
def between(credentials: Folders) -> Iterator[Between]:
    made = Between(credentials.good)
    yield made
    made.close()


def flipped(record: bytes) -> bytes:
    return record[:-3] + bytes([record[-3] ^ 1]) + record[-2:]


DAMAGE = {
    "a bit flipped": lambda b: flipped(b.record(b"data")),
    "replayed": lambda b: b.record(b"data") * 2,
    "out of order": lambda b: (lambda first, second: second + first)(b.record(b"data"), b.record(b"more")),
    "one left out": lambda b: (b.record(b"data"), b.record(b"more"))[1],
    "something in clear": lambda b: b.record(b"data") + b"QEVM\0\0\0\3" * 9,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_an_error_and_no_data(between: Between, damage: Callable[[Between], bytes]) -> None:
    between.deliver(damage(between))
    got = bytearray(8)
    with pytest.raises(TlsError, match="somebody changed it"):
        between.pair.other.recv_into([memoryview(got)])
    assert got[4:] == bytes(4)


def test_a_record_that_was_cut(between: Between) -> None:
    between.deliver(between.record(b"data")[:-1])
    between._to.shutdown(socket.SHUT_WR)
    assert between.pair.other.recv_into([memoryview(bytearray(4))]) == 0
    assert between.pair.other.may_be_cut
