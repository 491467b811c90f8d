"""A receiver and a relay in a thread, and what a command says that writes to a file."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import multifd
from multifd.api import relay as relay_call
from multifd.stats import RelayResult, Result

DEADLINE_S = 60
_Result = TypeVar("_Result")


class _ListeningThread(Generic[_Result]):
    """A call that listens, in a thread; `uri` is known once this is made."""

    def __init__(self, call: Callable[[Callable[[str], None]], _Result | None]) -> None:
        self.uri = ""
        self.result: _Result | None = None
        self.error: BaseException | None = None
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()
        assert self._listening.wait(DEADLINE_S)

    def _run(self, call: Callable[[Callable[[str], None]], _Result | None]) -> None:
        try:
            self.result = call(self._listens)
        except BaseException as e:
            self.error = e
        finally:
            self._listening.set()

    def _listens(self, uri: str) -> None:
        self.uri = uri
        self._listening.set()

    def is_over(self) -> bool:
        """Whether it has ended; waits for it."""
        self._thread.join(DEADLINE_S)
        return not self._thread.is_alive()

    def join(self) -> _Result:
        """The result; what it raised is raised here."""
        assert self.is_over(), f"{type(self).__name__} hangs"
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


class ReceiverThread(_ListeningThread[Result]):
    """`multifd.receive` of raw images, unless told otherwise."""

    def __init__(self, into: Any, uri: str = "tcp:127.0.0.1:0", **options: Any) -> None:
        options = {"format": "raw", **options}
        super().__init__(lambda listens: multifd.receive(uri, into, on_listening=listens, **options))


class RelayThread(_ListeningThread[RelayResult]):
    """`multifd.api.relay`, for one migration unless told otherwise."""

    def __init__(self, to: str, listen: str = "tcp:127.0.0.1:0", **options: Any) -> None:
        self.results: list[RelayResult] = []
        options = {"timeout": 20, "once": True, **options}

        def run(listens: Callable[[str], None]) -> RelayResult | None:
            relay_call(listen, to, on_listening=listens, on_result=self.results.append, **options)
            return self.results[-1] if self.results else None

        super().__init__(run)


def wait_for_uri(log: Path) -> str:
    """What a command says that it listens on, which writes its stderr to a file."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := re.search(r"listening on (\S+)\n", log.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found[1]
