"""A file that appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from pathlib import Path

from multifd.errors import RamError


class PartFile:
    """A file written beside `path` and renamed to it when complete, mode 0600.

    The temporary name is ``.NAME.multifd-part``, locked while it is written: a stale one of a
    killed process is replaced, one in use is an error.

    Args:
        path: the file to make or replace.

    Raises:
        RamError: it cannot be written there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.is_committed = False
        self._publishing = threading.Lock()
        self.part = self.path.with_name(f".{self.path.name}.multifd-part")
        if self.path.exists() and not self.path.is_file():
            raise RamError(f"{self.path}: exists and is not a regular file")
        try:
            self.fd = self._open()
        except OSError as e:
            raise RamError(f"{self.part}: {e.strerror}") from e

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            try:
                fd, is_new = os.open(self.part, flags | os.O_CREAT | os.O_EXCL, 0o600), True
            except FileExistsError:
                fd, is_new = os.open(self.part, flags), False
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Before the lock another process may have unlinked it and made its own of that name.
                if os.fstat(fd).st_nlink:
                    if is_new:
                        return os.dup(fd)  # shares the lock
                    os.unlink(self.part)
            except BlockingIOError:
                raise RamError(f"{self.path}: another process is receiving into it") from None
            finally:
                os.close(fd)

    def resize(self, nbytes: int) -> None:
        """Make it `nbytes` long; what is not written stays a hole.

        Raises:
            RamError: the file system cannot hold a file of this length.
        """
        try:
            os.ftruncate(self.fd, nbytes)
        except OSError as e:
            raise RamError(f"{self.part}: cannot hold {nbytes} bytes: {e.strerror}") from e

    def flush(self) -> None:
        """Make durable what is written so far.

        Raises:
            RamError: the disk failed.
        """
        try:
            os.fdatasync(self.fd)
        except OSError as e:
            raise RamError(f"{self.part}: cannot be made durable: {e.strerror}") from e

    def commit(self) -> None:
        """Sync file and folder and give it its name: it survives a power failure from here on.

        Raises:
            RamError: it cannot.
        """
        try:
            os.fsync(self.fd)
            with self._publishing:
                if self.fd < 0:
                    raise RamError(f"{self.path}: discarded before it was complete")
                os.replace(self.part, self.path)
                self.is_committed = True
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as e:
            raise RamError(f"{self.path}: cannot be completed: {e.strerror}") from e
        self._close()

    def discard(self) -> None:
        """Remove it, unless it was committed. Twice is harmless."""
        with self._publishing:
            if self.fd >= 0 and not self.is_committed:
                with contextlib.suppress(OSError):
                    os.unlink(self.part)
                self._close()

    def _close(self) -> None:
        os.close(self.fd)
        self.fd = -1
