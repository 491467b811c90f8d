"""RAM in files: a block somewhere in a file, files that appear only when complete, raw images.

Files are read and written with preadv and pwritev through the channel's staging buffer, never
mapped: a full disk or a file that shrinks is an error of a system call then, not a SIGBUS, and the
memory of either end does not grow with RAM.

Thread rule: blocks may be used by all channels at once, each with its own `Staging`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from multifd.errors import RamError
from multifd.mainstream import Block, Machine, encode_end
from multifd.method import Buffer
from multifd.pages import Offsets, Pages
from multifd.ram import RAM_IDSTR, Staging, TargetBlock, bare_machine, check_size, in_order, only_block


class FileBlock:
    """A block that is one piece of a file; source and target.

    Args:
        block: name and length.
        page_size: bytes.
        fd: stays the caller's.
        start: the block's first byte in the file.
        path: the file, for error messages.
    """

    def __init__(self, block: Block, page_size: int, fd: int, start: int, path: Path) -> None:
        self.idstr, self.used_length = block.idstr, block.used_length
        self._fd, self._page_size, self._start, self._path = fd, page_size, start, path
        # One byte a page, touched only where pages were written.
        self._written = np.zeros(block.used_length // page_size, np.bool_)

    def portions(self, page_count: int) -> Iterator[Offsets]:
        """See `SourceBlock`."""
        return in_order(self.used_length, self._page_size, page_count)

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        """See `SourceBlock`; holes are not read."""
        if self._is_hole(int(offsets[0]), int(offsets[-1]) + self._page_size):
            return None
        for offset, view in self._runs(offsets, staging):
            read_exactly(self._fd, view, self._start + offset, self._path)
        return staging.pages(len(offsets))

    def place(self, offsets: Offsets, staging: Staging) -> Pages:
        """See `TargetBlock`."""
        return staging.pages_by_offset(offsets)

    def store(self, offsets: Offsets, staging: Staging) -> None:
        """See `TargetBlock`."""
        in_order = offsets.copy()
        in_order.sort()
        page_size = self._page_size
        for offset, view in self._runs(in_order, staging):
            write(self._fd, view, self._start + offset, self._path)
            self._written[offset // page_size : (offset + len(view)) // page_size] = True

    def clear(self, offsets: Offsets) -> None:
        """See `TargetBlock`; pages that were never written are holes already."""
        for offset in offsets[self._written[offsets // self._page_size]].tolist():
            write(self._fd, memoryview(bytes(self._page_size)), self._start + offset, self._path)

    def _runs(self, offsets: Offsets, staging: Staging) -> Iterator[tuple[int, memoryview]]:
        """(offset in the block, view of the staging buffer) for each run of neighbours."""
        view, page_size = staging.data.view, self._page_size
        breaks = ((offsets[1:] - offsets[:-1] != page_size).nonzero()[0] + 1).tolist()
        for a, b in zip([0, *breaks], [*breaks, len(offsets)], strict=True):
            yield int(offsets[a]), view[a * page_size : b * page_size]

    def _is_hole(self, first: int, end: int) -> bool:
        try:
            return os.lseek(self._fd, self._start + first, os.SEEK_DATA) >= self._start + end
        except OSError as e:
            if e.errno != errno.ENXIO:
                return False  # a file system that does not tell
            # No data from there to the end, which may have come nearer since.
            if (nbytes := os.fstat(self._fd).st_size) < self._start + end:
                raise _cut_short(self._path, nbytes) from None
            return True


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
            os.replace(self.part, self.path)
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
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self.part)
            self._close()

    def _close(self) -> None:
        os.close(self.fd)
        self.fd = -1


class RawImageSource:
    """A raw image of RAM: one block, byte X of the file is byte X of RAM. Holes are not read.

    Args:
        path: a regular file, a multiple of `page_size` long.
        page_size: bytes.

    Raises:
        RamError: it is not.
    """

    def __init__(self, path: str | os.PathLike[str], page_size: int = 4096) -> None:
        self.path = Path(path)
        self._fd = -1
        fd, nbytes = open_regular(self.path)
        try:
            check_size(nbytes, page_size, str(self.path))
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self.machine = bare_machine(nbytes, page_size)
        self.blocks = (FileBlock(Block(RAM_IDSTR, nbytes), page_size, fd, 0, self.path),)

    def device_state(self) -> Iterator[bytes]:
        """See `Source`: there are no devices."""
        yield encode_end(self.machine.page_size)

    def close(self) -> None:
        """See `Source`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class RawImageTarget:
    """A raw image of one RAM block; the state of devices is not kept.

    Args:
        path: the file to make or replace; see `PartFile`.

    Raises:
        RamError: it cannot be written there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = PartFile(path)

    def allocate(self, machine: Machine) -> Mapping[str, TargetBlock]:
        """See `Target`."""
        block = only_block(machine.blocks, "a raw image")
        self._file.resize(block.used_length)
        return {block.idstr: FileBlock(block, machine.page_size, self._file.fd, 0, self._file.part)}

    def add_device_state(self, data: bytes) -> None:
        """See `Target`; a raw image holds RAM only."""

    def flush(self) -> None:
        """See `Target`."""
        self._file.flush()

    def commit(self, uuid: bytes) -> None:
        """See `Target`."""
        self._file.commit()

    def discard(self) -> None:
        """See `Target`."""
        self._file.discard()


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
            raise _cut_short(path, offset)
        view, offset = view[got:], offset + got


def _cut_short(path: Path, nbytes: int) -> RamError:
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
