"""A method that chooses its level while it goes: see docs/write-a-method.md."""

from __future__ import annotations

import time
import zlib

from multifd.method import CodecError, Geometry, MultifdMethods, RecvParams, SendParams

ENOUGH_BYTES = 2 << 20
"""Of pages, for each decision: sockets take what they are given in jumps, so a single packet tells little."""


class BriskMethod(MultifdMethods):
    """Each packet by itself, by the level of zlib that keeps codec and link about equally busy."""

    name = "brisk"
    api = 1

    def max_payload(self, geometry: Geometry) -> int:
        nbytes = geometry.page_count * geometry.page_size
        return nbytes + nbytes // 256 + 64

    # [send]
    def send_setup(self, p: SendParams) -> None:
        p.state = Pace()
        p.counters.update({f"brisk.level_{level}_packets": 0 for level in range(10)})

    def send_prepare(self, p: SendParams) -> None:
        pace: Pace = p.state
        pace.enter()
        payload = zlib.compress(p.pages.gather(), pace.level)
        p.iov.append(payload)
        p.counters[f"brisk.level_{pace.level}_packets"] += 1
        pace.leave(p.pages.nbytes, len(payload))

    def recv(self, p: RecvParams) -> None:
        codec = zlib.decompressobj()
        try:
            data = codec.decompress(p.payload, p.pages.nbytes + 1)
        except zlib.error as e:
            raise CodecError(f"brisk payload: {e}") from e
        if len(data) != p.pages.nbytes or not codec.eof or codec.unused_data:
            raise CodecError(f"brisk payload gives {len(data)} bytes, expected {p.pages.nbytes} and the end")
        p.pages.scatter(data)


class Pace:
    """One channel's level, from what its packets took."""

    def __init__(self) -> None:
        self.level = 1
        self._at_s, self._at_cpu_s = time.monotonic(), time.thread_time()
        self._forget()

    def enter(self) -> None:
        """A hook begins: what passed since the last one went into sending, or into waiting for that."""
        passed_s, cpu_s = self._clock()
        self._between_s += passed_s
        self._between_cpu_s += cpu_s

    def leave(self, page_bytes: int, payload_bytes: int) -> None:
        """A hook ends: what passed since it began went into compressing."""
        passed_s, cpu_s = self._clock()
        self._inside_s += passed_s
        self._inside_cpu_s += cpu_s
        self._page_bytes += page_bytes
        self._payload_bytes += payload_bytes
        if self._page_bytes >= ENOUGH_BYTES:
            self.level = self._better()
            self._forget()

    def _better(self) -> int:
        if self._payload_bytes > 0.97 * self._page_bytes and self.level:
            return 0  # these pages do not shrink, by no level
        crowd = max(1.0, self._inside_s / self._inside_cpu_s)  # how many want the processor
        waited = self._between_s - self._between_cpu_s * crowd
        share = waited / (self._inside_s + self._between_s)
        if share > 0.3 and crowd < 1.5:
            return min(self.level + 1, 9)
        if share < 0.1 or crowd >= 1.5:
            return max(self.level - 1, 0)
        return self.level

    def _forget(self) -> None:
        self._inside_s = self._inside_cpu_s = self._between_s = self._between_cpu_s = 0.0
        self._page_bytes = self._payload_bytes = 0

    def _clock(self) -> tuple[float, float]:
        """Seconds since the last call, by the clock and of this thread's processor."""
        before_s, before_cpu_s = self._at_s, self._at_cpu_s
        self._at_s, self._at_cpu_s = time.monotonic(), time.thread_time()
        return self._at_s - before_s, self._at_cpu_s - before_cpu_s

    # [end]
