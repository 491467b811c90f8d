"""What the workers of a test's cluster are given to do: they import it."""

from __future__ import annotations

import os
import time
from pathlib import Path

DEADLINE_S = 60.0


def read(source, note):
    """The first bytes of a source, and who read them."""
    with open(source.path, "rb") as file:
        return note, file.read(4), os.getpid()


def hold(source, folder, number):
    """Say that task `number` has begun, and by whom; wait to be allowed to end."""
    Path(folder, f"begun-{number}-{os.getpid()}").touch()
    deadline = time.monotonic() + DEADLINE_S
    while not Path(folder, "go").exists():
        if time.monotonic() > deadline:
            raise TimeoutError("never allowed to go on")
        time.sleep(0.01)
    return number, os.getpid()


def overlap(source, folder):
    """How many others are measured at the same moment on this host."""
    mine = Path(folder, f"now-{os.getpid()}-{time.monotonic_ns()}")
    mine.touch()
    time.sleep(0.02)
    count = len(list(Path(folder).glob("now-*"))) - 1
    mine.unlink()
    return count
