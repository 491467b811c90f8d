"""A signal at every step of a call: after each system call of the main thread that makes or removes something."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

STEPS = frozenset({"open", "mkdir", "unlink", "rename", "replace", "rmdir", "ftruncate", "bind", "fork_exec"})
"""Names of the C functions that do them."""
_MODULES = ("posix", "io", "_io", "_posixsubprocess", "_socket")


class Steps:
    """Counts the steps of a call, each by the function that takes it once, and sends a signal after one of them.

    Args:
        number: the signal.
        at: after which step, from 0; None: none is sent.
        names: of the C functions that count.
    """

    def __init__(
        self, number: signal.Signals = signal.SIGINT, at: int | None = None, names: frozenset[str] = STEPS
    ) -> None:
        self.taken: dict[str, None] = {}
        self._number, self._at, self._names = number, at, names

    def run(self, call: Callable[[], Any]) -> Any:
        """Make the call, in the main thread."""
        sys.setprofile(self._look)
        try:
            return call()
        finally:
            sys.setprofile(None)

    def _look(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_return" and arg.__name__ in self._names and _module(arg) in _MODULES:
            step, before = f"{arg.__name__} in {frame.f_code.co_qualname}", len(self.taken)
            self.taken[step] = None
            if len(self.taken) > before == self._at:
                signal.raise_signal(self._number)


def _module(function: Any) -> str | None:
    """Of a C function, or of the class whose method it is."""
    return function.__module__ or type(function.__self__).__module__
