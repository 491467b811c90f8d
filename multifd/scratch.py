"""A folder for what lies in files only while this process needs it: sockets, samples, images that are unpacked.

Rules of this file: a folder is locked by the process that made it, so what a killed one has left is known for that and
goes when the next one is made beside it. It may hold a guest's memory: nobody else may look in.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator

from multifd.errors import RamError
from multifd.interrupts import held

_PREFIX = "multifd-scratch-"
_LOCK = ".lock"
_TRIES = 100
"""Each is lost only to another process that removes stale folders in the microseconds before this one is locked."""


@contextlib.contextmanager
def folder(parent: str | None = None) -> Iterator[str]:
    """A folder of this process's own, mode 0700, which goes with the context.

    A signal that would raise waits while it is made and while it is removed, so it is there as a whole or not at all.

    Args:
        parent: where it is made; None: where temporary files go.

    Raises:
        RamError: none can be made there.
    """
    made = None
    try:
        with held():
            try:
                parent = parent or tempfile.gettempdir()
                remove_stale(parent)
                made = _Folder(parent)
            except OSError as e:
                raise RamError(f"no folder for temporary files: {e.strerror or e}; TMPDIR can name a place") from e
        yield made.path
    finally:
        with held():
            if made is not None:
                made.remove()


def remove_stale(parent: str | None = None) -> None:
    """Remove the folders that killed processes of this user have left; what cannot be removed stays.

    Args:
        parent: see `folder`.
    """
    with contextlib.suppress(OSError):
        parent = parent or tempfile.gettempdir()
        for name in os.listdir(parent):
            if name.startswith(_PREFIX):
                _remove_if_stale(os.path.join(parent, name))


class _Folder:
    """Removed at the latest when nobody refers to it any more."""

    def __init__(self, parent: str) -> None:
        for _ in range(_TRIES):
            self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
            if (fd := _claim(self.path)) is not None:
                self.remove = weakref.finalize(self, _remove, self.path, fd)
                return
        raise RamError(f"{parent}: whatever folder is made there is removed at once")


def _claim(path: str) -> int | None:
    """The descriptor of the lock in a folder, locked; None if the folder is gone, about to be, or another's."""
    try:
        # Not the folder itself: whoever listens at a socket in it locks that for a moment.
        fd = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:
            return fd
    except BlockingIOError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _remove_if_stale(path: str) -> None:
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and (fd := _claim(path)) is not None:
            _remove(path, fd)


def _remove(path: str, fd: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(fd)
