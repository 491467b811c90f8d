"""Sources and clients of another kind: each by its name, long before any timeout; and any number of them at a time."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import peer
import pytest
from ends import wait_for_uri

import multifd
from multifd.errors import ChannelError, PeerMismatch, StreamError
from multifd.transport.accept import Acceptor
from multifd.transport.address import Uri
from multifd.transport.listen import Listener
from multifd.wire.packet import InitPacket

DEADLINE_S = 60
RAM = 16 * peer.PAGE
PART = struct.pack(">BI", 2, peer.RAM_ID)
PAGE = PART + struct.pack(">Q", 0x08) + b"\x03ram" + bytes(peer.PAGE)
ZERO = PART + struct.pack(">Q", 0x02) + b"\x03ram\0"
EOS = struct.pack(">QBI", 0x10, 0x7E, peer.RAM_ID)


def ordinary(*, return_path: bool) -> bytes:
    """A stream without multifd up to the end of SETUP, as every release sends it."""
    pieces = peer.main_stream([(b"ram", RAM)], return_path=return_path, per_section=True)
    return pieces["header"] + pieces["commands"] + pieces["setup"]


def test_a_source_that_died_while_it_connected_does_not_spoil_the_next(receiver):
    """Both come from one place and announce the same."""
    memory, into = bytes(range(256)) * (RAM // 256), bytearray(RAM)
    end = receiver(into)
    with peer.Peer(end.uri) as dead:
        main = dead.connect(peer.main_stream([(b"ram", RAM)])["header"])
        for i in range(2):
            dead.connect(InitPacket(i, bytes(16), 2, 0, "none").encode() + peer.sync()).shutdown(socket.SHUT_WR)
        main.close()
        for channel in dead.sockets[1:]:
            with contextlib.suppress(ConnectionResetError):
                assert channel.recv(1) == b""
    multifd.send(memory, end.uri, channels=2)
    assert end.join().status == "completed"
    assert into == memory


@pytest.mark.parametrize("return_path", [False, True])
@pytest.mark.parametrize("cut", ["nowhere", "behind SETUP", "before SETUP's end", "in the page's word"])
def test_a_source_without_multifd_is_named_whatever_comes_in_which_read(receiver, return_path, cut):
    """It is not told by a timeout, which is a minute here, and longer than a test may last."""
    start = ordinary(return_path=return_path)
    stream = start + PAGE
    at = {"nowhere": len(stream), "behind SETUP": len(start), "before SETUP's end": len(start) - 3}
    cut_at = at.get(cut, len(start) + 7)
    end = receiver(bytearray(RAM), timeout=600)
    with peer.Peer(end.uri) as sender:
        main = sender.connect(stream[:cut_at])
        if return_path and cut_at < len(stream):
            assert main.recv(8) == struct.pack(">HHI", 2, 4, 1)  # PONG: the first piece was read
        main.sendall(stream[cut_at:])
        with pytest.raises(StreamError, match="does not use multifd"):
            end.join()


@pytest.mark.parametrize("return_path", [False, True])
def test_a_source_without_multifd_whose_memory_is_all_zero_is_named(receiver, return_path, monkeypatch):
    monkeypatch.setattr("multifd.engine.recv_main.CHANNELS_S", 0.1)
    end = receiver(bytearray(RAM), timeout=600)
    rest = peer.main_stream([(b"ram", RAM)], per_section=True)
    with peer.Peer(end.uri) as sender:
        main = sender.connect(ordinary(return_path=return_path) + ZERO + EOS + rest["end"] + rest["eof"])
        if not return_path:
            main.shutdown(socket.SHUT_WR)
        with pytest.raises((PeerMismatch, ChannelError), match="does not use multifd"):
            end.join()


def test_a_client_that_speaks_tls_is_named():
    """QEMU with tls-creds, for one: it is closed as soon as it has said four bytes."""
    listener = Listener(Uri.parse("tcp:127.0.0.1:0"))
    acceptor = Acceptor(listener, patience_s=600)
    try:
        with socket.create_connection((listener.uri.host, listener.uri.port), DEADLINE_S) as sock:
            sock.sendall(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03")
            deadline = time.monotonic() + DEADLINE_S
            while not acceptor.rejected and time.monotonic() < deadline:
                assert not list(acceptor.wait(0.1))
        assert "a TLS client" in acceptor.last_stranger
    finally:
        acceptor.close()
        listener.close()


# -- many of them, all the time --------------------------------------------------------------------------------

COUNT = int(os.environ.get("MULTIFD_STRANGERS", "1000"))
"""How many come during one migration: 1000 in a usual run; `MULTIFD_STRANGERS=10000` is the claim's number."""
FOREIGN = "127.0.0.66"
"""Where strangers come from who know the wire: the source comes from 127.0.0.1."""
HEAD = peer.main_stream([(b"ram", RAM)])
IP_BIND_ADDRESS_NO_PORT = 24
"""linux/in.h: the port is chosen at connect, so that binding an address uses none up."""


