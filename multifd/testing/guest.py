"""A guest that runs while its pages are sent: another process rewrites half of them (`multifd.testing.writer`)."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np

from multifd.method import CodecError
from multifd.pages import Geometry, Memory, Offsets, Pages
from multifd.testing.child import environment
from multifd.testing.harness import Broken, Inconclusive, RecvEnd, Section, SendEnd, show
from multifd.testing.strategies import packet
from multifd.testing.writer import GENERATION, STOP

DEADLINE_S = 60.0
"""For a process of the kit; the work takes a few seconds."""

LIVE_PACKETS = 1000
LIVE_CHANGED = 20
"""Packets in which a page must have changed during the call, or nothing is proved."""
LIVE_LIMIT = 8000
"""Packets after which the machine is not going to let that happen."""


def send_live(send: SendEnd, recv: RecvEnd, layout: str, folder: Path, packets: int = LIVE_PACKETS) -> None:
    """Send pages of which every second is rewritten meanwhile, and look at the others.

    Args:
        send, recv: both ends, set up.
        layout: of a packet's pages, contiguous or scattered.
        folder: for the guest's memory.
        packets: of 4096-byte pages, at least so many.

    Raises:
        Broken: a page that nobody wrote to is not what it was.
        Inconclusive: too few pages changed during a call.
    """
    page_size = send.geometry.page_size
    arena_pages = min(32, Geometry.of(page_size).page_count)
    palette = b"".join(packet(kind, 2, page_size, 8) for kind in ("text", "pointers", "code", "one-bit"))
    steady = b"".join(packet(kind, 2, page_size, 4) for kind in ("one-bit", "text", "pointers", "code"))[
        : arena_pages // 2 * page_size
    ]
    steady = steady[: arena_pages // 2 * page_size]
    path = folder / "guest"
    path.write_bytes(bytes((1 + arena_pages) * page_size) + palette)
    with path.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 0)
    words = np.frombuffer(shared, np.uint64, page_size // 8)
    memory = Memory(memoryview(shared)[page_size : (1 + arena_pages) * page_size], page_size)
    memory.array[0::2] = np.frombuffer(steady, np.uint8).reshape(-1, page_size)
    indexes = np.arange(arena_pages, dtype=np.int64)
    few = arena_pages * 3 // 4
    orders = [indexes, np.roll(indexes, 7)[:few], indexes[::-1], np.concatenate((indexes[::2], indexes[1::2]))]
    chosen: list[Offsets] = [indexes[a:b] for a, b in ((0, None), (0, few), (3, 3 + few), (few // 3, None))]
    orders = chosen if layout == "contiguous" else orders
    writer = subprocess.Popen(
        [sys.executable, "-m", "multifd.testing.writer", path, str(page_size), str(arena_pages)],
        stdout=subprocess.PIPE,
        env=environment(),
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n", "the writing process did not start"
        _send(send, recv, memory, words, orders, packets)
    finally:
        words[STOP] = 1
        writer.communicate(timeout=DEADLINE_S)


def _send(
    send: SendEnd,
    recv: RecvEnd,
    memory: Memory,
    words: np.ndarray[tuple[int], np.dtype[np.uint64]],
    orders: list[Offsets],
    packets: int,
) -> None:
    page_size = memory.page_size
    changed = 0
    for number in range(LIVE_LIMIT):
        if number >= packets * 4096 // page_size and changed >= LIVE_CHANGED:
            return
        order = orders[number % len(orders)]
        pages = Pages(memory, order * page_size, send.scratch)
        before = int(words[GENERATION])
        send.prepare(pages)
        payload = send.take()
        changed += int(words[GENERATION]) != before
        promise = "a page that is not written during send_prepare decodes exactly, in this and every later packet"
        try:
            got = np.frombuffer(recv.receive(payload, len(order)), np.uint8).reshape(-1, page_size)
        except CodecError as e:
            raise Broken(promise, Section.LIVE, f"{send.where}: the packet does not decode at all: {e}") from e
        is_steady = order % 2 == 0
        wrong = is_steady & (got != memory.array[order]).any(axis=1)
        if wrong.any():
            page = int(wrong.argmax())
            sent = memory.array[order[page]]
            byte = int((got[page] != sent).argmax())
            raise Broken(
                promise,
                Section.LIVE,
                f"{send.where}: {int(wrong.sum())} of {int(is_steady.sum())} untouched pages are wrong, first page "
                f"{page} of {len(order)} at its byte {byte}: sent {show(sent.tobytes(), byte)}, "
                f"got {show(got[page].tobytes(), byte)}; look-back must read a private copy: p.pages.gather()",
            )
    raise Inconclusive(
        f"inconclusive: pages changed during only {changed} of {LIVE_LIMIT} calls of send_prepare, {LIVE_CHANGED} are "
        "needed; give the test a second processor"
    )
