"""Digests of pieces of a file: its bytes as a reader sees them, so a hole counts as the zeros that it reads as.

Thread rule: one thread calls; the hashing is done by a few.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any

from multifd.ram.block import private_map
from multifd.ram.checksum import KINDS
from multifd.ram.file import OpenFile, is_hole, read_exactly
from multifd.ram.span import Span

Progress = Callable[[int, int], object]
"""Called about ten times a second in the caller's thread, with the bytes that are done and all; may raise."""
Digests = Mapping[str, str]
"""Hexadecimal, by kind; the names are those of `multifd.ram.checksum.KINDS`."""
Wanted = tuple[Span, tuple[str, ...]]
"""A span, and the kinds of its digests."""
_MOST_THREADS = 4  # a disk is busy with fewer, and SHA-256 takes 1 to 2 GB/s of each
_PIECE = 1 << 20
"""Bytes that are read and digested together; they stay in a processor's cache."""
_BATCH_BYTES = 4 << 20
_MOST_ZEROS = 64 << 20
"""Bytes whose digest is remembered if they are zeros."""
_TICK_S = 0.1


def of_spans(file: OpenFile, wanted: Sequence[Wanted], on_progress: Progress | None = None) -> list[Digests]:
    """Digests of spans, in their order.

    Args:
        file: it stays the caller's.
        wanted: spans, each with the kinds of digests that are wanted of it.
        on_progress: see `Progress`.

    Raises:
        RamError: the file cannot be read, or ends before.
    """
    reading = _Reading(file)
    total = sum(span.nbytes for span, _ in wanted)
    pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "multifd_digest")
    try:
        futures = [pool.submit(reading.digests, batch) for batch in _batches(wanted)]
        left: set[Future[Any]] = set(futures)
        while left:
            done, left = wait(left, _TICK_S, FIRST_EXCEPTION)
            for future in done:
                future.result()  # what went wrong is raised at once
            if on_progress is not None:
                on_progress(reading.done, total)
        return [one for future in futures for one in future.result()]
    finally:
        reading.is_over.set()
        pool.shutdown(cancel_futures=True)


def _batches(wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
    """What a thread does in one go: a span of 16 KiB alone takes less than to hand it over."""
    batch: list[Wanted] = []
    nbytes = 0
    for span, kinds in wanted:
        batch.append((span, kinds))
        nbytes += span.nbytes
        if nbytes >= _BATCH_BYTES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


class _Buffer(threading.local):
    """A thread's own."""

    def __init__(self) -> None:
        self.view = private_map(_PIECE)


class _Reading:
    """One time through a file."""

    def __init__(self, file: OpenFile) -> None:
        self._file, self._path = file, file.path
        self._lock, self._buffer = threading.Lock(), _Buffer()
        self.done = 0
        self.is_over = threading.Event()

    def digests(self, wanted: Sequence[Wanted]) -> list[Digests]:
        """Of each span (any thread); of no use once it is over."""
        return [self._digest(span, kinds) for span, kinds in wanted]

    def _digest(self, span: Span, kinds: tuple[str, ...]) -> Digests:
        end = span.first + span.nbytes
        if span.nbytes <= _MOST_ZEROS and is_hole(self._file, span.first, end, self._path):
            self._count(span.nbytes)
            return of_zeros(span.nbytes, kinds)
        values = {kind: KINDS[kind]() for kind in kinds}
        for at in range(span.first, end, _PIECE):
            if self.is_over.is_set():
                break
            view = self._buffer.view[: min(_PIECE, end - at)]
            if span.nbytes > _PIECE and is_hole(self._file, at, at + len(view), self._path):
                view = _ZEROS[: len(view)]
            else:
                read_exactly(self._file, view, at, self._path)
            for value in values.values():
                value.update(view)
            self._count(len(view))
        return {kind: value.hexdigest() for kind, value in values.items()}

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self.done += nbytes


_ZEROS = memoryview(bytes(_PIECE))


@cache
def of_zeros(nbytes: int, kinds: tuple[str, ...]) -> Digests:
    """Of so many zeros."""
    values = {kind: KINDS[kind]() for kind in kinds}
    for at in range(0, nbytes, _PIECE):
        for value in values.values():
            value.update(_ZEROS[: min(_PIECE, nbytes - at)])
    return {kind: value.hexdigest() for kind, value in values.items()}
