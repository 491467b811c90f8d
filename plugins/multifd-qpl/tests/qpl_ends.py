"""Both ends of a channel without an engine, and pages to send."""

from __future__ import annotations

import random

import numpy as np

from multifd.method import Memory, MultifdMethods, Pages, RecvParams, SendParams
from multifd.pages import Geometry

PAGE_SIZES = [4096, 8192, 16384, 65536]


def make_pages(page_size: int, count: int, seed: int = 1) -> bytearray:
    """Pages of every sort: text, sparse, one byte, noise, and far repeats."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randint(2, 9)) for _ in range(300)]
    pages = bytearray()
    for i in range(count):
        kind = i % 5
        if kind == 0:
            page = b" ".join(rng.choice(words) for _ in range(page_size // 3))
        elif kind == 1:
            page = bytearray(page_size)
            for _ in range(page_size // 64):
                page[rng.randrange(page_size)] = rng.randrange(256)
        elif kind == 2:
            page = bytes([rng.randrange(1, 256)]) * page_size
        elif kind == 3:
            page = rng.randbytes(page_size)
        else:
            page = rng.randbytes(5000) * (page_size // 5000 + 1)  # repeats only beyond 4 KiB
        pages += page[:page_size]
    return pages


class Ends:
    """Both ends of one channel, without an engine between them."""

    def __init__(self, method: MultifdMethods, page_size: int = 4096, abort: bytearray | None = None) -> None:
        self.method = method
        self.geometry = Geometry.of(page_size)
        self.abort = bytearray(1) if abort is None else abort
        size = page_size * self.geometry.page_count
        self.scratch = Memory(memoryview(bytearray(size)), page_size)
        none = Pages(self.scratch, np.array([], np.int64), self.scratch)
        self.sender = SendParams(3, self.geometry, self.abort, none)
        self.receiver = RecvParams(3, self.geometry, self.abort, none)

    def __enter__(self) -> Ends:
        try:
            self.method.send_setup(self.sender)
            self.method.recv_setup(self.receiver)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for _ in range(2):  # the second is harmless
            self.method.send_cleanup(self.sender)
            self.method.recv_cleanup(self.receiver)

    def pages(self, memory: bytearray, offsets: list[int] | None = None) -> Pages:
        """Pages of `memory`: all, or those at `offsets`."""
        page_size = self.geometry.page_size
        if offsets is None:
            offsets = list(range(0, len(memory), page_size))
        return Pages(Memory(memoryview(memory), page_size), np.array(offsets, np.int64), self.scratch)

    def send(self, memory: bytearray, offsets: list[int] | None = None) -> bytes:
        """The payload of a packet."""
        self.sender.pages = self.pages(memory, offsets)
        self.sender.iov.clear()
        self.method.send_prepare(self.sender)
        assert len(self.sender.iov) <= 1000
        return b"".join(self.sender.iov)

    def receive(self, payload: bytes, memory: bytearray, offsets: list[int] | None = None) -> None:
        """A packet's payload into `memory`."""
        self.receiver.pages = self.pages(memory, offsets)
        self.receiver.payload = memoryview(payload).toreadonly()
        self.method.recv(self.receiver)


def split(payload: bytes, count: int) -> list[bytes]:
    """The pages' parts of a payload; checks that the table fits."""
    lengths = [int.from_bytes(payload[4 * i : 4 * i + 4], "big") for i in range(count)]
    start, parts = 4 * count, []
    for length in lengths:
        parts.append(payload[start : start + length])
        start += length
    assert start == len(payload)
    return parts
