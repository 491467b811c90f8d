"""A relay in a thread, and what a command says that writes to a file."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

from multifd.api import relay as relay_call
from multifd.stats import RelayResult

DEADLINE_S = 60


class RelayThread:
    """`multifd.api.relay` in a thread, for one migration."""

    def __init__(self, to: str, listen: str = "tcp:127.0.0.1:0", **options: Any) -> None:
        self.uri = ""
        self.results: list[RelayResult] = []
        self.error: BaseException | None = None
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listen, to, {"timeout": 20, "once": True, **options}))
        self._thread.start()
        assert self._listening.wait(DEADLINE_S)

    def _run(self, listen: str, to: str, options: dict[str, Any]) -> None:
        try:
            relay_call(listen, to, on_listening=self._listens, on_result=self.results.append, **options)
        except BaseException as e:
            self.error = e
        finally:
            self._listening.set()

    def _listens(self, uri: str) -> None:
        self.uri = uri
        self._listening.set()

    def is_over(self) -> bool:
        self._thread.join(DEADLINE_S)
        return not self._thread.is_alive()

    def join(self) -> RelayResult:
        """The result; what it raised is raised here."""
        assert self.is_over(), "the relay hangs"
        if self.error is not None:
            raise self.error
        return self.results[-1]


def wait_for_uri(log: Path) -> str:
    """What a command says that it listens on, which writes its stderr to a file."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := re.search(r"listening on (\S+)\n", log.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found[1]
