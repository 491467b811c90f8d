"""A machine's memory in this process: what a measured migration moves, and where it goes.

A guest's memory lies in RAM, not in a file; so both ends of a measurement hold it there, in memory that was touched
where it is not zero, and no disk is measured.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

from multifd.errors import RamError
from multifd.live.arena import Arena, ArenaTarget
from multifd.pages import Geometry
from multifd.ram.block import Source, SourceBlock, Staging, private_map
from multifd.ram.memory import StandingBlock
from multifd.wire.stream import EOF

_PAGE = mmap.PAGESIZE


class LoadedSource:
    """A source whose blocks were read into memory of this process; pages that are zero were not touched.

    Args:
        stored: where the bytes come from; the caller's, needed no longer afterwards.

    Raises:
        RamError: it cannot be read.
    """

    def __init__(self, stored: Source) -> None:
        self.machine = stored.machine
        self._device_state = list(stored.device_state())
        geometry = Geometry.of(self.machine.page_size)
        staging = Staging(geometry)
        blocks = []
        for block in stored.blocks:
            view = private_map(block.used_length)
            pages = np.frombuffer(view, np.uint8).reshape(-1, geometry.page_size)
            for offsets in block.portions(geometry.page_count):
                loaded = block.load(offsets, staging)
                if loaded is None:
                    continue
                mask = loaded.zero_mask()
                if mask is not None:
                    loaded, offsets = loaded.select(~mask), offsets[~mask]
                if len(loaded):
                    pages[offsets // geometry.page_size] = np.frombuffer(loaded.gather(), np.uint8).reshape(
                        -1, geometry.page_size
                    )
            blocks.append(StandingBlock(block.idstr, view, geometry.page_size))
        self.blocks = tuple(blocks)

    def device_state(self) -> Iterator[bytes]:
        """See `multifd.ram.block.Source`."""
        yield from self._device_state

    def close(self) -> None:
        """See `multifd.ram.block.Source`."""
        for block in self.blocks:
            block.release()


class Destination(ArenaTarget):
    """Fresh memory for a source's blocks, which is compared with the source afterwards.

    Args:
        stored: the source; the caller's, who keeps it open until `compare`.
    """

    def __init__(self, stored: Source) -> None:
        self._stored = stored
        self._views = {block.idstr: private_map(block.used_length) for block in stored.blocks}
        self._devices = hashlib.sha256()
        super().__init__(Arena(self._views))

    def add_device_state(self, data: bytes) -> None:
        """See `multifd.ram.block.Target`."""
        self._devices.update(data)

    def compare(self) -> None:
        """Compare with the source as it is stored, byte for byte.

        Raises:
            RamError: it differs, and where.
        """
        for block in self._stored.blocks:
            at = _first_difference(block, self._views[block.idstr], self._stored.machine.page_size)
            if at is not None:
                raise RamError(f"the destination differs from the source: block {block.idstr!r}, page at {at:#x}")
        devices = hashlib.sha256()
        for piece in _device_state(self._stored):
            devices.update(piece)
        if devices.digest() != self._devices.digest():
            raise RamError("the destination differs from the source: the devices' state")


def _first_difference(block: SourceBlock, view: memoryview, page_size: int) -> int | None:
    """The offset of a page whose bytes in `view` are not the block's, None if all are."""
    geometry = Geometry.of(page_size)
    staging = Staging(geometry)
    have = np.frombuffer(view, np.uint64).reshape(-1, page_size // 8)
    for offsets in block.portions(geometry.page_count):
        indexes = offsets // page_size
        first, last = int(indexes[0]), int(indexes[-1])
        is_run = last - first == len(indexes) - 1
        ours = have[first : last + 1] if is_run else have[indexes]  # a slice is no copy
        loaded = block.load(offsets, staging)
        theirs = 0 if loaded is None else np.frombuffer(loaded.gather(), np.uint64).reshape(ours.shape)
        differs = ours != theirs
        if differs.any():
            return int(offsets[np.flatnonzero(differs.any(axis=1))[0]])
    return None


def _device_state(source: Source) -> Iterator[bytes]:
    """What a destination is given of it: of a machine without devices nothing but the end's mark, which comes first."""
    for number, piece in enumerate(source.device_state()):
        if not number and piece[0] == EOF:
            yield piece[:1]
            return
        yield piece


def warm(nbytes: int) -> None:
    """Touch free memory, and give it back: a virtual machine may have to fetch it from its host first."""
    if not nbytes:
        return
    touched: Any = np.frombuffer(private_map(nbytes), np.uint8)
    touched[::_PAGE] = 1
