"""Ways in which a destination can misbehave, towards a sender and towards a relay: an error in words, in time.

Whatever it does, a sender ends, and never calls its memory handed over without the destination's word, nor intact
where the destination may have it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from conftest import make_image
from ends import RelayThread

import multifd
from multifd.errors import MultifdError

CHANNELS = 2
PONG = b"\0\2\0\4\0\0\xff\xff"
"""One that answers every PING there will be."""
SHUT, FAILED = b"\0\1\0\4\0\0\0\0", b"\0\1\0\4\0\0\0\1"


@dataclass(frozen=True)
class Deed:
    """What a destination does on one of its connections once it has read so many bytes of it.

    Args:
        after: bytes; it reads no more than that before.
        says: what it writes then.
        then: ``read`` on to the end, ``stall``, ``close`` or ``reset``.
    """

    after: int = 1 << 40
    says: bytes = b""
    then: str = "read"


@dataclass(frozen=True)
class Case:
    """A way to misbehave.

    Args:
        main, channel: what it does on main, and on its first channel; the others it reads.
        words: what a sender says, as a pattern.
        accepts: as many connections as it takes from the queue.
        status: of the sender's result.
    """

    main: Deed = Deed()
    channel: Deed = Deed()
    words: str = "closed|broke|no byte moved|before it had everything"
    accepts: int = 1 + CHANNELS
    status: str = "failed"


CASES = {
    "reads everything and answers nothing": Case(words="no byte moved"),
    "closes main at once": Case(main=Deed(0, then="close")),
    "closes main in its start": Case(main=Deed(30, then="close")),
    "resets main in its start": Case(main=Deed(30, then="reset")),
    "closes a channel at once": Case(channel=Deed(0, then="close")),
    "closes a channel after its init packet": Case(channel=Deed(64, then="close")),
    "closes a channel among pages": Case(channel=Deed(100_000, then="close")),
    "resets a channel among pages": Case(channel=Deed(100_000, then="reset")),
    "stops reading a channel": Case(channel=Deed(100_000, then="stall"), words="no byte moved"),
    "stops reading main": Case(main=Deed(30, then="stall"), words="no byte moved"),
    "reads nothing": Case(main=Deed(0, then="stall"), channel=Deed(0, then="stall"), words="no byte moved"),
    "talks on a channel": Case(channel=Deed(1000, b"who is there? " * 9), words="no byte moved"),
    "talks nonsense on main": Case(main=Deed(30, b"hello, this is no return path\n" * 9), words="message 26725"),
    "says on main what is no message": Case(main=Deed(30, b"\0\7\0\0"), words="message 7"),
    "says a message of the wrong length": Case(main=Deed(30, b"\0\1\0\3abc"), words="length|message 1"),
    "ends inside a message": Case(main=Deed(30, b"\0\1\0", "close")),
    "says at once that it failed": Case(main=Deed(0, FAILED), words="reports that it failed"),
    "says in the middle that it failed": Case(main=Deed(30, FAILED, "close"), words="reports that it failed"),
    "confirms before it had everything": Case(main=Deed(30, SHUT), words="before it had everything"),
    "confirms and closes before it had everything": Case(main=Deed(30, SHUT, "close")),
    "answers pings that nobody sent": Case(main=Deed(0, PONG * 200, "close")),
    "takes main alone": Case(accepts=1, words="no byte moved"),
    "takes all but a channel": Case(accepts=CHANNELS, words="no byte moved"),
    "answers every ping and goes": Case(
        main=Deed(1 << 40, PONG), words="nothing confirms that it arrived|closed", status="failed|unknown"
    ),
}


class Destination:
    """A listener that does what a case says."""

    def __init__(self, case: Case) -> None:
        self._case, self._is_over = case, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self.uri = f"tcp:127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, run: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=run, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            for number in range(self._case.accepts):
                sock, _ = self._listener.accept()
                self._sockets.append(sock)
                deed = {0: self._case.main, 1: self._case.channel}.get(number, Deed())
                self._start(self._serve, sock, deed)

    def _serve(self, sock: socket.socket, deed: Deed) -> None:
        left = deed.after
        with contextlib.suppress(OSError):
            if deed.after == 1 << 40 and deed.says:
                sock.sendall(deed.says)
            while left and (data := sock.recv(min(left, 1 << 16))):
                left -= len(data)
            if not left and deed.says:
                sock.sendall(deed.says)
            if deed.then == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if deed.then in ("close", "reset"):
                sock.close()
            elif deed.then == "read":
                while sock.recv(1 << 16):
                    pass
            else:
                self._is_over.wait(60)

    def close(self) -> None:
        self._is_over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(60)
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def destination() -> Iterator[Callable[[Case], Destination]]:
    started: list[Destination] = []

    def start(case: Case) -> Destination:
        started.append(Destination(case))
        return started[-1]

    yield start
    for one in started:
        one.close()


IMAGE = make_image(4096)
"""16 MiB: more than the sockets' buffers hold."""


def check(error: MultifdError, case: Case) -> None:
    """What is said of the memory agrees with the status."""
    words = " ".join([str(error), *getattr(error, "__notes__", ())])
    assert error.result.status in case.status.split("|")
    assert ("intact" in words) == (error.result.status == "failed")
    assert ("look there" in words) == (error.result.status == "unknown")


@pytest.mark.parametrize("name", CASES)
def test_towards_a_sender(destination, name: str) -> None:
    case = CASES[name]
    with pytest.raises(MultifdError, match=case.words) as caught:
        multifd.send(IMAGE, destination(case).uri, channels=CHANNELS, timeout=2.0, connect_timeout=2.0)
    check(caught.value, case)
    assert caught.value.exit_code in (4, 5, 7)


@pytest.mark.parametrize("name", CASES)
def test_towards_a_relay(destination, name: str) -> None:
    """Both the relay and the source behind it end, and neither says that the destination has the memory."""
    between = RelayThread(destination(CASES[name]).uri, timeout=2.0, connect_timeout=2.0, out_method="none")
    with pytest.raises(MultifdError) as caught:
        multifd.send(IMAGE, between.uri, channels=CHANNELS, timeout=4.0, connect_timeout=2.0)
    check(caught.value, CASES[name])
    with pytest.raises(MultifdError) as told:
        between.join()
    assert told.value.result.status in ("failed", "unknown")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image as stored streams."""
    place = f"dir:{tmp_path_factory.mktemp('stored')}/streams"
    multifd.send(IMAGE, place, channels=CHANNELS)
    return place


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].words != "no byte moved"])
def test_towards_stored_streams(destination, stored: str, name: str) -> None:
    case = CASES[name]
    with pytest.raises(MultifdError, match=case.words) as caught:
        multifd.send(stored, destination(case).uri, timeout=2.0, connect_timeout=2.0)
    check(caught.value, case)
    assert caught.value.exit_code in (4, 5, 7)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        uri = f"tcp:127.0.0.1:{gone.getsockname()[1]}"
    with pytest.raises(MultifdError, match=r"cannot connect .* refused") as caught:
        multifd.send(IMAGE, uri, connect_timeout=0.3)
    assert "intact" in caught.value.__notes__[-1]
