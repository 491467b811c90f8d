"""Connections over socket pairs."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import resource
import socket
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beside import beside

from multifd.errors import ChannelError, RamError
from multifd.transport.connection import Connection
from multifd.transport.idle import Abort, IdleTimer
from multifd.transport.limit import RateLimit

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


# -- what the kernel counts --------------------------------------------------------------------------


def test_a_receiver_that_takes_nothing_is_told_from_a_link() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    connection = Connection(ours, IdleTimer(DEADLINE_S), "a receiver")
    try:
        before = connection.link_use()
        assert before is not None
        assert before.receiver_s == 0
        ours.setblocking(False)
        end = time.monotonic() + DEADLINE_S
        while (use := connection.link_use()) is not None and not use.receiver_s:
            assert time.monotonic() < end
            with contextlib.suppress(BlockingIOError):
                ours.send(bytes(1 << 16))
        assert use is not None
        assert use.delivery_rate > 0
        assert use.busy_s >= use.receiver_s > 0
    finally:
        connection.close()
        theirs.close()


def test_a_limit_is_a_part_of_the_way() -> None:
    """Else a channel that waits for it would take the link for idle."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    limit = RateLimit(1 << 20, Abort())
    connection = Connection(ours, IdleTimer(DEADLINE_S), "a receiver", limit)
    try:
        for _ in range(5):
            connection.sent(connection.grant())
        use = connection.link_use()
        assert use is not None
        assert use.delivery_rate == 0
        assert use.busy_s > 0
        limit.lift()
        connection.send([b"x"])
        later = connection.link_use()
        assert later is not None
        assert later.busy_s >= use.busy_s
    finally:
        connection.close()
        theirs.close()


def test_who_has_no_link_says_nothing(pair: Pair) -> None:
    assert pair.one.link_use() is None


# -- whole writes, exact reads ----------------------------------------------------------------------


@pytest.mark.parametrize("limited", [False, True])
def test_many_buffers_larger_than_the_socket(limited: bool) -> None:
    pair = Pair(limit=RateLimit(1 << 40, Abort()) if limited else None)
    rng = random.Random(1)
    iov = [rng.randbytes(rng.choice([0, 1, 100, 5000])) for _ in range(2500)]  # more than one IOV_MAX
    data = b"".join(iov)
    got = bytearray(len(data))
    views = [memoryview(got)[i : i + 700] for i in range(0, len(got), 700)]  # divided elsewhere
    with beside(lambda: pair.one.send(iov)):
        assert pair.other.recv_into(views) == len(data)
    assert got == data
    assert pair.one.bytes_sent == pair.other.bytes_received == len(data)
    pair.one.close()
    pair.other.close()


def send_whole_file(connection: Connection, path: Path) -> None:
    fd, at = os.open(path, os.O_RDONLY), 0
    try:
        while sent := connection.send_file(fd, at, 1 << 20):
            at += sent
    finally:
        os.close(fd)


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("refused", [False, True])
def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limited: bool, refused: bool) -> None:
    """Inside the kernel, or where its file system cannot, as any other bytes."""
    if refused:

        def sendfile(*args: object) -> int:
            raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(os, "sendfile", sendfile)
    pair = Pair(limit=RateLimit(1 << 40, Abort()) if limited else None)
    data = random.Random(2).randbytes(3_000_001)
    (tmp_path / "file").write_bytes(data)
    got = bytearray(len(data))
    with beside(lambda: send_whole_file(pair.one, tmp_path / "file")):
        assert pair.other.recv_into([memoryview(got)]) == len(data)
    assert got == data
    assert pair.one.bytes_sent == pair.other.bytes_received == len(data)
    pair.one.close()
    pair.other.close()


@pytest.mark.parametrize(("number", "error"), [(errno.EIO, OSError), (errno.EPIPE, ChannelError)])
def test_a_file_that_cannot_be_read_is_not_the_peers_doing(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[OSError]
) -> None:
    def sendfile(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "sendfile", sendfile)
    (tmp_path / "file").write_bytes(b"abc")
    with pytest.raises(OSError, match=r"Input/output|closed by the peer") as caught:
        send_whole_file(pair.one, tmp_path / "file")
    assert isinstance(caught.value, ChannelError) == (error is ChannelError)


def test_a_file_to_who_takes_nothing(tmp_path: Path) -> None:
    pair = Pair(timeout_s=0.05)
    (tmp_path / "file").write_bytes(bytes(8 << 20))
    with pytest.raises(ChannelError, match=r"0\.05 s"):
        send_whole_file(pair.one, tmp_path / "file")
    assert pair.one.stalls
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

    with beside(send):
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


