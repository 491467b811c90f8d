"""What ends a migration's waits: the abort flag, and the time in which no byte moved."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from multifd.errors import Aborted, ChannelError, about


class Abort:
    """Set once, when a migration is torn down: every blocking call of it ends within a quarter of a second.

    Thread rule: any thread.
    """

    def __init__(self) -> None:
        self.flag = bytearray(1)
        """One byte for hooks, readable from C: not zero once it is set."""
        self._event = threading.Event()

    def set(self) -> None:
        """Tear down. Again and again is harmless."""
        self.flag[0] = 1
        self._event.set()

    def is_set(self) -> bool:
        """Whether the migration is being torn down."""
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for at most `timeout_s`; whether it is set."""
        return self._event.wait(timeout_s)

    def check(self) -> None:
        """Raise `Aborted` if it is set."""
        if self._event.is_set():
            raise Aborted("the migration was aborted")


class IdleTimer:
    """The time since a byte moved on any connection of a migration, shared by all of them.

    Thread rule: any thread.

    Args:
        timeout_s: how long all may be silent.
        describe: what to add to the error, such as which connections there are; called in any thread.
        wanted: who is waited for while there is no connection at all, as "no sender connected"; empty once there is
            one; called in any thread.
    """

    def __init__(self, timeout_s: float, describe: Callable[[], str] = str, wanted: Callable[[], str] = str) -> None:
        self.timeout_s, self._describe, self._wanted = timeout_s, describe, wanted
        self.abort = Abort()
        self._last = time.monotonic()

    def touch(self) -> None:
        """A byte moved."""
        self._last = time.monotonic()

    def check(self) -> None:
        """Raise if the migration was aborted or has been silent for too long.

        Raises:
            Aborted: the first.
            ChannelError: the second.
        """
        self.abort.check()
        if time.monotonic() - self._last > self.timeout_s:
            words = f"no byte moved on any connection for {self.timeout_s:g} s: the peer hangs or is unreachable"
            if wanted := self._wanted():
                words = f"{wanted} within {self.timeout_s:g} s"
            hint = " (a longer timeout waits longer)"
            raise about(ChannelError(words + hint + self._describe()), "timeout")
