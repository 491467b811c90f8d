"""RAM in memory of this process.

Thread rule: blocks may be used by all channels at once, each with its own `Staging`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from multifd.errors import RamError
from multifd.pages import PACKET_BYTES, Buffer, Memory, Offsets, Pages, runs
from multifd.ram import kernel_copy
from multifd.ram.block import (
    RAM_IDSTR,
    MappedPages,
    Staging,
    TargetBlock,
    bare_machine,
    check_size,
    in_order,
    only_block,
)
from multifd.wire.stream import Machine
from multifd.wire.writer import encode_end


class MemoryBlock:
    """A block in memory of this process; source and target.

    The memory is the caller's, and any of it may be protected, or lose its file, at any time. So only system calls
    touch it: it is sent and received in place by a socket's, and copied by the kernel's for everything else.

    Args:
        idstr: the block's name.
        buffer: page-aligned for best speed; stays the caller's.
        page_size: bytes.
    """

    def __init__(self, idstr: str, buffer: Buffer, page_size: int) -> None:
        self.idstr = idstr
        self._memory = Memory(buffer, page_size)
        self._address = kernel_copy.address_of(self._memory.view)
        self.used_length = self._memory.view.nbytes

    def portions(self, page_count: int) -> Iterator[Offsets]:
        """See `SourceBlock`."""
        return in_order(self.used_length, self._memory.page_size, page_count)

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        """See `SourceBlock`: a copy."""
        self._copy_out(offsets, kernel_copy.one_piece(staging.address, len(offsets) * self._memory.page_size))
        return staging.pages(len(offsets))

    def map(self, offsets: Offsets, staging: Staging) -> MappedPages | None:
        """See `SourceBlock`. Most pages that are not zero show it in their first word; only the others are copied."""
        try:
            words = kernel_copy.first_words(self._address, offsets)
        except kernel_copy.Untouchable as e:
            raise self._untouchable("read", offsets[e.done // 8]) from None
        if np.count_nonzero(words) == len(offsets):
            return MappedPages(None, runs(self._memory, offsets))
        mask = words == 0
        suspects = offsets[mask]
        pages = self.load(suspects, staging)
        zeros = None if pages is None else pages.zero_mask()
        if zeros is None:
            return MappedPages(None, runs(self._memory, offsets))
        mask[mask] = zeros
        return MappedPages(mask, runs(self._memory, offsets[~mask]))

    def lend(self, offsets: Offsets) -> list[memoryview] | None:
        """See `TargetBlock`."""
        return runs(self._memory, offsets)

    def place(self, offsets: Offsets, staging: Staging) -> Pages:
        """See `TargetBlock`."""
        return staging.pages_by_offset(offsets)

    def store(self, offsets: Offsets, staging: Staging) -> None:
        """See `TargetBlock`."""
        in_order = offsets.copy()
        in_order.sort()
        nbytes = len(offsets) * self._memory.page_size
        self._copy_in(kernel_copy.one_piece(staging.address, nbytes), in_order)

    def clear(self, offsets: Offsets) -> None:
        """See `TargetBlock`; zero pages are only read, so untouched memory stays untouched."""
        page_size = self._memory.page_size
        for start in range(0, len(offsets), PACKET_BYTES // page_size):
            some = offsets[start : start + PACKET_BYTES // page_size]
            copy = np.empty((len(some), page_size // 8), np.uint64)
            self._copy_out(some, kernel_copy.one_piece(copy.ctypes.data, copy.nbytes))
            dirty = some[copy.any(axis=1)]
            if len(dirty):
                copy[: len(dirty)] = 0
                self._copy_in(kernel_copy.one_piece(copy.ctypes.data, len(dirty) * page_size), dirty)

    def release(self) -> None:
        """Give the buffer back, so that it can be closed at once; twice is harmless."""
        self._memory = Memory(b"", self._memory.page_size)

    def _copy_out(self, offsets: Offsets, into: kernel_copy.Iov) -> None:
        try:
            kernel_copy.read(kernel_copy.pieces(self._address, offsets, self._memory.page_size), into)
        except kernel_copy.Untouchable as e:
            raise self._untouchable("read", offsets[e.done // self._memory.page_size]) from None

    def _copy_in(self, source: kernel_copy.Iov, offsets: Offsets) -> None:
        try:
            kernel_copy.write(source, kernel_copy.pieces(self._address, offsets, self._memory.page_size))
        except kernel_copy.Untouchable as e:
            raise self._untouchable("written", offsets[e.done // self._memory.page_size]) from None

    def _untouchable(self, done: str, offset: np.int64) -> RamError:
        return RamError(
            f"block {self.idstr!r}: the page at {int(offset):#x} cannot be {done}: it is protected, not mapped, or "
            "beyond the end of its file"
        )


class _StandingBlock(MemoryBlock):
    """A block that nobody changes, protects or cuts short while it is sent: hooks read it where it is.

    It saves the copy, 50 us for a packet of 512 KiB.
    """

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        """See `SourceBlock`."""
        return Pages(self._memory, offsets, staging.scratch)

    def map(self, offsets: Offsets, staging: Staging) -> MappedPages | None:
        """See `SourceBlock`."""
        mask = Pages(self._memory, offsets, staging.scratch).zero_mask()
        return MappedPages(mask, runs(self._memory, offsets if mask is None else offsets[~mask]))


class MemorySource:
    """One block in memory of this process.

    Args:
        buffer: a multiple of `page_size` bytes, the caller's; it must stay as it is, and readable, while it is sent.
            Memory of which that is not certain is an arena's.
        page_size: bytes.

    Raises:
        RamError: the length is not a multiple of the page size.
    """

    def __init__(self, buffer: Buffer, page_size: int = 4096) -> None:
        nbytes = memoryview(buffer).nbytes
        check_size(nbytes, page_size, "the buffer")
        self.machine = bare_machine(nbytes, page_size)
        self.blocks = (_StandingBlock(RAM_IDSTR, buffer, page_size),)

    def device_state(self) -> Iterator[bytes]:
        """See `Source`: there are no devices."""
        yield encode_end(self.machine.page_size)

    def close(self) -> None:
        """See `Source`."""


class MemoryTarget:
    """One block into memory of this process; on failure its content is undefined.

    Args:
        buffer: writable, exactly as long as the sender's block.
    """

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self._is_committed = False

    def allocate(self, machine: Machine) -> Mapping[str, TargetBlock]:
        """See `Target`."""
        block = only_block(machine.blocks, "a buffer")
        have = memoryview(self._buffer).nbytes
        if have != block.used_length:
            raise RamError(f"block {block.idstr!r} has {block.used_length} bytes, the buffer to receive into {have}")
        return {block.idstr: MemoryBlock(block.idstr, self._buffer, machine.page_size)}

    def add_device_state(self, data: bytes) -> None:
        """See `Target`; a buffer holds RAM only."""

    def flush(self) -> None:
        """See `Target`; memory is as durable as it gets."""

    def commit(self, uuid: bytes) -> None:
        """See `Target`: it is in place already."""
        self._is_committed = True

    @property
    def is_committed(self) -> bool:
        """See `Target`."""
        return self._is_committed

    def discard(self) -> None:
        """See `Target`."""
