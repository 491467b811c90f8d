"""Connections as they come: what is a migration's, what is closed and counted."""

from __future__ import annotations

import errno
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multifd.errors import ChannelError
from multifd.transport.accept import Acceptor, Arrival
from multifd.transport.address import Uri
from multifd.transport.incoming import PlainIncoming
from multifd.transport.listen import Listener
from multifd.wire import stream
from multifd.wire.packet import INIT_BYTES, InitPacket

DEADLINE_S = 30
MAIN = stream.MAGIC_BYTES + b"version"
INIT = InitPacket(3, b"\1" * 16, 4, 1, "zstd").encode()


def is_closed(sock: socket.socket) -> bool:
    """Whether the other end has closed; if it had not read everything, that is a reset."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


class Door:
    """An acceptor and those who knock."""

    def __init__(self, folder: Path, patience_s: float = DEADLINE_S, open: type[PlainIncoming] = PlainIncoming) -> None:
        self.listener = Listener(Uri(path=str(folder / "sock")))
        self.acceptor = Acceptor(self.listener, patience_s, open)
        self.arrivals: list[Arrival] = []
        self._clients: list[socket.socket] = []

    def knock(self, data: bytes = b"") -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        self._clients.append(client)
        client.settimeout(DEADLINE_S)
        client.connect(self.listener.uri.path)
        client.sendall(data)
        return client

    def serve(self, until: Callable[[], object]) -> None:
        """Go on until it is so."""
        deadline = time.monotonic() + DEADLINE_S
        while not until():
            assert time.monotonic() < deadline
            self.arrivals += self.acceptor.wait(0.05)

    def close(self) -> None:
        self.acceptor.close()
        self.listener.close()
        for sock in [*self._clients, *(sock for sock, _, _ in self.arrivals)]:
            sock.close()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    before = len(os.listdir("/proc/self/fd"))
    made = Door(tmp_path)
    yield made
    made.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_main_and_a_channel_in_any_pieces(door: Door) -> None:
    main, channel = door.knock(), door.knock()
    for i in range(INIT_BYTES):
        channel.sendall(INIT[i : i + 1])
        if i < 4:
            main.sendall(stream.MAGIC_BYTES[i : i + 1])
        assert not door.arrivals  # neither main's magic nor an init packet is enough
        door.arrivals += door.acceptor.wait(0)
    main.sendall(b"version")
    channel.sendall(b"packet")
    door.serve(lambda: len(door.arrivals) == 2)
    inits = [init for _, _, init in door.arrivals]
    assert None in inits
    assert InitPacket.decode(INIT) in inits
    assert door.acceptor.rejected == 0


def test_no_byte_is_read_that_belongs_to_others(door: Door) -> None:
    door.knock(stream.MAGIC_BYTES + b"version")
    door.knock(INIT + b"packet")
    door.serve(lambda: len(door.arrivals) == 2)
    rest = {init is None: sock.recv(100) for sock, _, init in door.arrivals}
    assert rest == {True: b"version", False: b"packet"}


BAD = {
    "another magic": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": bytes(64),
    "an init packet of another version": INIT[:4] + b"\0\0\0\x7f" + INIT[8:],
    "a method name that is no text": INIT[:29] + bytes(range(200, 235)),
}


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_strangers_bytes_are_no_error(door: Door, bad: str) -> None:
    stranger = door.knock(BAD[bad].ljust(64, b"\xff"))
    door.serve(lambda: door.acceptor.rejected == 1)
    assert is_closed(stranger)
    door.knock(MAIN)
    door.serve(lambda: door.arrivals)
    assert door.acceptor.rejected == 1


def test_strangers_at_random(door: Door) -> None:
    """Whatever 64 bytes come, also after the right magic: an arrival or a stranger, never an exception."""
    rng = random.Random(7)
    for n in range(200):
        damaged = bytearray(INIT)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(4, 64)] = rng.randrange(256)
        door.knock(bytes(damaged) if rng.random() < 0.7 else rng.randbytes(64)).close()
        door.serve(lambda n=n: door.acceptor.rejected + len(door.arrivals) == n + 1)


def test_who_says_nothing_is_closed(tmp_path: Path) -> None:
    door = Door(tmp_path, patience_s=0.01)
    silent = [door.knock(data) for data in (b"", b"QE", INIT[:40])]
    door.serve(lambda: door.acceptor.rejected == 3)
    for client in silent:
        assert client.recv(1) == b""
    door.close()


def test_more_than_can_wait(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door.acceptor, "_most", 4)
    for i in range(10):
        door.knock(b"QE")
        door.serve(lambda i=i: door.acceptor.rejected == max(0, i - 3))
        door.arrivals += door.acceptor.wait(0.01)


@pytest.mark.parametrize("start", [INIT, stream.MAGIC_BYTES])
def test_a_start_that_nothing_follows_is_a_stranger(door: Door, start: bytes) -> None:
    client = door.knock(start)
    door.arrivals += door.acceptor.wait(0.05)
    client.close()
    door.serve(lambda: door.acceptor.rejected == 1)
    assert not door.arrivals


def test_stop_listening(door: Door) -> None:
    door.knock(INIT + b"packet")
    door.serve(lambda: door.arrivals)
    pending = door.knock(b"QE")
    door.arrivals += door.acceptor.wait(0.05)
    door.acceptor.stop_listening()
    door.acceptor.stop_listening()
    assert is_closed(pending)
    with pytest.raises(OSError, match="No such file"):
        door.knock()
    threading.Thread(target=door.acceptor.wake).start()
    assert list(door.acceptor.wait(DEADLINE_S)) == []


def test_stop_listening_while_arrivals_are_taken(door: Door) -> None:
    """The engine stops as soon as it has the last: the others of the same turn are strangers."""
    for _ in range(3):
        door.knock(INIT + b"packet")
    deadline = time.monotonic() + DEADLINE_S
    while not door.arrivals:
        assert time.monotonic() < deadline
        for arrival in door.acceptor.wait(0.05):
            door.arrivals.append(arrival)
            door.acceptor.stop_listening()
    assert list(door.acceptor.wait(0)) == []


def failing(codes: list[int]) -> Callable[[socket.socket], object]:
    """A socket's accept that fails as long as there are `codes`."""
    real = socket.socket.accept

    def accept(sock: socket.socket) -> object:
        if codes:
            raise OSError(codes[0], os.strerror(codes[0]))
        return real(sock)

    return accept


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_no_descriptor_left(door: Door, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Strangers can use up all descriptors: the migration goes on, and what waits is taken when there is room."""
    fails = [code]
    silent = door.knock(b"QE")
    door.arrivals += door.acceptor.wait(0.05)
    monkeypatch.setattr(socket.socket, "accept", failing(fails))
    door.knock(MAIN)
    door.serve(lambda: door.acceptor.rejected == 1)
    assert "see ulimit -n" in door.acceptor.exhaustion
    assert silent.recv(1) == b""  # the oldest that has not said what it is makes room
    assert list(door.acceptor.wait(0)) == []
    fails.clear()
    door.serve(lambda: door.arrivals)


def test_a_connection_that_went_away_is_no_error(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = [errno.ECONNABORTED]
    monkeypatch.setattr(socket.socket, "accept", failing(fails))
    door.knock(MAIN)
    assert list(door.acceptor.wait(DEADLINE_S)) == []
    fails.clear()
    door.serve(lambda: door.arrivals)


def test_a_broken_listener_is_an_error(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    door.knock()
    monkeypatch.setattr(socket.socket, "accept", failing([errno.EINVAL]))
    with pytest.raises(ChannelError, match="cannot accept"):
        door.serve(lambda: False)


def test_an_encrypted_twin(tmp_path: Path) -> None:
    """What a TLS stream needs: a handshake inside `recv`, and bytes that have arrived but are not at the socket."""

    class Twin(PlainIncoming):
        shaken, buffered = False, b""

        def recv(self, nbytes: int) -> bytes | None:
            if not self.shaken:
                got = super().recv(5)
                self.shaken = got == b"hello"
                return None if got is None or self.shaken else b""
            if not self.buffered:
                got = super().recv(1000)
                if not got:
                    return got
                self.buffered = bytes(byte ^ 0x55 for byte in got)
            data, self.buffered = self.buffered[:nbytes], self.buffered[nbytes:]
            return data

        def has_more(self) -> bool | None:
            return bool(self.buffered) or super().has_more()

    door = Door(tmp_path, open=Twin)
    client = door.knock(b"hello")
    door.arrivals += door.acceptor.wait(0.05)
    client.sendall(bytes(byte ^ 0x55 for byte in INIT + b"packet"))
    door.serve(lambda: door.arrivals)
    assert door.arrivals[0][2] == InitPacket.decode(INIT)
    door.close()


class Crowded(Door):
    """A door whose visitors come from where they say, and at which eight may wait."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.acceptor._most = 8
        self.origin = "there"
        self.listener.accept = self._accept  # type: ignore[method-assign]

    def _accept(self) -> tuple[socket.socket, str] | None:
        accepted = Listener.accept(self.listener)
        return accepted and (accepted[0], f"{self.origin}:1")

    def come(self, data: bytes, origin: str = "there", count: int = 1) -> list[socket.socket]:
        """So many connect, say it and wait; the acceptor has seen them."""
        self.origin = origin
        clients = []
        for _ in range(count):
            clients.append(self.knock(data))
            self.arrivals += self.acceptor.wait(DEADLINE_S)
        return clients


@pytest.mark.parametrize("flood", [b"Q", INIT, stream.MAGIC_BYTES, INIT[:32]])
@pytest.mark.parametrize("start", [b"", b"QE", INIT, stream.MAGIC_BYTES])
def test_a_flood_from_elsewhere_displaces_itself(tmp_path: Path, flood: bytes, start: bytes) -> None:
    door = Crowded(tmp_path)
    (source,) = door.come(start, "here")
    door.come(flood, count=30)
    source.sendall((INIT if start == INIT else MAIN)[len(start) :] + b"more")
    door.serve(lambda: door.arrivals)
    door.close()


@pytest.mark.parametrize("flood", [INIT, stream.MAGIC_BYTES])
def test_who_has_begun_leaves_room_for_newcomers_from_the_same_place(tmp_path: Path, flood: bytes) -> None:
    """They fill it all, but the next newcomer is not the one who goes."""
    door = Crowded(tmp_path)
    door.come(flood, count=30)
    (source,) = door.come(b"")
    door.come(flood, count=3)
    source.sendall(MAIN)
    door.serve(lambda: door.arrivals)
    door.close()