def test_waiting_takes_no_descriptor(pair: Pair) -> None:
    """A migration that has got so far does not end for want of one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        assert not pair.other.wait_readable(0)
        pair.one.send([b"a"])
        assert pair.other.wait_readable(DEADLINE_S)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


ODD = {
    "two dimensions": lambda: memoryview(bytes(range(12))).cast("B", (3, 4)),
    "words": lambda: memoryview(array("I", range(9))),
    "big-endian": lambda: memoryview(np.arange(9, dtype=">u4")),
    "two dimensions of words": lambda: memoryview(np.arange(24, dtype=np.uint64).reshape(4, 6)),
    "records": lambda: memoryview(np.zeros(5, "u1,u8")),
    "booleans": lambda: memoryview(np.array([True, False, True])),
    "characters": lambda: memoryview(b"abc").cast("c"),
    "signed": lambda: memoryview(b"\xff\x01").cast("b"),
    "no dimension": lambda: memoryview(np.array(7, np.uint64)),
    "empty": lambda: memoryview(b""),
    "empty in two dimensions": lambda: memoryview(np.zeros((0, 4), np.uint32)),
    "read-only": lambda: memoryview(bytearray(b"abc")).toreadonly(),
    "a part": lambda: memoryview(bytearray(b"abcdef"))[2:5],
}


@pytest.mark.parametrize("limited", [False, True])
def test_views_of_every_kind(limited: bool) -> None:
    """What a plugin puts into iov goes out as its bytes, whatever its shape and format."""
    pair = Pair(limit=RateLimit(1 << 40, Abort()) if limited else None)
    iov = [view for make in ODD.values() for view in (make(), b"|")]
    data = b"".join(bytes(view) for view in iov)
    got = bytearray(len(data))
    with beside(lambda: pair.one.send(iov)):
        pair.other.recv_exactly([memoryview(got)])
    assert got == data
    assert pair.one.bytes_sent == len(data)
    pair.one.close()
    pair.other.close()


@pytest.mark.parametrize("name", ODD)
def test_views_alone_and_in_small_writes(name: str) -> None:
    """A socket that takes a few bytes at a time: the rest of each view goes on where it stopped."""
    pair = Pair()
    pair.one._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    view = ODD[name]()
    iov = [view] * 100
    got = bytearray(100 * view.nbytes)
    with beside(lambda: pair.one.send(iov)):
        assert pair.other.recv_into([memoryview(got)]) == len(got)
    assert got == bytes(view) * 100
    pair.one.close()
    pair.other.close()


@pytest.mark.parametrize(
    "odd", [memoryview(bytes(10))[::2], memoryview(np.zeros((4, 4), np.uint8).T[:2]), "text", None, 7]
)
def test_what_is_no_contiguous_buffer(pair: Pair, odd: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        pair.one.send([b"abc", odd])
    assert pair.one.bytes_sent == 0


def test_memory_that_cannot_be_touched(pair: Pair, tmp_path: Path) -> None:
    """A map of a file that was cut short: the system call fails, the process lives."""
    (tmp_path / "f").write_bytes(bytes(16384))
    with (tmp_path / "f").open("r+b") as file:
        view = memoryview(mmap.mmap(file.fileno(), 16384))
        file.truncate(4096)
    with pytest.raises(RamError, match="cannot be read"):
        pair.one.send([view])
    pair.other.send([b"x" * 100])
    with pytest.raises(RamError, match="cannot be written"):
        pair.one.recv_into([view[8192:8200]])


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
        stop = [pair.silence.abort.set, pair.one.shutdown] if shut else [pair.silence.abort.set]
        with pytest.raises(ChannelError, match="aborted"), beside(lambda p=pair, b=block: b(p.one)):
            _ = [call() for call in stop]
        assert pair.silence.abort.flag == b"\1"
        pair.one.close()
        pair.other.close()


# -- rate ----------------------------------------------------------------------------------------------


def test_rate_limit_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test: each second passes its share and no more."""
    clock = [50.0]

    class Never(Abort):
        def wait(self, timeout_s: float) -> bool:
            clock[0] += timeout_s
            return False

    monkeypatch.setattr("multifd.transport.limit.time.monotonic", lambda: clock[0])
    limit = RateLimit(1_000_000, Never())
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


def test_a_limit_that_was_lifted_holds_nobody_up():
    limit = RateLimit(1, Abort())
    limit.wait(3600)
    limit.lift()
    limit.wait(1 << 30)  # an hour and more, if it were not
    assert limit.piece >= 1 << 20
