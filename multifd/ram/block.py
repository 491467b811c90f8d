"""RAM blocks: what engines ask of where RAM lives.

Blocks in memory are in `multifd.ram.memory` and `multifd.live.arena`, blocks in files in `multifd.ram.file_block`.

Thread rule: blocks may be used by all channels at once, each with its own `Staging`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from multifd.errors import RamError
from multifd.pages import Geometry, Memory, Offsets, Pages
from multifd.pump.extent import Extent
from multifd.wire.stream import Block, Machine

RAM_IDSTR = "ram"
"""The block of a machine that is nothing but RAM: QEMU's ``-M none`` calls it so (hw/core/null-machine.c)."""


def private_map(nbytes: int) -> memoryview:
    """A new writable buffer of zeros, page-aligned, which takes no memory until it is touched.

    Python maps anonymous memory MAP_SHARED by default: a forked child would then write into its parent's buffers.

    Raises:
        RamError: this process may have no more memory.
    """
    try:
        return memoryview(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    except OSError as e:
        raise RamError(f"no memory for a buffer of {nbytes} bytes: {e.strerror}") from e


class Staging:
    """A channel's private buffers, each as large as a packet's pages, made once.

    Args:
        geometry: the migration's.
    """

    def __init__(self, geometry: Geometry) -> None:
        nbytes = geometry.page_size * geometry.page_count
        self.data = Memory(private_map(nbytes), geometry.page_size)
        self.scratch = Memory(private_map(nbytes), geometry.page_size)
        self._in_order = _one_after_another(geometry)

    def pages(self, count: int) -> Pages:
        """The first `count` pages of the data buffer."""
        runs = [self.data.view[: count * self.data.page_size]] if count else []
        return Pages(self.data, self._in_order[:count], self.scratch, is_private=True, runs=runs)

    def pages_by_offset(self, offsets: Offsets) -> Pages:
        """A page for each offset, in their order, laid out by rising offset.

        So neighbours in the block are neighbours in the buffer, however the sender mixed them: a QEMU moves zero
        pages to the end of a packet by swapping (migration/multifd-zero-page.c, 10.0).
        """
        if np.logical_and.reduce(offsets[1:] > offsets[:-1]):  # `all` goes through Python first
            return self.pages(len(offsets))
        places = np.empty(len(offsets), np.int64)
        places[np.argsort(offsets, kind="stable")] = self._in_order[: len(offsets)]
        return Pages(self.data, places, self.scratch, is_private=True)


@dataclass(frozen=True, slots=True)
class MappedPages:
    """A portion's pages where they lie, for system calls alone.

    A system call that meets a page that cannot be read (a file that was cut short, a guard page) fails with EFAULT,
    which `Connection.send` turns into a `RamError`. A process that reads such a page itself is killed. So `views` go
    to `Connection.send` and to nobody else, above all not to a method's hook.
    """

    zero_mask: npt.NDArray[np.bool_] | None
    """bool, shape (n,): which pages of the portion are zero; None if none is."""
    views: list[memoryview]
    """The other pages in the portion's order, neighbours coalesced; empty if all are zero. Read-only by agreement,
    valid until the block's source is closed."""


@cache
def _one_after_another(geometry: Geometry) -> Offsets:
    """Offsets of a packet's pages in a buffer; made once, since numpy gives the GIL away for it."""
    offsets: Offsets = np.arange(geometry.page_count, dtype=np.int64) * geometry.page_size
    offsets.flags.writeable = False
    return offsets


class SourceBlock(Protocol):
    """A block that is sent."""

    idstr: str
    used_length: int

    def extent_of(self, offsets: Offsets, *, is_verbatim: bool) -> Extent | None:
        """Where a portion's pages lie, for the packet pump; the same object for portions that lie alike.

        Args:
            offsets: of the portion.
            is_verbatim: the pages go out as they are, and nobody but the kernel looks at those that are known not to
                be zero.

        Returns:
            None if only `load` and `map` get at them.
        """
        ...

    def portions(self, page_count: int) -> Iterator[Offsets]:
        """Offsets of all pages, each once, at most `page_count` in each array, as they are best sent."""
        ...

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        """The pages of a portion, which anybody may read; valid until the channel's next load.

        Returns:
            The pages; None if all are known to be zero.

        Raises:
            RamError: they cannot be read.
        """
        ...

    def map(self, offsets: Offsets, staging: Staging) -> MappedPages | None:
        """The pages of a portion where they lie, for the engine to send without a copy.

        Returns:
            None if they cannot be had so; `load` them then.

        Raises:
            RamError: they cannot be read, as far as is known before they are sent.
        """
        ...


class TargetBlock(Protocol):
    """A block that is received."""

    idstr: str
    used_length: int

    def extent(self) -> Extent | None:
        """Where the pages belong, for the packet pump; None if only `place` and `store` get there."""
        ...

    def written(self, offsets: Offsets, is_zero: npt.NDArray[np.bool_]) -> None:
        """The pump wrote pages to the extent's file, in this order; where `is_zero`, the page is still to be made
        zero. Not called for an extent in memory.

        Raises:
            RamError: a page cannot be written.
        """
        ...

    def place(self, offsets: Offsets, staging: Staging) -> Pages:
        """Where a method's hook puts the pages of `offsets` before `store`: memory that can be written."""
        ...

    def store(self, offsets: Offsets, staging: Staging) -> None:
        """Take over what was put there.

        Raises:
            RamError: it cannot be written where it belongs.
        """
        ...

    def lend(self, offsets: Offsets) -> list[memoryview] | None:
        """The pages of `offsets` where they belong, for the engine to receive into without a copy.

        For system calls alone, as `MappedPages.views`: `Connection.recv_into` turns EFAULT into a `RamError`. There
        is nothing to `store` afterwards.

        Returns:
            The pages in wire order, neighbours coalesced; None where they must be staged: `place`, then `store`.
        """
        ...

    def clear(self, offsets: Offsets) -> None:
        """Make the pages zero."""
        ...


class Source(Protocol):
    """RAM to be sent."""

    machine: Machine
    """Name, page size, uuid and blocks, as they are announced."""

    @property
    def blocks(self) -> Sequence[SourceBlock]:
        """The machine's blocks, in the same order."""
        ...

    def device_state(self) -> Iterator[bytes]:
        """What follows RAM on the main stream, up to its end, in pieces."""
        ...

    def close(self) -> None:
        """Release what it holds; the memory or file itself is untouched."""
        ...


class Target(Protocol):
    """Where RAM is received into. Nothing is visible to others before `commit`."""

    def allocate(self, machine: Machine) -> Mapping[str, TargetBlock]:
        """Check the sender's list of blocks and make room for them.

        Raises:
            RamError: it does not fit this target.
        """
        ...

    def add_device_state(self, data: bytes) -> None:
        """Take the next piece of what follows RAM (one thread, in order)."""
        ...

    def flush(self) -> None:
        """Make durable what is there so far, so that `commit` is short (a thread of its own, again and again)."""
        ...

    def commit(self, uuid: bytes) -> None:
        """Everything is in place: make it durable and visible.

        Args:
            uuid: the guest's, as its channels gave it; all zero if it has none.

        Raises:
            RamError: it cannot, or `discard` came first; `is_committed` is false then.
        """
        ...

    @property
    def is_committed(self) -> bool:
        """Whether `commit` got as far as to make it visible, whatever came afterwards. From any thread.

        While a `commit` is under way in another thread, ask after `discard`: that either prevents it or comes too
        late, and this says which.
        """
        ...

    def discard(self) -> None:
        """Release everything; without `commit` before it nothing remains. Twice is harmless. From any thread."""
        ...


def bare_machine(used_length: int, page_size: int) -> Machine:
    """QEMU's machine that is nothing but RAM, ``-M none``: an unmodified one can be the destination."""
    return Machine("none", page_size, (Block(RAM_IDSTR, used_length),))


def in_order(used_length: int, page_size: int, page_count: int) -> Iterator[Offsets]:
    """Offsets of a block's pages from first to last, `page_count` at a time."""
    step = page_size * page_count
    portion = np.arange(0, step, page_size, dtype=np.int64)
    for start in range(0, used_length, step):
        yield portion[: (used_length - start) // page_size] + start


def check_size(nbytes: int, page_size: int, what: str) -> None:
    """Raise `RamError` unless `nbytes` is a positive multiple of the page size."""
    if not nbytes or nbytes % page_size:
        raise RamError(f"{what}: {nbytes} bytes, expected a multiple of the page size, {page_size}, above 0")


def only_block(blocks: Sequence[Block], what: str) -> Block:
    """The block, if there is one alone; else raise `RamError`."""
    if len(blocks) != 1:
        names = ", ".join(f"{b.idstr} ({b.used_length} bytes)" for b in blocks)
        raise RamError(f"{what} takes exactly one RAM block, the sender has {len(blocks)}: {names}")
    return blocks[0]
