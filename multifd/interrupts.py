"""SIGINT and SIGTERM kept waiting, for a few lines between which nothing may break in.

Rules of this file: it knows no command and ends nothing. Only the main thread has signals; elsewhere nothing happens.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], None]
ENDING = (signal.SIGINT, signal.SIGTERM)
"""The signals that end a command."""


@contextmanager
def held() -> Iterator[None]:
    """A signal that comes meanwhile waits until the end of this, and then takes effect."""
    came: list[int] = []
    before = handle_by(lambda number, _: came.append(number))
    try:
        yield
    finally:
        restore(before)
        for number in came[:1]:
            signal.raise_signal(number)


def handle_by(handler: Handler) -> dict[signal.Signals, Any]:
    """Set the handler of both; returns those before, but for those that Python did not set and could not set again."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    ours = [number for number in ENDING if signal.getsignal(number) is not None]
    return {number: signal.signal(number, handler) for number in ours}


def restore(before: Mapping[signal.Signals, Any]) -> None:
    """Set the handlers that `handle_by` has returned."""
    for number, handler in before.items():
        signal.signal(number, handler)
