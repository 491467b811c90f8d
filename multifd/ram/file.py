"""RAM in files: a block somewhere in a file, files that appear only when complete, raw images.

Files are read and written with preadv and pwritev through the channel's staging buffer, never
mapped: a full disk or a file that shrinks is an error of a system call then, not a SIGBUS, and the
memory of either end does not grow with RAM.

Thread rule: blocks may be used by all channels at once, each with its own `Staging`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from multifd.errors import RamError
from multifd.pages import Buffer


def open_regular(path: Path) -> tuple[int, int]:
    """A file descriptor to read `path`, and the file's bytes.

    Raises:
        RamError: it cannot be opened, or is not a regular file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise RamError(f"{path}: {e.strerror}") from e
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise RamError(f"{path}: not a regular file")
    return fd, info.st_size


def read_exactly(fd: int, view: memoryview, offset: int, path: Path) -> None:
    """Fill `view` from the file's byte `offset` on.

    Raises:
        RamError: the file ends before, or cannot be read.
    """
    while len(view):
        try:
            got = os.preadv(fd, [view], offset)
        except OSError as e:
            raise RamError(f"{path}: cannot read {len(view)} bytes at {offset}: {e.strerror}") from e
        if not got:
            raise cut_short(path, offset)
        view, offset = view[got:], offset + got


def cut_short(path: Path, nbytes: int) -> RamError:
    return RamError(f"{path}: ends at byte {nbytes}, it shrank or was cut short")


def write(fd: int, data: Buffer, offset: int, path: Path) -> None:
    """Write all of `data` at the file's byte `offset`.

    Raises:
        RamError: the disk is full, or the file cannot be written.
    """
    view = memoryview(data)
    while len(view):
        try:
            done = os.pwritev(fd, [view], offset)
        except OSError as e:
            raise RamError(f"{path}: cannot write {len(view)} bytes at {offset}: {e.strerror}") from e
        view, offset = view[done:], offset + done
