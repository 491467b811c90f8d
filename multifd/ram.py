"""RAM blocks and where they live: a raw image file, or memory of this process.

Files are read and written with preadv and pwritev through the channel's staging buffer, never
mapped: a full disk or a file that shrinks is an error of a system call then, not a SIGBUS, and the
memory of either end does not grow with RAM. Memory is used in place.

Thread rule: blocks may be used by all channels at once, each with its own `Staging`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from multifd.errors import RamError
from multifd.mainstream import Block
from multifd.method import Buffer, Geometry
from multifd.pages import Memory, Offsets, Pages

RAM_IDSTR = "ram"
"""The block of a machine that is nothing but RAM: QEMU's ``-M none`` calls it so (hw/core/null-machine.c)."""


class Staging:
    """A channel's private buffers, each as large as a packet's pages, made once.

    Args:
        geometry: the migration's.
    """

    def __init__(self, geometry: Geometry) -> None:
        nbytes = geometry.page_size * geometry.page_count
        # Anonymous maps: page-aligned, and no memory until they are touched.
        self.data = Memory(memoryview(mmap.mmap(-1, nbytes)), geometry.page_size)
        self.scratch = Memory(memoryview(mmap.mmap(-1, nbytes)), geometry.page_size)
        self._in_order = np.arange(geometry.page_count, dtype=np.int64) * geometry.page_size

    def pages(self, count: int) -> Pages:
        """The first `count` pages of the data buffer."""
        return Pages(self.data, self._in_order[:count], self.scratch, is_private=True)


class SourceBlock(Protocol):
    """A block that is sent."""

    idstr: str
    used_length: int

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        """The pages at `offsets`, valid until the channel's next load; None if all are zero."""
        ...


class TargetBlock(Protocol):
    """A block that is received."""

    idstr: str
    used_length: int

    def place(self, offsets: Offsets, staging: Staging) -> Pages:
        """Where to put the pages of `offsets` before `store`."""
        ...

    def store(self, offsets: Offsets, staging: Staging) -> None:
        """Take over what was put there."""
        ...

    def clear(self, offsets: Offsets) -> None:
        """Make the pages zero."""
        ...


class Source(Protocol):
    """RAM to be sent."""

    page_size: int

    @property
    def blocks(self) -> Sequence[SourceBlock]:
        """The blocks, in the order in which they are announced."""
        ...

    def close(self) -> None:
        """Release what it holds; the memory or file itself is untouched."""
        ...


class Target(Protocol):
    """Where RAM is received into. Nothing is visible to others before `commit`."""

    def allocate(self, blocks: Sequence[Block], page_size: int) -> Mapping[str, TargetBlock]:
        """Check the sender's list of blocks and make room for them.

        Raises:
            RamError: it does not fit this target.
        """
        ...

    def commit(self) -> None:
        """All pages are in place: make them durable and visible."""
        ...

    def discard(self) -> None:
        """Release everything; without `commit` before it nothing remains. Twice is harmless."""
        ...


class MemoryBlock:
    """A block in memory of this process, used in place; source and target.

    Args:
        idstr: the block's name.
        buffer: page-aligned for best speed; stays the caller's.
        page_size: bytes.
    """

    def __init__(self, idstr: str, buffer: Buffer, page_size: int) -> None:
        self.idstr = idstr
        self._memory = Memory(buffer, page_size)
        self.used_length = self._memory.view.nbytes

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        """See `SourceBlock`."""
        return Pages(self._memory, offsets, staging.scratch)

    def place(self, offsets: Offsets, staging: Staging) -> Pages:
        """See `TargetBlock`."""
        return Pages(self._memory, offsets, staging.scratch)

    def store(self, offsets: Offsets, staging: Staging) -> None:
        """See `TargetBlock`: the pages are there already."""

    def clear(self, offsets: Offsets) -> None:
        """See `TargetBlock`; zero pages are only read, so untouched memory stays untouched."""
        indexes = offsets // self._memory.page_size
        dirty = self._memory.words[indexes].any(axis=1)
        self._memory.array[indexes[dirty]] = 0


class MemorySource:
    """One block in memory of this process.

    Args:
        buffer: a multiple of `page_size` bytes, the caller's; it must stay as it is while sent.
        page_size: bytes.

    Raises:
        RamError: the length is not a multiple of the page size.
    """

    def __init__(self, buffer: Buffer, page_size: int = 4096) -> None:
        nbytes = memoryview(buffer).nbytes
        _check_size(nbytes, page_size, "the buffer")
        self.page_size = page_size
        self.blocks = (MemoryBlock(RAM_IDSTR, buffer, page_size),)

    def close(self) -> None:
        """See `Source`."""


class MemoryTarget:
    """One block into memory of this process; on failure its content is undefined.

    Args:
        buffer: writable, exactly as long as the sender's block.
    """

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer

    def allocate(self, blocks: Sequence[Block], page_size: int) -> Mapping[str, TargetBlock]:
        """See `Target`."""
        block = _only_block(blocks, "a buffer")
        have = memoryview(self._buffer).nbytes
        if have != block.used_length:
            raise RamError(f"block {block.idstr!r} has {block.used_length} bytes, the buffer to receive into {have}")
        return {block.idstr: MemoryBlock(block.idstr, self._buffer, page_size)}

    def commit(self) -> None:
        """See `Target`."""

    def discard(self) -> None:
        """See `Target`."""


