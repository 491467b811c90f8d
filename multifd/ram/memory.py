"""RAM in memory of this process.

Thread rule: blocks may be used by all channels at once, each with its own `Staging`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from multifd.errors import RamError
from multifd.pages import Buffer, Memory, Offsets, Pages, runs
from multifd.pump.extent import Extent, Kind
from multifd.ram import probe
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
from multifd.ram.mappings import are_own
from multifd.wire.stream import Machine
from multifd.wire.writer import encode_end

_AT_ONCE = 128
"""Pages looked at together where nobody has cut them into packets: what stays in the cache."""


class MemoryBlock:
    """A block in memory of this process, used in place; source and target.

    The kernel is asked right before pages are touched, so that one that cannot be is an error and no signal.

    Args:
        idstr: the block's name.
        buffer: page-aligned for best speed; stays the caller's.
        page_size: bytes.
    """

    _kind: ClassVar[Kind] = Kind.CHECKED

    def __init__(self, idstr: str, buffer: Buffer, page_size: int) -> None:
        self.idstr = idstr
        self._memory = Memory(buffer, page_size)
        self._address = probe.address_of(self._memory.view)
        self.used_length = self._memory.view.nbytes
        self._extent: Extent | None = Extent(self._kind, self._address, self._memory.view)

    def portions(self, page_count: int) -> Iterator[Offsets]:
        """See `SourceBlock`."""
        return in_order(self.used_length, self._memory.page_size, page_count)

    def extent_of(self, offsets: Offsets, *, is_verbatim: bool) -> Extent | None:
        """See `SourceBlock`."""
        return self._extent

    def extent(self) -> Extent | None:
        """See `TargetBlock`."""
        return self._extent

    def written(self, offsets: Offsets, is_zero: npt.NDArray[np.bool_]) -> None:
        """See `TargetBlock`: there is no file."""

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        """See `SourceBlock`."""
        self.check_readable(offsets)
        return Pages(self._memory, offsets, staging.scratch)

    def map(self, offsets: Offsets, staging: Staging) -> MappedPages | None:
        """See `SourceBlock`."""
        self.check_readable(offsets)
        mask = Pages(self._memory, offsets, staging.scratch).zero_mask()
        return MappedPages(mask, runs(self._memory, offsets if mask is None else offsets[~mask]))

    def lend(self, offsets: Offsets) -> list[memoryview] | None:
        """See `TargetBlock`."""
        return runs(self._memory, offsets)

    def place(self, offsets: Offsets, staging: Staging) -> Pages:
        """See `TargetBlock`."""
        self.check_writable(offsets)
        return Pages(self._memory, offsets, staging.scratch)

    def store(self, offsets: Offsets, staging: Staging) -> None:
        """See `TargetBlock`: the pages are there already."""

    def clear(self, offsets: Offsets) -> None:
        """See `TargetBlock`; zero pages are only read, so untouched memory stays untouched."""
        for start in range(0, len(offsets), _AT_ONCE):
            some = offsets[start : start + _AT_ONCE]
            self.check_readable(some)
            indexes = some // self._memory.page_size
            first, last = int(indexes[0]), int(indexes[-1])
            is_run = last - first == len(some) - 1 and bool((indexes[1:] > indexes[:-1]).all())
            # A slice is half the price of a selection.
            words = self._memory.words[first : last + 1] if is_run else self._memory.words[indexes]
            dirty = words.any(axis=1)
            if dirty.any():
                self.check_writable(some[dirty])
                self._memory.array[indexes[dirty]] = 0

    def check_readable(self, offsets: Offsets) -> None:
        """Raise `RamError` if one of the pages cannot be read now."""
        self._refuse(probe.first_unreadable(self._address, offsets, self._memory.page_size), offsets, "read")

    def check_writable(self, offsets: Offsets) -> None:
        """Raise `RamError` if one of the pages, all of which are to be written, cannot be now."""
        self._refuse(probe.first_unwritable(self._address, offsets, self._memory.page_size), offsets, "written")

    def _refuse(self, bad: int | None, offsets: Offsets, what: str) -> None:
        if bad is not None:
            raise RamError(
                f"block {self.idstr!r}: the page at {int(offsets[bad]):#x} cannot be {what}: it is protected, not "
                "mapped, or beyond the end of its file"
            )

    def release(self) -> None:
        """Give the buffer back, so that it can be closed at once; twice is harmless."""
        self._memory = Memory(b"", self._memory.page_size)
        self._extent = None


class StandingBlock(MemoryBlock):
    """A block whose pages are there to stay: the kernel need not be asked, which takes up to 60 us a packet."""

    _kind = Kind.MEMORY

    def check_readable(self, offsets: Offsets) -> None:
        """See `MemoryBlock`."""

    def check_writable(self, offsets: Offsets) -> None:
        """See `MemoryBlock`."""


def block_of(idstr: str, buffer: Buffer, page_size: int) -> MemoryBlock:
    """A plain buffer as a block: the kernel is asked about its pages where others can take them away.

    Args:
        idstr, buffer, page_size: as `MemoryBlock`'s.
    """
    view = memoryview(buffer)
    is_own = view.nbytes and are_own(probe.address_of(view.cast("B")), view.nbytes)
    return (StandingBlock if is_own else MemoryBlock)(idstr, buffer, page_size)


class MemorySource:
    """One block in memory of this process.

    Args:
        buffer: a multiple of `page_size` bytes, the caller's; it must stay as it is while it is sent.
        page_size: bytes.

    Raises:
        RamError: the length is not a multiple of the page size.
    """

    def __init__(self, buffer: Buffer, page_size: int = 4096) -> None:
        nbytes = memoryview(buffer).nbytes
        check_size(nbytes, page_size, "the buffer")
        self.machine = bare_machine(nbytes, page_size)
        self.blocks = (block_of(RAM_IDSTR, buffer, page_size),)

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
        return {block.idstr: block_of(block.idstr, self._buffer, machine.page_size)}

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
