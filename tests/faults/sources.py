"""The memory that all trials move, in every place that it can come from."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults.matrix import NBYTES, PAGES, Plan

import multifd

DIALECTS = {"system": "7.2", "newer": "9.0"}
"""What is spoken to a QEMU of a release, so that any of that kind understands it."""


def make_memory() -> bytes:
    """A quarter zero, a quarter repeating, the rest noise."""
    rng = random.Random(1)
    kinds = (lambda: bytes(4096), lambda: rng.randbytes(64) * 64, *(lambda: rng.randbytes(4096),) * 2)
    memory = b"".join(make() for make in rng.choices(kinds, k=PAGES))
    assert len(memory) == NBYTES
    return memory


def dialect(plan: Plan) -> str:
    """In which a plan's source speaks."""
    return DIALECTS[plan.release] if plan.way.destination == "qemu" else "9.0"


class Sources:
    """Files and folders with that memory, made when they are first wanted; nobody may change them.

    Thread rule: any thread.

    Args:
        folder: for all of them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        folder.mkdir()
        self.memory = make_memory()
        self._plain().write_bytes(self.memory)

    def of(self, plan: Plan) -> Path:
        """What a plan's source reads; a QEMU and an arena begin with a plain image."""
        with self._lock:
            match plan.way.source:
                case "mapped-ram":
                    return self._capture()
                case "streams":
                    return self._streams(plan.method, plan.channels, dialect(plan))
                case _:
                    return self._plain()

    def _plain(self) -> Path:
        return self._folder / "raw"

    def _capture(self) -> Path:
        path = self._folder / "mapped-ram"
        if not path.exists():
            with ThreadPoolExecutor(1) as pool:
                uri = f"unix:{self._folder}/capture"
                received = pool.submit(multifd.receive, uri, path, format="mapped-ram")
                multifd.send(self.memory, uri)
                received.result()
        return path

    def _streams(self, method: str, channels: int, spoken: str) -> Path:
        path = self._folder / f"{method}-{channels}-{spoken}"
        if not path.exists():
            multifd.send(self.memory, f"dir:{path}", method, channels=channels, dialect=spoken)
        return path
