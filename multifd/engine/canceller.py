"""How a migration is cancelled from outside."""

from __future__ import annotations

import threading
from collections.abc import Callable

from multifd.errors import Cancelled, UsageError


class Canceller:
    """Cancels one `multifd.send` from another thread.

    ::

        handle = multifd.Canceller()
        threading.Thread(target=multifd.send, args=(...), kwargs={"handle": handle}).start()
        handle.cancel()
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop: Callable[[], None] | None = None
        self._is_cancelled = False
        self._is_too_late = False

    def cancel(self) -> bool:
        """Ask for it, from any thread; `multifd.send` then raises `Cancelled`, and a live source is resumed.

        Returns:
            Whether it was in time. Once the stream's end is on its way the destination decides, and this changes
            nothing.
        """
        with self._lock:
            if self._is_too_late:
                return False
            if not self._is_cancelled:
                self._is_cancelled = True
                if self._stop is not None:
                    self._stop()
            return True

    def begin(self, stop: Callable[[], None]) -> None:
        """For the sender: what to call, once, to cancel.

        Raises:
            Cancelled: that was asked for already.
            UsageError: the handle belongs to another migration.
        """
        with self._lock:
            if self._stop is not None:
                raise UsageError("a handle is for one migration")
            self._stop = stop
            if self._is_cancelled:
                raise Cancelled("the migration was cancelled before it began")

    def hand_over(self) -> None:
        """For the sender: from now on it is too late.

        Raises:
            Cancelled: it was in time.
        """
        with self._lock:
            if self._is_cancelled:
                raise Cancelled("the migration was cancelled")
            self._is_too_late = True