class _FileBlock:
    """A block at the start of a file; source and target."""

    def __init__(self, idstr: str, fd: int, used_length: int, page_size: int, path: Path) -> None:
        self.idstr, self.used_length = idstr, used_length
        self._fd, self._page_size, self._path = fd, page_size, path
        # One byte a page, touched only where pages were written: pages outside are holes already.
        self._written = np.zeros(used_length // page_size, np.bool_)

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        first, end = int(offsets[0]), int(offsets[-1]) + self._page_size
        if self._is_hole(first, end):
            return None
        pages = staging.pages(len(offsets))
        for offset, view in self._runs(offsets, pages):
            while len(view):
                try:
                    got = os.preadv(self._fd, [view], offset)
                except OSError as e:
                    raise RamError(f"{self._path}: cannot read {len(view)} bytes at {offset}: {e.strerror}") from e
                if not got:
                    raise RamError(f"{self._path}: ends at byte {offset}, it shrank while it was sent")
                view, offset = view[got:], offset + got
        return pages

    def place(self, offsets: Offsets, staging: Staging) -> Pages:
        return staging.pages(len(offsets))

    def store(self, offsets: Offsets, staging: Staging) -> None:
        for offset, view in self._runs(offsets, staging.pages(len(offsets))):
            _write(self._fd, view, offset, self._path)
        self._written[offsets // self._page_size] = True

    def clear(self, offsets: Offsets) -> None:
        for offset in offsets[self._written[offsets // self._page_size]].tolist():
            _write(self._fd, memoryview(bytes(self._page_size)), offset, self._path)

    def _runs(self, offsets: Offsets, pages: Pages) -> Iterator[tuple[int, memoryview]]:
        """(offset in the file, view of the staging buffer) for each run of neighbours."""
        view, page_size = pages.runs()[0], self._page_size
        breaks = (np.flatnonzero(np.diff(offsets) != page_size) + 1).tolist()
        for a, b in zip([0, *breaks], [*breaks, len(offsets)], strict=True):
            yield int(offsets[a]), view[a * page_size : b * page_size]

    def _is_hole(self, first: int, end: int) -> bool:
        try:
            return os.lseek(self._fd, first, os.SEEK_DATA) >= end
        except OSError as e:
            return e.errno == errno.ENXIO  # no data from there to the end


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
        self.page_size = page_size
        self._fd = -1
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as e:
            raise RamError(f"{self.path}: {e.strerror}") from e
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise RamError(f"{self.path}: not a regular file")
            _check_size(info.st_size, page_size, str(self.path))
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self.blocks = (_FileBlock(RAM_IDSTR, fd, info.st_size, page_size, self.path),)

    def close(self) -> None:
        """See `Source`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class RawImageTarget:
    """A raw image of RAM, written beside `path` and renamed to it when complete, mode 0600.

    The temporary name is ``.NAME.multifd-part``, locked while it is written: a stale one of a
    killed process is replaced, one in use is an error.

    Args:
        path: the file to make or replace.

    Raises:
        RamError: it cannot be written there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._part = self.path.with_name(f".{self.path.name}.multifd-part")
        if self.path.exists() and not self.path.is_file():
            raise RamError(f"{self.path}: exists and is not a regular file")
        try:
            self._fd = self._open_part()
        except OSError as e:
            raise RamError(f"{self._part}: {e.strerror}") from e

    def _open_part(self) -> int:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            try:
                fd, is_new = os.open(self._part, flags | os.O_CREAT | os.O_EXCL, 0o600), True
            except FileExistsError:
                fd, is_new = os.open(self._part, flags), False
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Before the lock another process may have unlinked it and made its own of that name.
                if os.fstat(fd).st_nlink:
                    if is_new:
                        return os.dup(fd)  # shares the lock
                    os.unlink(self._part)
            except BlockingIOError:
                raise RamError(f"{self.path}: another process is receiving into it") from None
            finally:
                os.close(fd)

    def allocate(self, blocks: Sequence[Block], page_size: int) -> Mapping[str, TargetBlock]:
        """See `Target`."""
        block = _only_block(blocks, "a raw image")
        try:
            os.ftruncate(self._fd, block.used_length)
        except OSError as e:
            raise RamError(f"{self._part}: cannot hold {block.used_length} bytes: {e.strerror}") from e
        file_block = _FileBlock(block.idstr, self._fd, block.used_length, page_size, self._part)
        return {block.idstr: file_block}

    def commit(self) -> None:
        """See `Target`: file and folder are synced, so it survives a power failure from here on."""
        try:
            os.fsync(self._fd)
            os.replace(self._part, self.path)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as e:
            raise RamError(f"{self.path}: cannot be completed: {e.strerror}") from e
        self._close()

    def discard(self) -> None:
        """See `Target`."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._part)
            self._close()

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1


def _write(fd: int, view: memoryview, offset: int, path: Path) -> None:
    while len(view):
        try:
            done = os.pwritev(fd, [view], offset)
        except OSError as e:
            raise RamError(f"{path}: cannot write {len(view)} bytes at {offset}: {e.strerror}") from e
        view, offset = view[done:], offset + done


def _check_size(nbytes: int, page_size: int, what: str) -> None:
    if not nbytes or nbytes % page_size:
        raise RamError(f"{what}: {nbytes} bytes, expected a multiple of the page size, {page_size}, above 0")


def _only_block(blocks: Sequence[Block], what: str) -> Block:
    if len(blocks) != 1:
        names = ", ".join(f"{b.idstr} ({b.used_length} bytes)" for b in blocks)
        raise RamError(f"{what} takes exactly one RAM block, the sender has {len(blocks)}: {names}")
    return blocks[0]
