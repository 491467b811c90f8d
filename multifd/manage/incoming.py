"""`multifd.receive` in a thread of its own, while the caller's drives the source."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from multifd import threads
from multifd.api import receive
from multifd.engine.canceller import Canceller
from multifd.errors import ChannelError
from multifd.stats import Result

_LISTENING_S = 30.0
_END_S = 120.0
"""For a receiver to end once nothing comes any more: a large file is synced to its disk within it, or not at all."""


class Incoming:
    """A receiver that listens.

    Args:
        uri: where; port 0 lets the kernel choose.
        out: the file to make.
        method: the only one allowed, with options.
        channels: the source's.
        timeout: seconds that all connections may be silent.

    Raises:
        MultifdError: it cannot listen, or write there.
    """

    def __init__(self, uri: str, out: str | os.PathLike[str], method: str, channels: int, timeout: float) -> None:
        self.uri = ""
        """Where sources connect."""
        self.error: BaseException | None = None
        self.progress: Result | None = None
        """The figures of the moment."""
        self._result: Result | None = None
        self._canceller = Canceller()
        self._listening = threading.Event()

        def run() -> None:
            try:
                self._result = receive(
                    uri, out, methods=(method,), channels=channels, timeout=timeout, canceller=self._canceller,
                    on_listening=self._listens, on_progress=self._progresses,
                )  # fmt: skip
            except BaseException as e:
                self.error = e
            finally:
                self._listening.set()

        self._thread = threading.Thread(target=run, name="multifd-capture", daemon=True)
        threads.start(self._thread)
        if not self._listening.wait(_LISTENING_S):
            self._canceller.cancel()
            raise ChannelError(f"{uri}: nothing listens after {_LISTENING_S:g} s")
        if self.error is not None:
            raise self.error

    def _listens(self, uri: str) -> None:
        self.uri = uri
        self._listening.set()

    def _progresses(self, figures: Result) -> None:
        self.progress = figures

    @property
    def is_complete(self) -> bool:
        """The file is durable and under its name."""
        return self._result is not None

    def cancel(self) -> bool:
        """Give up, unless the file is about to appear; returns whether that was in time."""
        return self._canceller.cancel()

    def stop(self) -> None:
        """Give up and wait for the end; what it had to say is in `error`. A file that is complete stays."""
        self._canceller.cancel()
        self._canceller.stop_waiting()
        self._thread.join(_END_S)

    def result(self, watch: Callable[[], object]) -> Result:
        """The figures, once the file is durable.

        Args:
            watch: called again and again meanwhile.

        Raises:
            MultifdError: why there is no file.
        """
        deadline = time.monotonic() + _END_S
        while self._thread.is_alive():
            self._thread.join(0.05)
            watch()
            if time.monotonic() > deadline:
                raise ChannelError(f"the receiver does not end, {_END_S:g} s after QEMU completed")
        if self.error is not None:
            raise self.error
        assert self._result is not None  # our own thread sets one of the two
        return self._result
