"""A program that writes to memory while it is migrated: what `multifd demo` moves."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import numpy as np

from multifd.pages import Buffer

_TICK_S = 0.01


class Workload:
    """A thread that changes words on random pages; a context manager. It runs until it is paused or left.

    Args:
        memory: writable, a multiple of `page_size` bytes.
        page_size: bytes.
        pages_per_s: how many pages it writes to.
    """

    def __init__(self, memory: Buffer, page_size: int, pages_per_s: int) -> None:
        self._pages = np.frombuffer(memory, np.uint64).reshape(-1, page_size // 8)
        self._batch = max(round(pages_per_s * _TICK_S), 1)
        self._standing_still = threading.Lock()  # held by whoever wants it to, and while it writes
        self._is_paused = False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="workload", daemon=True)

    def _run(self) -> None:
        rng = np.random.default_rng(1)
        while not self._is_over.wait(_TICK_S):
            pages = rng.integers(0, len(self._pages), self._batch)
            with self._standing_still:
                self._pages[pages, rng.integers(0, self._pages.shape[1])] += np.uint64(1)

    def pause(self) -> None:
        """Return when it writes nothing any more."""
        self._standing_still.acquire()
        self._is_paused = True

    def resume(self) -> None:
        """Let it go on; does nothing if it runs."""
        if self._is_paused:
            self._is_paused = False
            self._standing_still.release()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._is_over.set()
        self.resume()
        self._thread.join()
