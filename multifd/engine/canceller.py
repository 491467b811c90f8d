"""How a migration is cancelled from outside."""

from __future__ import annotations

import threading
from collections.abc import Callable

from multifd.errors import Cancelled, UsageError


class Canceller:
    """Cancels one `multifd.send`, `multifd.receive` or `multifd.api.relay` from another thread, or a signal handler.

    ::

        canceller = multifd.Canceller()
        threading.Thread(target=multifd.send, args=(...), kwargs={"canceller": canceller}).start()
        canceller.cancel()

    Args:
        what: is cancelled, as errors call it.
    """

    def __init__(self, what: str = "the migration") -> None:
        self._what = what
        # Reentrant: a signal handler may call while this thread is inside.
        self._lock = threading.RLock()
        self._stop: Callable[[], object] | None = None
        self._hurry: Callable[[], object] | None = None
        self._is_cancelled = False
        self._is_too_late = False
        self._is_released = False

    def cancel(self) -> bool:
        """Ask for it, from any thread; the call then raises `Cancelled`, and a live source is resumed.

        Returns:
            Whether it was in time. Once the destination may have the memory this changes nothing: the call returns, or
            raises, what becomes of it.
        """
        with self._lock:
            if self._is_too_late:
                return False
            if not self._is_cancelled:
                self._is_cancelled = True
                if self._stop is not None:
                    self._stop()
            return True

    @property
    def is_cancelled(self) -> bool:
        """Whether it was asked for in time."""
        return self._is_cancelled

    def stop_waiting(self) -> None:
        """After a `cancel` that came too late: end soon, within about 5 s, though the outcome may be unknown then."""
        with self._lock:
            if self._hurry is not None:
                self._hurry()

    def begin(self, stop: Callable[[], object], hurry: Callable[[], object]) -> None:
        """For the engine: what to call, once, to cancel; and to stop waiting.

        Raises:
            Cancelled: that was asked for already.
            UsageError: the canceller belongs to another call.
        """
        with self._lock:
            if self._stop is not None and not self._is_released:
                raise UsageError("a canceller is for one call")
            self._is_released = False
            self._stop, self._hurry = stop, hurry
            self.check()

    def check(self) -> None:
        """Where no engine is at work: raise `Cancelled` if that was asked for. From any thread."""
        if self._is_cancelled:
            raise Cancelled(f"{self._what} was cancelled")

    def release(self) -> None:
        """For a call of several migrations: one is over, the next may begin."""
        with self._lock:
            self._is_released = True

    def close(self) -> None:
        """For the engine: from now on it is too late.

        Raises:
            Cancelled: it was in time.
        """
        with self._lock:
            self.check()
            self._is_too_late = True


def unless_cancelled(
    canceller: Canceller | None, call: Callable[[int, int], object] | None
) -> Callable[[int, int], None]:
    """What hands on to `call`, if given, how far something is that comes before the engine; raises `Cancelled`."""

    def tell(done: int, total: int) -> None:
        if canceller is not None:
            canceller.check()
        if call is not None:
            call(done, total)

    return tell
