"""Stored streams: a folder whose files are the bytes of a migration's connections, as they went over the wire.

A transport, not a format: ``main`` and ``channel-0`` and so on are what a destination reads, and ``manifest.json`` says
how long they are and what their digests are. A file may be a symbolic link, so channels can lie on several disks.

Rules of this file: nothing of a file is given to anybody before `check` has read all of it; what is wrong is said of
the file that it is wrong with. `multifd.ram.part_folder` writes, `multifd.ram.amendment` adds to the manifest.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from multifd.errors import MultifdError, RamError
from multifd.ram import manifest
from multifd.ram.block import private_map
from multifd.ram.checksum import KINDS
from multifd.ram.file import close, cut_short, open_regular, read_exactly, reason
from multifd.ram.manifest import FileEntry, Manifest
from multifd.ram.part import part_name

_PIECE_BYTES = 512 << 10
"""Read and digested together; it stays in a processor's cache."""


class StoredStream:
    """One file.

    Thread rule: any thread.

    Args:
        path: it.
        entry: what the manifest says of it.

    Raises:
        RamError: it is missing, is no regular file, or has another length.
    """

    def __init__(self, path: Path, entry: FileEntry) -> None:
        self.path, self.entry = path, entry
        self._file, nbytes = open_regular(path)
        if nbytes != entry.nbytes:
            self.close()
            raise RamError(f"{path}: {nbytes} bytes, the manifest says {entry.nbytes}: cut short or damaged")

    def read(self, view: memoryview, offset: int) -> int:
        """Read at most `view`, and at most up to the length that the manifest says; 0 at that end.

        Raises:
            RamError: it cannot be read, or ends before.
        """
        wanted = min(len(view), self.entry.nbytes - offset)
        read_exactly(self._file, view[:wanted], offset, self.path)
        return wanted

    def send(self, by: Callable[[int, int, int], int], offset: int, nbytes: int) -> int:
        """Let a system call take bytes out of the file.

        Args:
            by: called with the file's descriptor, `offset` and `nbytes`; returns how many it took. An `OSError` of it
                means that the file cannot be read.
            offset: the first byte.
            nbytes: at most so many.

        Returns:
            What `by` did, more than 0.

        Raises:
            RamError: the file cannot be read, or ends before; or what else `by` raised.
        """
        try:
            with self._file.use() as fd:
                taken = by(fd, offset, nbytes)
        except MultifdError:  # of a connection: an OSError, too
            raise
        except OSError as e:
            raise RamError(f"{self.path}: cannot read {nbytes} bytes at {offset}: {e.strerror}") from e
        if not taken:
            raise cut_short(self.path, offset)
        return taken

    def check(self, go_on: Callable[[], object]) -> None:
        """Read all of it and compare the digest that takes the least time.

        Args:
            go_on: called between pieces; what it raises ends the check.

        Raises:
            RamError: it is not what was written.
        """
        self._compare(dict([next(iter(self.entry.digests.items()))]), go_on)

    def verify(self, go_on: Callable[[], object]) -> None:
        """Read all of it and compare every digest that the manifest has; otherwise as `check`."""
        self._compare(self.entry.digests, go_on)

    def _compare(self, known: Mapping[str, str], go_on: Callable[[], object]) -> None:
        found, at = {kind: KINDS[kind]() for kind in known}, 0
        view = private_map(_PIECE_BYTES)
        while got := self.read(view, at):
            for digest in found.values():
                digest.update(view[:got])
            at += got
            go_on()
        for kind, digest in found.items():
            if digest.hexdigest() != known[kind]:
                raise RamError(f"{self.path}: damaged: its {kind} is {digest.hexdigest()}, not {known[kind]}")

    def close(self) -> None:
        """Twice is harmless."""
        self._file.close()


class StoredFolder:
    """A folder of stored streams, opened; its manifest is sound, its files are all there and as long as it says.

    Args:
        path: the folder.

    Raises:
        RamError: it is none, or something in it is missing, too much or of another length.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.main: StoredStream
        self.channels: list[StoredStream] = []
        self.manifest = _read_manifest(self.path)
        _refuse_others(self.path, self.manifest)
        opened: list[StoredStream] = []
        try:
            for name, entry in self.manifest.files.items():
                opened.append(StoredStream(self.path / name, entry))
        except MultifdError:
            for stream in opened:
                stream.close()
            raise
        self.main, *self.channels = opened

    @property
    def nbytes(self) -> int:
        """Bytes of all streams."""
        return sum(entry.nbytes for entry in self.manifest.files.values())

    @property
    def streams(self) -> list[StoredStream]:
        """Main's, then those of the channels."""
        return [self.main, *self.channels]

    def close(self) -> None:
        """Twice is harmless."""
        for stream in self.streams:
            stream.close()


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Nobody else looks at the RAM of a folder meanwhile; who reads its files is not held up.

    Args:
        path: the folder.

    Raises:
        RamError: another process does, or there is none.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as e:
        raise RamError(f"{path}: {reason(e)}; expected a folder of stored streams") from e
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            why = "another process looks at its RAM" if isinstance(e, BlockingIOError) else reason(e)
            raise RamError(f"{path}: {why}") from e
        yield
    finally:
        close(fd)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / manifest.NAME
    try:
        file, nbytes = open_regular(path)
    except RamError as e:
        raise RamError(f"{e}; expected a folder of stored streams, which has a manifest") from e
    try:
        if nbytes > manifest.MOST_BYTES:
            raise RamError(f"{path}: {nbytes} bytes, at most {manifest.MOST_BYTES}: that is no manifest")
        data = bytearray(nbytes)
        read_exactly(file, memoryview(data), 0, path)
    finally:
        file.close()
    try:
        return Manifest.decode(bytes(data))
    except RamError as e:
        raise RamError(f"{path}: {e}") from e


def _refuse_others(folder: Path, said: Manifest) -> None:
    own = {manifest.NAME, part_name(manifest.NAME), *said.files}
    try:
        others = sorted(set(os.listdir(folder)) - own)
    except OSError as e:
        raise RamError(f"{folder}: cannot be listed: {e.strerror}") from e
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise RamError(f"{folder / others[0]}: not in the manifest{more}: it does not belong to these streams")
