"""One channel over a socketpair, by the pump or by Python, and everything that can be seen of it."""

from __future__ import annotations

import contextlib
import mmap
import re
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multifd.engine.fate import SENDER, Custody, Fate
from multifd.engine.recv_channel import RecvChannel
from multifd.engine.send_channel import SendChannel
from multifd.engine.session import SendSession
from multifd.engine.sync import Barrier, Rounds, all_pages
from multifd.errors import MethodNotFound, MultifdError
from multifd.method import MultifdMethods
from multifd.pages import Geometry
from multifd.pump import library
from multifd.ram.block import Source, Target
from multifd.stats import ChannelStats
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.transport.limit import RateLimit
from multifd.wire.dialect import DIALECTS
from multifd.wire.stream import Machine

PATHS = ("python", "pump")
TIMEOUT_S = 30.0
_AT_ONCE = 200_000
"""Bytes that a socket takes though nobody reads: less than half of wmem_max, which the kernel doubles."""


@contextlib.contextmanager
def by(path: str) -> Iterator[None]:
    """Let channels that are opened inside go by one path."""
    was = library.unavailable_reason
    library.unavailable_reason = lambda: "a test compares it" if path == "python" else ""  # type: ignore[assignment]
    try:
        yield
    finally:
        library.unavailable_reason = was


@dataclass
class Seen:
    """What a channel did."""

    error: tuple[Any, ...] | None = None
    data: bytes = b""
    """The wire, or what the target holds."""
    main: bytes = b""
    normal_pages: int = 0
    zero_pages: int = 0
    custody: Custody | None = None
    counters: dict[str, int] = field(default_factory=dict)


def told(error: MultifdError) -> tuple[Any, ...]:
    """What of an error the two paths must agree on."""
    # How many bytes came by one call is chance.
    text = re.sub(
        r"closed the connection (after \d+ of \d+ bytes|in the middle of a packet)", "closed early", str(error)
    )
    place = tuple(getattr(error, name, None) for name in ("channel", "packet", "offset"))
    return type(error), text, *place


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends that are connected."""
    a, b = socket.socketpair()
    for sock in (a, b):
        sock.settimeout(TIMEOUT_S)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _AT_ONCE)
    return a, b


@contextlib.contextmanager
def saying(sock: socket.socket, wire: bytes) -> Iterator[None]:
    """Let an end say `wire` and close."""

    def write() -> None:
        with sock, contextlib.suppress(OSError):
            sock.sendall(wire)

    if len(wire) <= _AT_ONCE:
        write()
        yield
        return
    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        writer.join()


def receive(path: str, wire: bytes, target: Target, machine: Machine, methods: Sequence[MultifdMethods]) -> Seen:
    """Let a channel receive `wire`, after which the sender closes.

    Args:
        path: one of `PATHS`.
        wire: packets.
        target: where to; neither committed nor discarded here.
        machine: whose blocks they are.
        methods: those that a packet may be of.
    """
    ours, theirs = pair()
    blocks = target.allocate(machine)
    figures, barrier = ChannelStats(), Barrier()
    barrier.expect(4)
    barrier.end()  # main has reached every sync point
    idle = IdleTimer(TIMEOUT_S)
    connection = Connection(ours, idle, "the sender")

    def method_of(code: int) -> MultifdMethods:
        for method in methods:
            if method.wire_code == code:
                return method
        raise MethodNotFound(f"code {code}", [])

    channel = RecvChannel(3, connection, barrier, method_of, lambda: False, figures)
    seen = Seen()
    try:
        with saying(theirs, wire), contextlib.closing(connection), by(path):
            channel.run(Geometry.of(machine.page_size), blocks, idle)
    except MultifdError as e:
        seen.error = told(e)
    seen.normal_pages, seen.zero_pages = figures.normal_pages, figures.zero_pages
    seen.counters = dict(figures.counters)
    return seen


class _Main:
    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)


def send(
    path: str, source: Source, method: MultifdMethods, *, dialect: str = "9.0", rounds: int = 1, bytes_per_s: int = 0
) -> Seen:
    """Let a channel send everything, `rounds` times.

    Args:
        path: one of `PATHS`.
        source: what to send; stays open.
        method: the migration's.
        dialect: the destination's.
        rounds: how often.
        bytes_per_s: a limit, 0 for none.
    """
    ours, theirs = pair()
    geometry, idle = Geometry.of(source.machine.page_size), IdleTimer(TIMEOUT_S)
    limit = RateLimit(bytes_per_s, idle.abort) if bytes_per_s else None
    connection = Connection(ours, idle, "the destination", limit)
    received: list[bytes] = []

    def read() -> None:
        while data := theirs.recv(1 << 16):
            received.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    figures, main, fate, queue = ChannelStats(), _Main(), Fate(SENDER), Rounds(1, geometry.page_count)
    session = SendSession(method, 0, geometry, idle, figures.counters)
    channel: Any = SendChannel(connection, session, main, queue, geometry, DIALECTS[dialect], figures, fate)  # type: ignore[arg-type]
    seen = Seen()

    def run() -> None:
        try:
            with by(path):
                channel.run()
        except MultifdError as e:
            seen.error = told(e)

    def wait_synced() -> None:
        while not queue.wait_synced(1):
            pass

    thread = threading.Thread(target=run)
    thread.start()
    with contextlib.suppress(MultifdError):
        wait_synced()  # it is set up
        for _ in range(rounds):
            queue.start(all_pages(source.blocks, geometry))
            wait_synced()
        queue.end()
    thread.join()
    connection.close()
    reader.join()
    theirs.close()
    seen.data, seen.main = b"".join(received), b"".join(main.written)
    seen.normal_pages, seen.zero_pages, seen.custody = figures.normal_pages, figures.zero_pages, fate.custody
    seen.counters = dict(figures.counters)
    return seen


def offsets_of_zero(main: bytes) -> list[int]:
    """Offsets in ZERO words: u64 with flags in the low bits, a name after those that name their block, a fill byte."""
    found, at = [], 0
    while at < len(main):
        (word,) = struct.unpack_from(">Q", main, at)
        at += 8
        if not word & 0x20:  # CONTINUE
            at += 1 + main[at]
        assert word & 0x02  # ZERO
        assert main[at] == 0
        at += 1
        found.append(word & ~0xFFF)
    return found


def memory(nbytes: int, data: bytes = b"") -> mmap.mmap:
    """Private memory of its own, page-aligned, `data` at its start."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[: len(data)] = data
    return memory


def random_pages(rng: np.random.Generator, count: int, page_size: int) -> bytes:
    """Pages of bytes that compress a little."""
    return rng.integers(1, 17, count * page_size, np.uint8).tobytes()


def read(path: Path) -> bytes:
    """A file's bytes, b"" if there is none."""
    return path.read_bytes() if path.exists() else b""
