"""What is made beside its final name and takes that when it is complete: the life of a file and of a folder.

Rules of this file: everything goes by the descriptor of the folder that it lies in, opened first, so that nothing that
can fail is left once it has its name. `commit` and `discard` may meet from two threads; whichever takes the lock first
decides, and `is_committed` tells which it was.
"""

from __future__ import annotations

import abc
import contextlib
import fcntl
import logging
import os
import threading
from pathlib import Path

from multifd.errors import RamError
from multifd.ram.file import close, reason

_LOG = logging.getLogger(__name__)


def part_name(name: str) -> str:
    """What `name` is called until it is complete; it is beside it."""
    return f".{name}.multifd-part"


def unpacked_name(name: str) -> str:
    """What a capture is called that lies beside file or folder `name` for as long as something is made of it."""
    return f".{name}.multifd-ram"


class Part(abc.ABC):
    """What lies beside `path` and is renamed to it when complete.

    The temporary name is ``.NAME.multifd-part``, locked while it is written: what a killed process has left is
    removed, also what that has made beside it; one in use is an error.

    Args:
        path: what is to be.

    Raises:
        RamError: it cannot be made there.
    """

    _flags: int
    """With which it is opened."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._is_committed = self._is_discarded = False
        name = self.path.name
        if name in ("", ".."):
            raise RamError(f"{os.fspath(path) or repr('')}: expected a name of its own for what is to be made")
        self.part = self.path.with_name(part_name(name))
        try:
            self._parent = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as e:
            raise RamError(f"{self.path}: its folder cannot be opened: {reason(e)}") from e
        try:
            self._refuse()
            self._take(self._claim())
            for left in self._leftovers():
                self._remove_left(left)
        except BaseException as e:
            close(self._parent)
            if isinstance(e, OSError | ValueError):
                raise RamError(f"{self.part}: cannot be made: {reason(e)}") from e
            raise

    @property
    def is_committed(self) -> bool:
        """Whether it has its name; once true it stays true. From any thread."""
        return self._is_committed

    @abc.abstractmethod
    def _refuse(self) -> None:
        """Raise `RamError` if what is under the name must stay."""

    @abc.abstractmethod
    def _make(self) -> None:
        """Make it under the temporary name; raises `FileExistsError` if there is one."""

    @abc.abstractmethod
    def _take(self, fd: int) -> None:
        """Own what was made and locked, by this descriptor."""

    @abc.abstractmethod
    def _remove(self) -> None:
        """Remove it from its temporary name; raises `OSError`."""

    @abc.abstractmethod
    def _close(self) -> None:
        """Release descriptors."""

    @abc.abstractmethod
    def _leftovers(self) -> tuple[str, ...]:
        """What else a process that was killed may have left beside it, by name."""

    def _forget(self) -> None:  # noqa: B027
        """Remove what was said of what was under the name; the last thing before that changes; raises `OSError`."""

    def _claim(self) -> int:
        """What is at the temporary name from now on: new, and locked."""
        name = self.part.name
        while True:
            is_new = True
            try:
                self._make()
            except FileExistsError:
                is_new = False
            try:
                fd = os.open(name, self._flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._parent)
            except FileNotFoundError:
                continue  # its process has just finished
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Before the lock another process may have renamed or removed it and made its own of that name.
                if os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=self._parent, follow_symlinks=False)):
                    if is_new:
                        return os.dup(fd)  # shares the lock
                    self._remove()
            except BlockingIOError:
                raise RamError(f"{self.path}: another process is writing to it") from None
            except FileNotFoundError:
                pass  # another process was faster: once more
            finally:
                close(fd)

    def _remove_left(self, name: str) -> None:
        """Remove a file of that name, but not one that a process is writing."""
        with contextlib.suppress(OSError):
            fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._parent)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_nlink:
                    os.unlink(name, dir_fd=self._parent)
            finally:
                close(fd)

    def _take_name(self) -> None:
        """It is complete and durable: give it its name, which survives a power failure from here on.

        Raises:
            RamError: `discard` came first; it does not have its name then.
            OSError: it cannot.
        """
        with self._lock:
            self._refuse_discarded()
            self._forget()
            os.replace(self.part.name, self.path.name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
            self._is_committed = True
            self._sync_parent()

    def _refuse_discarded(self) -> None:
        if self._is_discarded:
            raise RamError(f"{self.path}: was discarded before it was complete")

    def _sync_parent(self) -> None:
        """Make the name durable; complete and visible it is already, so a failure here is not one of it."""
        try:
            os.fsync(self._parent)
        except OSError as e:
            _LOG.warning(
                "%s: is complete, but its folder cannot be synced (%s): a power failure now may undo the name",
                self.path, e.strerror,
            )  # fmt: skip

    def discard(self) -> None:
        """Remove it, unless it was committed, and release everything. Twice is harmless; from any thread."""
        with self._lock:
            if self._is_discarded:
                return
            self._is_discarded = True
            if not self._is_committed:
                with contextlib.suppress(OSError):
                    self._remove()
            self._close()
            close(self._parent)
