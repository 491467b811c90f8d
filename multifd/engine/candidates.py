"""Connections that claim to be main, each with a thread that reads it until one has shown that it is.

Rules of this file: they are few, and a newcomer never finds the door shut: who has said the least gives way, since a
source has said more than a stranger soon.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from multifd.engine.crew import Crew
from multifd.transport.connection import Connection

_MOST = 8
_FIRST_READ_S = 0.05
"""How long a newcomer's thread may take to read what has come already: until then it counts as one that says little."""
_SLICE_S = 0.001
_GIVE_WAY_S = 1.0
"""How long one that gives way may take to notice; there is one more then until it does."""
_Main = TypeVar("_Main")


class Candidates(Generic[_Main]):
    """Those that are being read.

    Thread rule: `add` belongs to one thread; the rest to any.

    Args:
        crew: has their threads.
        name: of each thread.
        read: reads one; calls `remove` with it, or keeps it as main.
    """

    def __init__(self, crew: Crew, name: str, read: Callable[[_Main], object]) -> None:
        self._crew, self._name, self._read = crew, name, read
        self._all: dict[_Main, tuple[Connection, threading.Event]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[_Main]:
        """Those of the moment, the first to come first."""
        return iter(list(self._all))

    def add(self, main: _Main, connection: Connection) -> None:
        """Read one more.

        Args:
            main: it.
            connection: its own; shut down if it is the one that has to give way later.
        """
        if len(self._all) >= _MOST:
            self._make_room()
        is_gone = threading.Event()
        self._all[main] = connection, is_gone
        before, deadline = connection.bytes_received, time.monotonic() + _FIRST_READ_S
        self._crew.start(self._name, self._read, main)
        while connection.bytes_received == before and not is_gone.wait(_SLICE_S) and time.monotonic() < deadline:
            pass

    def remove(self, main: _Main) -> None:
        """It is none any more. Twice is harmless."""
        _, is_gone = self._all.pop(main, (None, threading.Event()))
        is_gone.set()

    def _make_room(self) -> None:
        # Of those that said the same the last gives way.
        connection, is_gone = min(reversed(list(self._all.values())), key=lambda one: one[0].bytes_received)
        connection.shutdown()
        is_gone.wait(_GIVE_WAY_S)
