"""An end whose memory is an arena, with the command line's words and statuses.

``python -m faults.arena_end send|receive MEMORY URI``: MEMORY is a file that is mapped, so that what it holds can be
looked at whatever becomes of the process. The source's memory is written all the time, and stderr says at the end
whether its writers were let go on.
"""

from __future__ import annotations

import mmap
import threading
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

import multifd
from multifd.cli import signals, tls
from multifd.cli.console import Group, remark, reporting, show
from multifd.cli.values import FilePath, Size
from multifd.engine.canceller import Canceller

PAGE = 4096
WORDS = PAGE // 8


class Writer:
    """A thread that counts in the first and in the last word of pages: they differ where a page was torn.

    Args:
        memory: writable.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._words = np.frombuffer(memory, np.uint64)
        self._lock, self._is_paused = threading.Lock(), False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        rng = np.random.default_rng(1)
        while not self._is_over.is_set():
            with self._lock:
                pages = [] if self._is_over.is_set() else rng.integers(0, len(self._words) // WORDS, 4).tolist()
                for page in pages:
                    ends = self._words[page * WORDS :][:WORDS][[0, -1]]
                    self._words[page * WORDS :][:WORDS][[0, -1]] = ends + np.uint64(1)
            time.sleep(0.02)

    def pause(self) -> None:
        """Stand still."""
        self._lock.acquire()
        self._is_paused = True

    def resume(self) -> None:
        """Go on: an error if it does."""
        self._is_paused = False
        self._lock.release()

    def end(self) -> str:
        """Whether it ran; it does not any more."""
        self._is_over.set()
        if self._is_paused:
            self._lock.release()
        self._thread.join()
        return "paused" if self._is_paused else "running"


def mapped(path: Path) -> mmap.mmap:
    """A file as memory."""
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


@click.group(cls=Group)
def main() -> None:
    """The two ends."""


@main.command()
@click.argument("memory", type=FilePath())
@click.argument("uri")
@click.option("--method", default="none")
@click.option("--channels", default=2)
@click.option("--max-bandwidth", default=0, type=Size())
@click.option("--connect-timeout", default=10.0)
@click.option("--timeout", default=60.0)
@reporting
@tls.options()
def send(memory: Path, uri: str, method: str, as_json: bool, **options: Any) -> None:
    """Send MEMORY, which is written meanwhile."""
    canceller = Canceller()
    ram = mapped(memory)
    with multifd.Arena(ram, writers="this-process") as arena:
        writer = Writer(ram)
        try:
            live = multifd.Live(arena, pause=writer.pause, resume=writer.resume)
            with signals.cancelling(canceller):
                result = multifd.send(live, uri, method, canceller=canceller, **options)
        finally:
            remark(f"writers: {writer.end()}")
    show(result.as_dict(), as_json, lambda: None)


@main.command()
@click.argument("uri")
@click.argument("memory", type=FilePath())
@click.option("--method", default="none")
@click.option("--timeout", default=60.0)
@reporting
@tls.options(listens=True)
def receive(memory: Path, uri: str, method: str, as_json: bool, **options: Any) -> None:
    """Receive into MEMORY."""
    canceller = Canceller()
    with multifd.Arena(mapped(memory)) as arena, signals.cancelling(canceller):
        result = multifd.receive(
            uri, arena, methods=[method], canceller=canceller, on_listening=lambda uri: remark(f"listening on {uri}"),
            **options,
        )  # fmt: skip
    show(result.as_dict(), as_json, lambda: None)


if __name__ == "__main__":
    main()
