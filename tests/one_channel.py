"""Both ends of one channel without a connection, an image to send, and which of its pages go in which packet."""

from __future__ import annotations

from typing import Any

import numpy as np
from conftest import make_image

from multifd.method import MAX_IOV, MultifdMethods, RecvParams, SendParams
from multifd.pages import Geometry, Memory, Pages

PAGE = 4096
GEOMETRY = Geometry.of(PAGE)
IMAGE = make_image(256, seed=7)


class Sender:
    """One channel that sends pages of a memory."""

    def __init__(self, method: MultifdMethods, memory: bytes | bytearray = IMAGE, channel: int = 0) -> None:
        self.method, self.memory = method, Memory(memory, PAGE)
        self._scratch = Memory(bytearray(128 * PAGE), PAGE)
        self.params = SendParams(channel, GEOMETRY, bytearray(1), self.pages([]))
        method.send_setup(self.params)

    def pages(self, indexes: Any) -> Pages:
        return Pages(self.memory, np.array(indexes, np.int64) * PAGE, self._scratch)

    def packet(self, indexes: Any) -> bytes:
        self.params.pages = self.pages(indexes)
        self.params.iov.clear()
        self.method.send_prepare(self.params)
        assert 0 < len(self.params.iov) <= MAX_IOV
        payload = b"".join(self.params.iov)
        assert len(payload) <= self.method.max_payload(GEOMETRY)
        return payload


class Receiver:
    """One channel that receives pages into a memory of its own."""

    def __init__(self, method: MultifdMethods, pages: int = 256, channel: int = 0) -> None:
        self.method, self.ram = method, bytearray(pages * PAGE)
        self._memory, self._scratch = Memory(self.ram, PAGE), Memory(bytearray(128 * PAGE), PAGE)
        self.params = RecvParams(channel, GEOMETRY, bytearray(1), self.pages([]))
        method.recv_setup(self.params)

    def pages(self, indexes: Any) -> Pages:
        return Pages(self._memory, np.array(indexes, np.int64) * PAGE, self._scratch)

    def packet(self, indexes: Any, payload: bytes) -> bytes:
        self.params.pages = self.pages(indexes)
        self.params.payload = memoryview(payload).toreadonly()
        self.method.recv(self.params)
        return b"".join(self.params.pages)


def expected(indexes: Any) -> bytes:
    """What a packet of these pages holds."""
    return b"".join(IMAGE[i * PAGE : (i + 1) * PAGE] for i in indexes)


PACKETS = [range(128), range(200, 256), [3, 1, 2, 250, 0], [17], list(range(127, -1, -1)), range(128)]
