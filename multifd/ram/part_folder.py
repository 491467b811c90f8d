"""A folder of stored streams that appears under its name only when all of it is durable.

Rules of this file: everything goes by descriptors that are opened first. `commit` and `discard` may meet from two
threads; whichever takes the lock first decides, and `is_committed` tells which it was. What exists is never replaced:
a folder is not one file, and nothing swaps two of them at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import stat
import threading
from pathlib import Path

from multifd._version import __version__
from multifd.errors import RamError
from multifd.pages import Buffer
from multifd.ram import manifest
from multifd.ram.file import OpenFile, close, reason, write
from multifd.ram.manifest import FileEntry, Manifest
from multifd.ram.part_file import part_name, unpacked_name

_LOG = logging.getLogger(__name__)


class StreamFile:
    """One connection's bytes, digested as they are written.

    Thread rule: one thread writes; `flush` and `close` from any.

    Args:
        fd: taken over.
        path: the file, for error messages.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self.path = path
        self._file, self._digest = OpenFile(fd, path), hashlib.sha256()
        self.nbytes = 0
        self.normal_pages = 0
        self.zero_pages = 0

    def write(self, data: Buffer) -> None:
        """Append all of `data`; the buffer is free again on return.

        Raises:
            RamError: the disk is full, failed, or the folder was discarded.
        """
        self._digest.update(data)
        write(self._file, data, self.nbytes, self.path)
        self.nbytes += len(data)

    def flush(self) -> None:
        """Make durable what is written so far.

        Raises:
            RamError: the disk failed.
        """
        try:
            with self._file.use() as fd:
                os.fdatasync(fd)
        except OSError as e:
            raise RamError(f"{self.path}: cannot be made durable: {e.strerror}") from e

    def entry(self) -> FileEntry:
        """What the manifest says of it; it is complete."""
        return FileEntry(self.nbytes, self._digest.hexdigest(), self.normal_pages, self.zero_pages)

    def close(self) -> None:
        """Twice is harmless."""
        self._file.close()


class PartFolder:
    """A folder written beside `path` and renamed to it when complete, mode 0700.

    The temporary name is ``.NAME.multifd-part``, locked while it is written: what a killed process has left is
    removed, also what it had unpacked beside it; one in use is an error.

    Args:
        path: the folder to make; there may be an empty one.

    Raises:
        RamError: it exists already, or cannot be written there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._is_committed = self._is_discarded = False
        self._files: dict[str, StreamFile] = {}
        name = self.path.name
        if name in ("", ".."):
            raise RamError(f"{os.fspath(path) or repr('')}: expected the name of a folder to make")
        self.part = self.path.with_name(part_name(name))
        try:
            self._parent = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as e:
            raise RamError(f"{self.path}: its folder cannot be opened: {reason(e)}") from e
        try:
            self._refuse_existing()
            self._folder = self._make()
            self._remove_unpacked()
        except BaseException as e:
            close(self._parent)
            if isinstance(e, OSError | ValueError):
                raise RamError(f"{self.part}: cannot be made: {reason(e)}") from e
            raise

    @property
    def is_committed(self) -> bool:
        """Whether the folder has its name; once true it stays true. From any thread."""
        return self._is_committed

    def _refuse_existing(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.lstat(self.path).st_mode) or os.listdir(self.path):
                raise RamError(f"{self.path}: exists, and stored streams replace nothing; remove it, or name another")

    def _make(self) -> int:
        name = self.part.name
        while True:
            is_new = True
            try:
                os.mkdir(name, 0o700, dir_fd=self._parent)
            except FileExistsError:
                is_new = False
            try:
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._parent)
            except FileNotFoundError:
                continue  # its process has just finished
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Before the lock another process may have renamed or removed it and made its own of that name.
                if os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=self._parent, follow_symlinks=False)):
                    if not is_new:
                        _empty(fd)
                    return fd
            except BlockingIOError:
                close(fd)
                raise RamError(f"{self.path}: another process is storing into it") from None
            except FileNotFoundError:
                pass
            except BaseException:
                close(fd)
                raise
            close(fd)

    def _remove_unpacked(self) -> None:
        """What a process that was killed had unpacked for this folder; whoever does has the lock."""
        left = unpacked_name(self.path.name)
        for name in (left, part_name(left)):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._parent)

    def file(self, name: str) -> StreamFile:
        """Begin one of its files.

        Args:
            name: of main or a channel, as `multifd.ram.manifest` has it.

        Raises:
            RamError: it cannot be made.
        """
        path = self.path / name
        try:
            with self._lock:
                if self._is_discarded:
                    raise RamError(f"{self.path}: was discarded before it was complete")
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self._files[name] = StreamFile(os.open(name, flags, 0o600, dir_fd=self._folder), path)
                return self._files[name]
        except OSError as e:
            raise RamError(f"{path}: cannot be made: {e.strerror}") from e

    def flush(self) -> None:
        """Make durable what is written so far.

        Raises:
            RamError: the disk failed.
        """
        with self._lock:
            files = list(self._files.values())
        for file in files:
            file.flush()

    def commit(self, method: str, page_size: int) -> None:
        """All files are complete: write the manifest, sync everything, give the folder its name.

        Args:
            method: as `Manifest.method`.
            page_size: bytes.

        Raises:
            RamError: it cannot, or `discard` came first; the folder does not have its name then.
        """
        self.flush()
        try:
            channels = map(manifest.channel_name, range(len(self._files) - 1))
            entries = {name: self._files[name].entry() for name in (manifest.MAIN, *channels)}
            said = self.file(manifest.NAME)
            said.write(Manifest(f"multifd {__version__}", method, page_size, entries).encode())
            said.flush()
            os.fsync(self._folder)
            with self._lock:
                if self._is_discarded:
                    raise RamError(f"{self.path}: was discarded before it was complete")
                os.rename(self.part.name, self.path.name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
                self._is_committed = True
                self._sync_parent()
        except OSError as e:
            raise RamError(f"{self.path}: cannot be completed: {e.strerror}") from e
        self.discard()

    def _sync_parent(self) -> None:
        """Make the name durable; complete and visible the folder is already, so a failure here is not one of it."""
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
            for file in self._files.values():
                file.close()
            if not self._is_committed:
                with contextlib.suppress(OSError):
                    _empty(self._folder)
                    os.rmdir(self.part.name, dir_fd=self._parent)
            close(self._folder)
            close(self._parent)


def _empty(folder: int) -> None:
    """Remove the files that are in it; a folder in it is nobody's of here, and an error."""
    for name in os.listdir(folder):
        os.unlink(name, dir_fd=folder)
