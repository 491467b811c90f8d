"""The bandwidth limit that all connections of a migration share."""

from __future__ import annotations

import math
import threading
import time

from multifd.transport.idle import Abort


class RateLimit:
    """Lets at most `bytes_per_s` pass, summed over all connections that share it.

    Bytes go in pieces worth about 10 ms, so that any second holds its share to within 5 %.

    Thread rule: any thread.

    Args:
        bytes_per_s: above 0.
        abort: the migration's, which ends a wait.
    """

    def __init__(self, bytes_per_s: int, abort: Abort) -> None:
        self.bytes_per_s: float = bytes_per_s
        self.piece = max(bytes_per_s // 100, 1024)
        self._abort = abort
        self._lock = threading.Lock()
        self._next = 0.0

    def lift(self) -> None:
        """No limit from now on."""
        with self._lock:
            self.bytes_per_s, self.piece, self._next = math.inf, 1 << 20, 0.0

    @property
    def is_lifted(self) -> bool:
        """Whether there is none any more."""
        return self.bytes_per_s == math.inf

    def wait(self, nbytes: int) -> float:
        """Return when `nbytes` more may be sent, or at once when the migration is aborted: after so many seconds."""
        with self._lock:
            now = time.monotonic()
            due = max(self._next, now - 0.01)
            self._next = due + nbytes / self.bytes_per_s
        if due > now:
            self._abort.wait(due - now)
        return max(due - now, 0.0)