@dataclass(frozen=True)
class Stranger:
    """A kind of connection that is no migration's.

    Args:
        says: what it sends.
        keeps: whether it stays, and says nothing more; else it closes.
        resets: whether it closes with a reset.
        origin: the address it comes from.
    """

    says: bytes = b""
    keeps: bool = False
    resets: bool = False
    origin: str = ""


STRANGERS = {
    "nothing": Stranger(keeps=True),
    "nothing, closed": Stranger(),
    "nothing, reset": Stranger(resets=True),
    "garbage": Stranger(random.Random(1).randbytes(64)),
    "garbage, reset": Stranger(random.Random(2).randbytes(64), resets=True),
    "HTTP": Stranger(b"GET / HTTP/1.1\r\n\r\n"),
    "a TLS hello": Stranger(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", keeps=True),
    "a byte of main's magic": Stranger(b"Q", keeps=True),
    "main's magic": Stranger(b"QEVM", keeps=True),
    "main's magic, reset": Stranger(b"QEVM", resets=True),
    "main's magic and version": Stranger(b"QEVM\0\0\0\3", keeps=True),
    "main's start": Stranger(HEAD["header"], keeps=True),
    "main's start, and another migration's word": Stranger(HEAD["header"] + b"\x63" * 100),
    "main's start, reset": Stranger(HEAD["header"], resets=True),
    "half an init packet": Stranger(peer.init(0)[:32], keeps=True),
    "half an init packet, reset": Stranger(peer.init(0)[:32], resets=True),
    "an init packet": Stranger(peer.init(0), keeps=True),
    "an init packet of another number": Stranger(peer.init(200), keeps=True),
    "an init packet of another guest": Stranger(peer.init(0, uuid=b"u" * 16), keeps=True),
    "an init packet of another version": Stranger(peer.init(0)[:4] + b"\0\0\0\x7f" + peer.init(0)[8:]),
    "a whole channel of another number": Stranger(peer.init(200) + peer.sync(), keeps=True, origin=FOREIGN),
    "a whole channel of another guest": Stranger(
        peer.init(0, uuid=b"u" * 16) + peer.sync(), keeps=True, origin=FOREIGN
    ),
    "a whole channel like the source's": Stranger(peer.init(0) + peer.sync(), keeps=True, origin=FOREIGN),
    "all the channels of a migration": Stranger(peer.init(0, channels=1) + peer.sync(), keeps=True, origin=FOREIGN),
    "a channel of a private method": Stranger(peer.init(0, version=1, name=b"lz4") + peer.sync(), origin=FOREIGN),
}


class Crowd:
    """Strangers of all kinds, four at a time, until as many have come as should."""

    def __init__(self, uri: str, count: int) -> None:
        self.came = 0
        self.failed: list[OSError] = []
        self.uri, self._left = uri, count
        self._kept: deque[socket.socket] = deque()
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._run, args=(random.Random(i),)) for i in range(4)]

    def __enter__(self) -> Crowd:
        return self

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *exc_info: object) -> None:
        with self._changed:
            self._left = 0
        self.leave()

    def leave(self) -> None:
        """When all have come, those who have stayed go."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(10 * DEADLINE_S)
                assert not thread.is_alive()
        for sock in self._kept:
            sock.close()
        self._kept.clear()

    def wait(self, count: int) -> None:
        """Return when so many have come."""
        with self._changed:
            is_over = self._changed.wait_for(lambda: self.failed or self.came >= count, 10 * DEADLINE_S)
        assert is_over, self.came
        assert not self.failed

    def pass_through(self) -> None:
        """Return when all that have come so far were accepted: one who comes last was seen and closed."""
        with socket.create_connection(peer.address(self.uri), DEADLINE_S) as last, contextlib.suppress(ConnectionError):
            last.sendall(b"HELO")
            assert last.recv(1) == b""
        with self._changed:
            self.came += 1

    def _run(self, rng: random.Random) -> None:
        kinds = list(STRANGERS.values())
        while True:
            with self._changed:
                if not self._left:
                    return
                self._left -= 1
                is_turn = not self._left % 25
            try:
                if is_turn:  # so that the queue of those whom nobody has accepted yet never overflows
                    self.pass_through()
                kept = self._knock(rng.choice(kinds))
            except OSError as e:
                with self._changed:
                    self.failed.append(e)
                    self._changed.notify_all()
                return
            with self._changed:
                if kept is not None:
                    self._kept.append(kept)
                    kept = self._kept.popleft() if len(self._kept) > 200 else None  # of this process' descriptors
                self.came += 1
                self._changed.notify_all()
            if kept is not None:
                kept.close()

    def _knock(self, stranger: Stranger) -> socket.socket | None:
        sock = socket.socket()
        if stranger.origin:
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((stranger.origin, 0))
        sock.settimeout(DEADLINE_S)
        sock.connect(peer.address(self.uri))
        with contextlib.suppress(OSError):  # the other end has closed already, which is its right
            sock.sendall(stranger.says)
        if stranger.keeps:
            return sock
        if stranger.resets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        return None


class Watch:
    """The most that a process ever held, while it is watched."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        self.threads = self.descriptors = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join(DEADLINE_S)

    def wait_until_sockets(self, count: int) -> None:
        """Return when the process has no more than so many."""
        deadline = time.monotonic() + DEADLINE_S
        while (found := self._sockets()) > count:
            assert time.monotonic() < deadline, found
            time.sleep(0.01)

    def _sockets(self) -> int:
        names = []
        for number in os.listdir(self._folder / "fd"):
            with contextlib.suppress(FileNotFoundError):
                names.append(os.readlink(self._folder / "fd" / number))
        return sum(name.startswith("socket:") for name in names)

    def _run(self) -> None:
        while not self._over.wait(0.01):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                self.threads = max(self.threads, len(os.listdir(self._folder / "task")))
                self.descriptors = max(self.descriptors, len(os.listdir(self._folder / "fd")))


