"""Files as they are read and written: whole pieces at a place, errors with their path, one owner of a descriptor.

Files are read and written with preadv and pwritev, never through a map of this process: a full disk or a file that
shrinks is an error of a system call then, not a SIGBUS.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from pathlib import Path
from types import TracebackType

from multifd.errors import RamError
from multifd.pages import Buffer


class OpenFile:
    """An open file that several threads use and one closes.

    A descriptor's number is free for another file at once when it is closed. A thread that a slow disk or a hook has
    held up would then write guest memory into a file that has nothing to do with it. So the number is lent for one
    system call at a time, and is only given back to the kernel when nobody has it.

    Thread rule: any thread.

    Args:
        fd: taken over.
        path: the file, for error messages.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self.path = path
        self._fd, self._users, self._is_closed = fd, 0, False
        self._lock = threading.Lock()

    def use(self) -> _Use:
        """The descriptor, for the length of a ``with``; raises `RamError` if it was closed before."""
        return _Use(self)

    def close(self) -> None:
        """Lend it to nobody any more; who has it now keeps it until the system call is over. Twice is harmless."""
        with self._lock:
            is_first, self._is_closed = not self._is_closed, True
            if is_first and not self._users:
                close(self._fd)

    def _acquire(self) -> int:
        with self._lock:
            if self._is_closed:
                raise RamError(f"{self.path}: was closed, the migration is over")
            self._users += 1
            return self._fd

    def _release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._is_closed and not self._users:
                close(self._fd)

    def __del__(self) -> None:
        self.close()


class _Use:
    """See `OpenFile.use`."""

    __slots__ = ("_file",)

    def __init__(self, file: OpenFile) -> None:
        self._file = file

    def __enter__(self) -> int:
        return self._file._acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file._release()


def open_regular(path: Path) -> tuple[OpenFile, int]:
    """A file to be read, and its length in bytes.

    Raises:
        RamError: it cannot be opened, or is not a regular file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as e:  # ValueError: a NUL or a lone surrogate in the path
        raise RamError(f"{path}: {reason(e)}") from e
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        close(fd)
        raise RamError(f"{path}: not a regular file")
    return OpenFile(fd, path), info.st_size


def close(fd: int) -> None:
    """Give a descriptor back; it is gone whatever the system says of it (close(2), Linux).

    A disk or a quota may fail here that did not fail before, as over NFS. That is no news: what counts was synced, and
    told then; what was not is thrown away.
    """
    with contextlib.suppress(OSError):
        os.close(fd)


def reason(error: OSError | ValueError) -> str:
    """Why a path cannot be used, in words."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def read_exactly(file: OpenFile, view: memoryview, offset: int, path: Path) -> None:
    """Fill `view` from the file's byte `offset` on.

    Raises:
        RamError: the file ends before, or cannot be read.
    """
    while len(view):
        try:
            with file.use() as fd:
                got = os.preadv(fd, [view], offset)
        except OSError as e:
            raise RamError(f"{path}: cannot read {len(view)} bytes at {offset}: {e.strerror}") from e
        if not got:
            raise cut_short(path, offset)
        view, offset = view[got:], offset + got


def is_hole(file: OpenFile, first: int, end: int, path: Path) -> bool:
    """Whether the file has nothing but a hole in its bytes `first` to `end`; they read as zeros.

    Raises:
        RamError: it ends before.
    """
    with file.use() as fd:
        try:
            return os.lseek(fd, first, os.SEEK_DATA) >= end
        except OSError as e:
            if e.errno != errno.ENXIO:
                return False  # a file system that does not tell
            # No data from there to the end, which may have come nearer since.
            if (nbytes := os.fstat(fd).st_size) < end:
                raise cut_short(path, nbytes) from None
            return True


def cut_short(path: Path, nbytes: int) -> RamError:
    """The error of a file that has no more than `nbytes`, though it had."""
    return RamError(f"{path}: ends at byte {nbytes}, it shrank or was cut short")


def write(file: OpenFile, data: Buffer, offset: int, path: Path) -> None:
    """Write all of `data` at the file's byte `offset`.

    Raises:
        RamError: the disk is full, the file cannot be written, or it was closed.
    """
    view = memoryview(data)
    while len(view):
        try:
            with file.use() as fd:
                done = os.pwritev(fd, [view], offset)
        except OSError as e:
            raise RamError(f"{path}: cannot write {len(view)} bytes at {offset}: {e.strerror}") from e
        view, offset = view[done:], offset + done


def sync_data(file: OpenFile, path: Path) -> None:
    """Make durable what is written so far.

    Raises:
        RamError: the disk failed.
    """
    try:
        with file.use() as fd:
            os.fdatasync(fd)
    except OSError as e:
        raise RamError(f"{path}: cannot be made durable: {e.strerror}") from e
