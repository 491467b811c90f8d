"""A file that appears under its name only when it is complete.

Rules of this file: everything goes by the folder's descriptor, opened first, so that nothing that can fail is left
once the file has its name. `commit` and `discard` may meet from two threads; whichever takes the lock first decides,
and `is_committed` tells which it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import threading
from pathlib import Path

from multifd.errors import RamError
from multifd.ram.file import OpenFile, close, reason

_LOG = logging.getLogger(__name__)


def sidecar_name(name: str) -> str:
    """What the file with the digests of file `name` is called; it is beside it."""
    return f"{name}.sha256"


def part_name(name: str) -> str:
    """What file `name` is called until it is complete; it is beside it."""
    return f".{name}.multifd-part"


def unpacked_name(name: str) -> str:
    """What a capture is called that lies beside file or folder `name` for as long as something is made of it."""
    return f".{name}.multifd-ram"


class PartFile:
    """A file written beside `path` and renamed to it when complete, mode 0600.

    The temporary name is ``.NAME.multifd-part``, locked while it is written: a stale one of a
    killed process is replaced, one in use is an error. A stale one of its digests goes, too.
    Digests of what was under the name before (``NAME.sha256``) are removed first, and durably, so
    that they never condemn the new file.

    Args:
        path: the file to make or replace.

    Raises:
        RamError: it cannot be written there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._is_committed = self._is_discarded = False
        name = self.path.name
        if name in ("", ".."):
            raise RamError(f"{os.fspath(path) or repr('')}: a folder, expected the name of a file to make")
        self.part = self.path.with_name(part_name(name))
        try:
            self._folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as e:
            raise RamError(f"{self.path}: its folder cannot be opened: {reason(e)}") from e
        try:
            self._refuse_special()
            self._remove_left(part_name(sidecar_name(name)))
            self.fd = OpenFile(self._open(), self.part)
        except BaseException as e:
            close(self._folder)
            if isinstance(e, OSError | ValueError):
                raise RamError(f"{self.part}: cannot be made: {reason(e)}") from e
            raise

    @property
    def is_committed(self) -> bool:
        """Whether the file has its name; once true it stays true. From any thread."""
        return self._is_committed

    def _refuse_special(self) -> None:
        """Only a regular file is replaced, also behind a symbolic link, and only digests that can be removed."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(self.path.name, dir_fd=self._folder).st_mode):
                raise RamError(f"{self.path}: exists and is not a regular file")
        name = sidecar_name(self.path.name)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(name, dir_fd=self._folder, follow_symlinks=False).st_mode):
                raise RamError(f"{self.path.with_name(name)}: a folder where digests of {self.path.name} belong")

    def _open(self) -> int:
        flags, name = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, self.part.name
        while True:
            try:
                fd, is_new = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._folder), True
            except FileExistsError:
                try:
                    fd, is_new = os.open(name, flags, dir_fd=self._folder), False
                except FileNotFoundError:
                    continue  # its process has just finished
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Before the lock another process may have unlinked it and made its own of that name.
                if os.fstat(fd).st_nlink:
                    if is_new:
                        return os.dup(fd)  # shares the lock
                    os.unlink(name, dir_fd=self._folder)
            except BlockingIOError:
                raise RamError(f"{self.path}: another process is receiving into it") from None
            finally:
                close(fd)

    def _remove_left(self, name: str) -> None:
        """Remove the temporary file of a killed process; one that is in use stays."""
        with contextlib.suppress(OSError):
            fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_nlink:
                    os.unlink(name, dir_fd=self._folder)
            finally:
                close(fd)

    def admit(self, like: os.stat_result) -> None:
        """Let those read it who may read another file, as far as the system lets this process."""
        with self.fd.use() as fd:
            with contextlib.suppress(OSError):  # only root may, and not to everybody
                os.fchown(fd, like.st_uid, like.st_gid)
            with contextlib.suppress(OSError):
                os.fchmod(fd, 0o600 | (like.st_mode & 0o044))

    def resize(self, nbytes: int) -> None:
        """Make it `nbytes` long; what is not written stays a hole.

        Raises:
            RamError: the file system cannot hold a file of this length.
        """
        try:
            with self.fd.use() as fd:
                os.ftruncate(fd, nbytes)
        except OverflowError as e:
            raise RamError(f"{self.part}: cannot hold {nbytes} bytes: more than a file can have") from e
        except OSError as e:
            raise RamError(f"{self.part}: cannot hold {nbytes} bytes: {e.strerror}") from e

    def flush(self) -> None:
        """Make durable what is written so far.

        Raises:
            RamError: the disk failed.
        """
        try:
            with self.fd.use() as fd:
                os.fdatasync(fd)
        except OSError as e:
            raise RamError(f"{self.part}: cannot be made durable: {e.strerror}") from e

    def commit(self) -> None:
        """Sync file and folder and give it its name: it survives a power failure from here on.

        Raises:
            RamError: it cannot, or `discard` came first; the file does not have its name then.
        """
        try:
            with self.fd.use() as fd:
                os.fsync(fd)  # may take long: `discard` need not wait for it
            with self._lock:
                if self._is_discarded:
                    raise RamError(f"{self.path}: was discarded before it was complete")
                self._forget_digests()
                os.replace(self.part.name, self.path.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
                self._is_committed = True
                self._sync_folder()
        except OSError as e:
            raise RamError(f"{self.path}: cannot be completed: {e.strerror}") from e
        self.discard()

    def _forget_digests(self) -> None:
        """Durably: after a power failure they must not be beside the new file."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(sidecar_name(self.path.name), dir_fd=self._folder)
            os.fsync(self._folder)

    def _sync_folder(self) -> None:
        """Make the name durable; complete and visible the file is already, so a failure here is not one of it."""
        try:
            os.fsync(self._folder)
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
                    os.unlink(self.part.name, dir_fd=self._folder)
            self.fd.close()
            close(self._folder)
