"""How long a migration's connections may be idle, and the flag that aborts it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from multifd.errors import Aborted, ChannelError, about


class IdleTimer:
    """The time since a byte moved on any connection of a migration, shared by all of them.

    Args:
        timeout_s: how long all may be silent.
        describe: what to add to the error, such as which connections there are; called in any thread.
    """

    def __init__(self, timeout_s: float, describe: Callable[[], str] = str) -> None:
        self.timeout_s = timeout_s
        self._describe = describe
        self.abort = bytearray(1)
        self.stopped = threading.Event()
        self._last = time.monotonic()

    def touch(self) -> None:
        """A byte moved."""
        self._last = time.monotonic()

    def check(self) -> None:
        """Raise if the migration was aborted or has been silent for too long.

        Raises:
            ChannelError: either.
        """
        if self.stopped.is_set():
            raise Aborted("the migration was aborted")
        if time.monotonic() - self._last > self.timeout_s:
            raise about(
                ChannelError(
                    f"no byte moved on any connection for {self.timeout_s:g} s: the peer hangs or is unreachable "
                    f"(a longer timeout waits longer){self._describe()}"
                ),
                "timeout",
            )

    def stop(self) -> None:
        """Abort: every blocking call ends within a quarter of a second, hooks see ``p.abort``."""
        self.abort[0] = 1
        self.stopped.set()
