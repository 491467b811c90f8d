"""A folder of stored streams that appears under its name only when all of it is durable.

Rules of this file: what exists is never replaced: a folder is not one file, and nothing swaps two of them at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from multifd._version import __version__
from multifd.errors import RamError
from multifd.pages import Buffer
from multifd.ram import manifest
from multifd.ram.checksum import KINDS, SHA256, XXH3
from multifd.ram.file import OpenFile, close, sync_data, write
from multifd.ram.manifest import FileEntry, Manifest
from multifd.ram.part import Part, part_name, unpacked_name


class StreamFile:
    """One connection's bytes, digested as they are written.

    Thread rule: one thread writes; `flush` and `close` from any.

    Args:
        fd: taken over.
        path: the file, for error messages.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self.path = path
        self._file, self._digests = OpenFile(fd, path), {kind: begin() for kind, begin in KINDS.items()}
        self.nbytes = 0
        self.normal_pages = 0
        self.zero_pages = 0

    def write(self, data: Buffer) -> None:
        """Append all of `data`; the buffer is free again on return.

        Raises:
            RamError: the disk is full, failed, or the folder was discarded.
        """
        for digest in self._digests.values():
            digest.update(data)
        write(self._file, data, self.nbytes, self.path)
        self.nbytes += len(data)

    def flush(self) -> None:
        """Make durable what is written so far.

        Raises:
            RamError: the disk failed.
        """
        sync_data(self._file, self.path)

    def entry(self) -> FileEntry:
        """What the manifest says of it; it is complete."""
        sha256, xxh3 = (self._digests[kind].hexdigest() for kind in (SHA256, XXH3))
        return FileEntry(self.nbytes, sha256, self.normal_pages, self.zero_pages, xxh3)

    def close(self) -> None:
        """Twice is harmless."""
        self._file.close()


class PartFolder(Part):
    """A folder written beside `path` and renamed to it when complete, mode 0700; see `Part`.

    Args:
        path: the folder to make; there may be an empty one.
        ram: what the streams are known to give, as `Manifest.ram`.

    Raises:
        RamError: it exists already, or cannot be written there.
    """

    _flags = os.O_RDONLY | os.O_DIRECTORY

    def __init__(self, path: str | os.PathLike[str], ram: Mapping[str, str] | None = None) -> None:
        self._files: dict[str, StreamFile] = {}
        self._ram = ram
        super().__init__(path)

    def _refuse(self) -> None:
        """See `Part`."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.lstat(self.path).st_mode) or os.listdir(self.path):
                raise RamError(f"{self.path}: exists, and stored streams replace nothing; remove it, or name another")

    def _make(self) -> None:
        """See `Part`."""
        os.mkdir(self.part.name, 0o700, dir_fd=self._parent)

    def _take(self, fd: int) -> None:
        """See `Part`."""
        self._folder = fd

    def _leftovers(self) -> tuple[str, ...]:
        """See `Part`: the memory that its streams were made of."""
        unpacked = unpacked_name(self.path.name)
        return unpacked, part_name(unpacked)

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
                self._refuse_discarded()
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
            said = Manifest(f"multifd {__version__}", method, page_size, entries, self._ram)
            if len(said.encode()) > manifest.MOST_BYTES:  # of blocks alone: they are told again by who looks
                said = dataclasses.replace(said, ram=None)
            file = self.file(manifest.NAME)
            file.write(said.encode())
            file.flush()
            os.fsync(self._folder)
            self._take_name()
        except OSError as e:
            raise RamError(f"{self.path}: cannot be completed: {e.strerror}") from e
        self.discard()

    def _remove(self) -> None:
        """See `Part`."""
        fd = os.open(self.part.name, self._flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._parent)
        try:
            for name in os.listdir(fd):  # a folder in it is nobody's of here, and an error
                os.unlink(name, dir_fd=fd)
        finally:
            close(fd)
        os.rmdir(self.part.name, dir_fd=self._parent)

    def _close(self) -> None:
        """See `Part`."""
        for file in self._files.values():
            file.close()
        close(self._folder)
