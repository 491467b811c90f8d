"""Whether stored streams are what was written, before anything of them is used."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from multifd.engine.canceller import Canceller
from multifd.engine.crew import Crew
from multifd.errors import Cancelled, RamError, StreamError
from multifd.ram.folder import StoredFolder, StoredStream
from multifd.transport.idle import IdleTimer
from multifd.wire import stream
from multifd.wire.reader import MainStreamReader

_POLL_S = 0.05
_THREADS = 4
"""A disk is busy with fewer, and reading what is in the page cache is bound by memory."""
_MOST_START = 1 << 20
"""Bytes of main within which the list of RAM blocks ends; QEMU's comes within a few KiB."""
Look = Callable[[StoredStream, Callable[[], object]], None]
"""How a file is compared: `StoredStream.check`, or its `verify`."""


@dataclass(frozen=True)
class MainStart:
    """What main says before any page."""

    machine: stream.Machine
    has_return_path: bool
    """Whether the destination is asked for answers: it confirms at the end."""


def check(folder: StoredFolder, canceller: Canceller, look: Look = StoredStream.check) -> MainStart:
    """Compare every file with its digest, several at once, and read the start of main.

    Args:
        folder: opened.
        canceller: to end it with; free for the next call afterwards.
        look: how a file is compared.

    Raises:
        RamError: a file is not what was written; the text names it.
        Cancelled: by the canceller.
    """
    idle = IdleTimer(float("inf"))
    crew = Crew(idle)

    def cancel() -> None:
        crew.fail(Cancelled("the check of the stored streams was cancelled"))
        idle.abort.set()

    canceller.begin(cancel, cancel)
    try:
        streams = deque(folder.streams)
        for number in range(min(_THREADS, len(streams))):
            crew.start(f"multifd_check_{number}", _check_some, streams, look, idle.abort.check)
        while crew.is_busy():
            crew.join(timeout_s=_POLL_S)
            crew.check()
        crew.check()
        return read_start(folder.main)
    finally:
        crew.stop()
        canceller.release()


def _check_some(streams: deque[StoredStream], look: Look, go_on: Callable[[], object]) -> None:
    """Check one after the other, until there is none."""
    with contextlib.suppress(IndexError):
        while True:
            look(streams.popleft(), go_on)


def read_start(main: StoredStream) -> MainStart:
    """Read main up to the list of RAM blocks.

    Raises:
        RamError: it is no main stream.
    """
    reader, view = MainStreamReader(), memoryview(bytearray(_MOST_START))
    try:
        events = reader.feed(view[: main.read(view, 0)])
    except StreamError as e:
        raise RamError(f"{main.path}: {e}") from e
    for event in events:
        if isinstance(event, stream.Machine):
            return MainStart(event, any(isinstance(e, stream.ReturnPathOpened) for e in events))
    raise RamError(f"{main.path}: no list of RAM blocks within {_MOST_START} bytes")
