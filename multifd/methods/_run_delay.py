"""How long a thread was ready to run and had no processor."""

from __future__ import annotations

import contextlib
import os
import weakref


class RunDelay:
    """Of the thread that asks, the same each time: the second number of its schedstat (Documentation/scheduler/
    sched-stats.rst). A read takes some 3 µs."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._last_ns: int | None = None

    def since_last_s(self) -> float | None:
        """Seconds since the last call; None at the first one, and where the kernel does not say."""
        now_ns, last_ns = self._read(), self._last_ns
        self._last_ns = now_ns
        return None if now_ns is None or last_ns is None else (now_ns - last_ns) / 1e9

    def _read(self) -> int | None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            if self._fd is None:
                self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
                weakref.finalize(self, os.close, self._fd)
            return int(os.pread(self._fd, 100, 0).split()[1])
        return None
