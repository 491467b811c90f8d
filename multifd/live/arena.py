"""An arena: memory of this process that is sent while it is written, or received into.

Thread rule: an `Arena` may be used from any thread, by one migration at a time.
"""

from __future__ import annotations

import collections.abc
import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from multifd.errors import RamError
from multifd.live.kernel import populated
from multifd.live.ranges import coarsen, to_mask
from multifd.pages import Offsets, Pages
from multifd.pump.extent import Extent, Kind
from multifd.ram.block import RAM_IDSTR, Staging, TargetBlock
from multifd.ram.mappings import PAGE, mappings
from multifd.ram.memory import MemoryBlock
from multifd.wire.stream import Machine

_MAX_NAME = 255
"""Bytes of a block's name: its length is one byte on the main stream."""


@dataclass(frozen=True)
class Region:
    """One block of an arena.

    Args:
        idstr: its name.
        view: the bytes, writable.
        address: where they lie in this process.
    """

    idstr: str
    view: memoryview
    address: int

    @property
    def nbytes(self) -> int:
        """Its length."""
        return self.view.nbytes


class Arena:
    """Memory of this process as a live source for `multifd.send`, or a place to `multifd.receive` into.

    The memory stays the caller's. It must stay mapped where it is while the arena is open: the arena holds its
    buffers, so that closing an ``mmap`` under it is a BufferError.

    Args:
        memory: a writable, C-contiguous buffer that begins on a page boundary and is a multiple of the page size
            long (mmap, memoryview of a SharedMemory, numpy array over either); or several by name, which the
            other end must name alike. One alone is called ``ram``.
        writers: who writes to it: ``"this-process"``, its threads and its system calls; or ``"any"``, other
            processes too, which the kernel's log does not see. None looks: memory that is private to this process
            has no other writers, of anything shared it is not known.

    Raises:
        RamError: not such memory.
    """

    def __init__(self, memory: Any | Mapping[str, Any], *, writers: str | None = None) -> None:
        if writers not in (None, "this-process", "any"):
            raise RamError(f"writers {writers!r}, expected 'this-process' or 'any'")
        named = memory if isinstance(memory, collections.abc.Mapping) else {RAM_IDSTR: memory}
        if not named:
            raise RamError("an arena has at least one block")
        self._writers = writers
        self.regions: Sequence[Region] = tuple(_region(name, buffer) for name, buffer in named.items())
        ordered = sorted(self.regions, key=lambda region: region.address)
        for a, b in itertools.pairwise(ordered):
            if a.address + a.nbytes > b.address:
                raise RamError(f"blocks {a.idstr!r} and {b.idstr!r} overlap")

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks together."""
        return sum(region.nbytes for region in self.regions)

    def foreign_writers(self) -> str:
        """Why others than this process may write to it; empty if they do not."""
        if self._writers == "this-process":
            return ""
        if self._writers == "any":
            return "other processes write to it"
        try:
            parts = [part for r in self.regions for part in mappings(r.address, r.nbytes)]
        except OSError as e:
            return f"for all that is known other processes write to it ({e.filename}: {e.strerror})"
        for part in parts:
            if not part.is_private_memory:
                what = part.label or "a shared mapping"
                return f"it is shared ({what}), so other processes may write to it"
        return ""

    def close(self) -> None:
        """Give the buffers back; twice is harmless."""
        for region in self.regions:
            region.view.release()
        self.regions = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _region(name: str, buffer: Any) -> Region:
    if not name or len(name) > _MAX_NAME or not name.isascii() or not name.isprintable():
        raise RamError(f"block name {name!r}, expected 1 to {_MAX_NAME} printable ASCII characters")
    try:
        view = memoryview(buffer)
        if view.readonly:
            raise RamError(f"block {name!r}: the buffer is read-only")
        view = view.cast("B")
    except TypeError as e:
        raise RamError(f"block {name!r}: {e}") from e
    address = int(np.frombuffer(view, np.uint8).ctypes.data) if view.nbytes else 0
    if not view.nbytes or view.nbytes % PAGE or address % PAGE:
        raise RamError(
            f"block {name!r}: {view.nbytes} bytes at address {address:#x}; an arena begins on a page boundary and "
            f"is a multiple of {PAGE} bytes long, above 0. mmap.mmap(-1, nbytes) gives such memory, and "
            "numpy.frombuffer makes an array of it"
        )
    return Region(name, view, address)


class _Block(MemoryBlock):
    """A block to receive into, which knows what of it was never touched: that is zero and stays untouched."""

    def __init__(self, region: Region, page_size: int) -> None:
        super().__init__(region.idstr, region.view, page_size)
        self._page_size = page_size
        pages = region.nbytes // page_size
        self._is_used = np.ones(pages, np.bool_)
        if page_size % PAGE == 0:
            with contextlib.suppress(OSError):  # without /proc nothing is known
                self._is_used = to_mask(coarsen(populated(region.address, region.nbytes), page_size // PAGE), pages)
        self._where: Extent | None = Extent(Kind.CHECKED, region.address, self._memory.view, used=self._is_used)

    def extent(self) -> Extent | None:
        """See `multifd.ram.block.TargetBlock`."""
        return self._where

    def lend(self, offsets: Offsets) -> list[memoryview] | None:
        """See `multifd.ram.block.TargetBlock`."""
        self._is_used[offsets // self._page_size] = True
        return super().lend(offsets)

    def place(self, offsets: Offsets, staging: Staging) -> Pages:
        """See `multifd.ram.block.TargetBlock`."""
        self._is_used[offsets // self._page_size] = True
        return super().place(offsets, staging)

    def clear(self, offsets: Offsets) -> None:
        """See `multifd.ram.block.TargetBlock`; even reading a page of shared memory would allocate it."""
        super().clear(offsets[self._is_used[offsets // self._page_size]])

    def release(self) -> None:
        """See `MemoryBlock`."""
        super().release()
        self._where = None


class ArenaTarget:
    """An arena as the place to receive into; after a failure its content is undefined.

    Args:
        arena: its blocks must be the sender's, in name and length.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._blocks: dict[str, MemoryBlock] = {}
        self._is_committed = False

    def allocate(self, machine: Machine) -> Mapping[str, TargetBlock]:
        """See `multifd.ram.block.Target`."""
        theirs = {block.idstr: block.used_length for block in machine.blocks}
        ours = {region.idstr: region.nbytes for region in self._arena.regions}
        if theirs != ours:
            raise RamError(f"the sender has {_listed(theirs)}; the arena to receive into has {_listed(ours)}")
        for region in self._arena.regions:
            _check_writable(region)
        self._blocks = {r.idstr: _Block(r, machine.page_size) for r in self._arena.regions}
        return self._blocks

    def add_device_state(self, data: bytes) -> None:
        """See `multifd.ram.block.Target`; an arena holds RAM only."""

    def flush(self) -> None:
        """See `multifd.ram.block.Target`: memory is as durable as it gets."""

    def commit(self, uuid: bytes) -> None:
        """See `multifd.ram.block.Target`: memory is in place at once."""
        self._is_committed = True

    @property
    def is_committed(self) -> bool:
        """See `multifd.ram.block.Target`."""
        return self._is_committed

    def discard(self) -> None:
        """See `multifd.ram.block.Target`: the buffers are the caller's alone again."""
        for block in self._blocks.values():
            block.release()


def _check_writable(region: Region) -> None:
    with contextlib.suppress(OSError):  # without /proc nothing is known
        for part in mappings(region.address, region.nbytes):
            if not part.is_writable:
                at = part.start - region.address
                raise RamError(f"block {region.idstr!r}: the memory to receive into is protected from {at:#x} on")


def _listed(lengths: Mapping[str, int]) -> str:
    return ", ".join(f"block {name!r} of {nbytes} bytes" for name, nbytes in sorted(lengths.items())) or "no block"