def few_descriptors() -> None:
    """In a process to be: an eighth of what is usual."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))


PAGES = [bytes([i]) * peer.PAGE for i in range(1, RAM // peer.PAGE + 1)]


def migrate_among(crowd: Crowd, count: int, watch: Watch, connections: int) -> None:
    """A migration by two channels that are not announced, as a QEMU's: its pieces come as the crowd comes.

    Main comes first, then channels, pages one by one, and the end when the last stranger was seen to go.

    Args:
        crowd: its strangers.
        count: how many.
        watch: the process that is asked.
        connections: that it has for this migration.
    """
    stream = peer.main_stream([(b"ram", RAM)])
    crowd.pass_through()  # among strangers nobody is taken for what is waited for because of how he begins
    crowd.start()
    with peer.Peer(crowd.uri, DEADLINE_S) as source:
        crowd.wait(count // 4)
        main = source.connect(stream["header"] + stream["setup"])
        crowd.wait(count // 3)
        channels = [source.connect(peer.init(i) + peer.sync()) for i in range(2)]
        for i, page in enumerate(PAGES):
            crowd.wait(count // 2 + i * (count // 2) // len(PAGES))
            channels[i % 2].sendall(peer.packet([i * peer.PAGE], page))
        crowd.wait(count)
        crowd.leave()
        watch.wait_until_sockets(1 + connections)  # the listener's
        for channel in channels:
            channel.sendall(peer.sync())
        main.sendall(stream["end"] + stream["eof"])
        for channel in channels:
            channel.shutdown(socket.SHUT_WR)
        main.shutdown(socket.SHUT_WR)
        main.settimeout(DEADLINE_S)
        assert main.recv(1) == b""  # the other end has everything


@pytest.mark.timeout(600)
def test_any_number_of_strangers_at_a_receiver_change_nothing_but_a_counter(cli, tmp_path):
    """Not its memory, threads, descriptors, words; and of descriptors it may have few."""
    out, log = tmp_path / "out.ram", tmp_path / "log"
    with log.open("w") as stderr:
        end = cli(
            "receive", "tcp:127.0.0.1:0", out, "--format", "raw", "--channels", 2, "--json", "-v",
            stderr=stderr, preexec_fn=few_descriptors,
        )  # fmt: skip
    uri = wait_for_uri(log)
    with Watch(end.process.pid) as watch, Crowd(uri, COUNT) as crowd:
        migrate_among(crowd, COUNT, watch, 3)
        document = end.json()
    assert out.read_bytes() == b"".join(PAGES)
    assert (document["status"], document["notes"], document["error"]) == ("completed", [], None)
    assert (document["channels"], document["normal_pages"]) == (2, len(PAGES))
    assert re.search(r"(\d+) connections that were no migration's", log.read_text())[1] == str(crowd.came)
    assert watch.threads <= 2 + 2 + 10
    assert watch.descriptors < 120


@pytest.mark.timeout(600)
def test_any_number_of_strangers_at_a_relay_change_nothing_but_a_counter(cli, receiver, tmp_path):
    into, log = bytearray(RAM), tmp_path / "log"
    end = receiver(into, channels=2)
    with log.open("w") as stderr:
        between = cli(
            "relay", "tcp:127.0.0.1:0", end.uri, "--out", "zstd", "--once", "--json",
            stderr=stderr, preexec_fn=few_descriptors,
        )  # fmt: skip
    uri = wait_for_uri(log)
    with Watch(between.process.pid) as watch, Crowd(uri, COUNT) as crowd:
        migrate_among(crowd, COUNT, watch, 6)
        document = between.json()
    assert end.join().status == "completed"
    assert into == b"".join(PAGES)
    assert (document["status"], document["notes"], document["error"]) == ("completed", [], None)
    assert (document["channels"], document["normal_pages"], document["rejected"]) == (2, len(PAGES), crowd.came)
    told = [line for line in log.read_text().splitlines() if not line.startswith("relay: ")]  # its progress
    assert told == [f"listening on {uri}"]
    assert watch.threads <= 2 + 4 + 10
    assert watch.descriptors < 120
