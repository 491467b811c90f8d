"""The bare rate of a method: its hooks in a loop, one thread, without wire, sockets and processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from multifd.bench import machine, sample
from multifd.engine.session import RecvSession, SendSession
from multifd.errors import CodecError
from multifd.pages import Geometry, Memory, Pages
from multifd.ram.block import Source, Staging, private_map
from multifd.registry import load_method
from multifd.transport.idle import IdleTimer

MOST_PAGES = 4096
"""Pages that are compressed: 16 MiB of 4 KiB ones, 0.05 s by zstd level 1 and 1 s at 16 MB/s."""
_TIMEOUT_S = 60.0


class _Payload:
    """A payload as `RecvSession` reads it from a connection."""

    def __init__(self) -> None:
        self.data = memoryview(b"")

    def recv_exactly(self, views: Sequence[memoryview]) -> None:
        """Fill `views` in order: see `multifd.engine.session.Inbound`."""
        at = 0
        for view in views:
            view[:] = self.data[at : at + len(view)]
            at += len(view)


def measure(source_id: str, source: Source, method: str) -> dict[str, Any] | None:
    """Compress and decompress a sample of a source's pages that are not zero, packet by packet.

    Args:
        source_id: how result documents name the source.
        source: the caller's.
        method: NAME or NAME:key=value,...

    Returns:
        An entry of a result document's ``codec``; None if there is nothing to compress, or the method sends pages as
        they are.

    Raises:
        MultifdError: the method cannot be had, or failed.
    """
    loaded = load_method(method)
    geometry = Geometry.of(source.machine.page_size)
    if loaded.capabilities.verbatim:
        return None
    memory, count = _sample(source, geometry)
    if not count:
        return None
    idle, payload, decoded = IdleTimer(_TIMEOUT_S), _Payload(), Staging(geometry)
    offsets = np.arange(count, dtype=np.int64) * geometry.page_size
    compress_s = decompress_s = 0.0
    nbytes = 0
    with (
        SendSession(loaded, 0, geometry, idle, {}) as sending,
        RecvSession(lambda code: loaded, 0, geometry, idle, {}) as receiving,
    ):
        receiving.method(sending.code)
        for start in range(0, count, geometry.page_count):
            pages = Pages(memory, offsets[start : start + geometry.page_count], sending.staging.scratch)
            began = time.perf_counter()
            iov, length = sending.prepare(pages)
            compress_s += time.perf_counter() - began
            payload.data = memoryview(b"".join(iov))
            target = decoded.pages(len(pages))
            began = time.perf_counter()
            receiving.receive(payload, sending.code, target, length)
            decompress_s += time.perf_counter() - began
            nbytes += length
            if target.gather() != pages.gather():
                raise CodecError(f"method {method!r} does not give back what it was given")
    return {
        "source": source_id,
        "method": method,
        "machine": machine.name(),
        "pages": count,
        "ratio": round(count * geometry.page_size / nbytes, 4),
        "compress_bytes_per_s": round(count * geometry.page_size / compress_s),
        "decompress_bytes_per_s": round(count * geometry.page_size / decompress_s),
    }


def _sample(source: Source, geometry: Geometry) -> tuple[Memory, int]:
    """Pages that are not zero, side by side, and how many; of packets spread over RAM."""
    chosen, _ = sample.spread(source, MOST_PAGES)
    buffer = private_map(MOST_PAGES * geometry.page_size)
    memory = Memory(buffer, geometry.page_size)
    staging, loaded = Staging(geometry), np.empty((geometry.page_count, geometry.page_size), np.uint8)
    count = 0
    for portion in chosen:
        pages = sample.load(portion, staging, loaded)
        pages = pages[pages.any(axis=1)]
        memory.array[count : count + len(pages)] = pages
        count += len(pages)
    return memory, count
