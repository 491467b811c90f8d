"""stdout and stderr as whoever started us left them: closed, on a full disk, pipes that nobody reads any more.

Rules of this file: what cannot be said changes nothing of what is done. Where it is a migration's outcome, the exit
status tells it all the same.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from multifd.errors import UsageError


def open_missing() -> None:
    """Give a process that was started without stdin, stdout or stderr the null device in their place.

    Else the next file that is opened gets the number, and what a library writes to stderr goes into it.
    """
    with contextlib.suppress(OSError):  # there is no null device
        while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(fd, True)
        os.close(fd)
        sys.stdout = sys.stdout or open(1, "w", encoding="utf-8")  # noqa: SIM115
        sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")  # noqa: SIM115


def forget() -> None:
    """Drop what could not be written: the interpreter would try again at its end, and end with status 120 for it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)


@contextlib.contextmanager
def to_stdout() -> Iterator[None]:
    """Say in words that stdout cannot be written; a pipe that nobody reads any more stays a BrokenPipeError.

    Raises:
        UsageError: it cannot.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as e:
        raise UsageError(f"stdout cannot be written: {e.strerror}") from e
