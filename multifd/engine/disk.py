"""The receiver's disk: it works while pages arrive, and makes everything durable at the end.

A source with a return path stands still until `Disk.commit` is done, so as much as possible is written before.
"""

from __future__ import annotations

import threading

from multifd.engine.crew import Crew
from multifd.ram.block import Target

_FLUSH_S = 0.02
"""How long the disk rests between two flushes."""


class Disk:
    """A target's threads.

    Args:
        target: what is written; the caller's.
        crew: the migration's.
    """

    def __init__(self, target: Target, crew: Crew) -> None:
        self._target, self._crew = target, crew
        self._is_over = threading.Event()
        self.flusher: threading.Thread | None = None

    def start(self) -> None:
        """Begin to flush what arrives, again and again."""
        self.flusher = self._crew.start("multifd_flush", self._flush)

    def stop(self) -> None:
        """No more flushes; one that is going on may take its time."""
        self._is_over.set()

    def commit(self, uuid: bytes) -> threading.Thread:
        """Make everything durable and visible, in a thread of its own, after the last flush.

        Args:
            uuid: the guest's.
        """
        self.stop()
        return self._crew.start("multifd_commit", self._commit, uuid)

    def _flush(self) -> None:
        while not self._is_over.wait(_FLUSH_S):
            self._target.flush()

    def _commit(self, uuid: bytes) -> None:
        if self.flusher is not None:
            self.flusher.join()
        self._crew.check()  # what could not be flushed is not there
        self._target.commit(uuid)
