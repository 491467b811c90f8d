"""What is in a capture, whether it is sound, and a block of it as a raw image."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from multifd.errors import RamError
from multifd.pages import Geometry
from multifd.ram.block import Staging
from multifd.ram.file_block import FileBlock
from multifd.ram.mapped_source import MappedBlock, MappedRamSource
from multifd.ram.part_file import PartFile
from multifd.wire import vmdesc
from multifd.wire.dialect import release_of
from multifd.wire.stream import NO_UUID, Block

_MAX_VMDESC = 16 << 20
"""Bytes at the end of the devices' state in which the vmdesc is looked for."""
_VMDESC_CONFIGURATION = (8, 2)  # the first release whose vmdesc has the key configuration


@dataclass(frozen=True)
class BlockInfo:
    """A RAM block of a capture."""

    idstr: str
    used_length: int
    """Bytes."""
    present_pages: int
    zero_pages: int


@dataclass(frozen=True)
class CaptureInfo:
    """What a capture says of itself; `as_dict` is the command line's JSON."""

    machine: str
    """The machine type; empty for types up to 2.3, which do not name themselves."""
    qemu_at_least: str | None
    """The source's QEMU release is this or later, by machine type and vmdesc; None if neither says."""
    page_size: int
    uuid: str | None
    """The guest's, None if it has none."""
    blocks: tuple[BlockInfo, ...]
    device_state_bytes: int
    devices: tuple[str, ...]
    """Name and instance, in the order of their state; empty without a vmdesc."""

    def as_dict(self) -> dict[str, Any]:
        """A dict of plain values, in the order of the fields."""
        return asdict(self)


def info(path: str | os.PathLike[str]) -> CaptureInfo:
    """What is in a capture.

    Args:
        path: a mapped-ram file, multifd's or QEMU's.

    Raises:
        RamError: it is none, or is not sound up to the end of RAM.
    """
    with contextlib.closing(MappedRamSource(path)) as source:
        return _info(source)


def _info(source: MappedRamSource) -> CaptureInfo:
    machine = source.machine
    description = vmdesc.find(_last_bytes(source)) or {}
    evidence = [release_of(machine.name), _VMDESC_CONFIGURATION if "configuration" in description else None]
    release = max((r for r in evidence if r), default=None)
    return CaptureInfo(
        machine=machine.name,
        qemu_at_least=".".join(map(str, release)) if release else None,
        page_size=machine.page_size,
        uuid=None if machine.uuid == NO_UUID else str(UUID(bytes=machine.uuid)),
        blocks=tuple(_block_info(block) for block in source.blocks),
        device_state_bytes=source.nbytes - source.device_state_offset,
        devices=tuple(vmdesc.devices(description)),
    )


def _block_info(block: MappedBlock) -> BlockInfo:
    present = block.count_present()
    return BlockInfo(block.idstr, block.used_length, present, block.page_count - present)


def _last_bytes(source: MappedRamSource) -> bytes:
    return source.end_of_device_state(_MAX_VMDESC)


def verify(path: str | os.PathLike[str]) -> CaptureInfo:
    """Check a capture: structure, bitmaps, lengths, the end.

    The format has no checksum: bytes inside a page, or in the middle of the devices' state, are not checked.

    Args:
        path: a mapped-ram file, multifd's or QEMU's.

    Returns:
        What is in it.

    Raises:
        RamError: what is wrong first.
    """
    with contextlib.closing(MappedRamSource(path)) as source:
        for block in source.blocks:
            if stray := block.stray_bits():
                raise RamError(f"{path}: block {block.idstr!r}: {stray} bits set behind the last page in its bitmap")
        last = _last_bytes(source)
        if not vmdesc.may_end(last, has_footers=bool(source.machine.name)):
            raise RamError(
                f"{path}: the devices' state, {source.nbytes - source.device_state_offset} bytes from "
                f"{source.device_state_offset} on, does not end as a stream does: it was cut short or damaged"
            )
        return _info(source)


def export(path: str | os.PathLike[str], out: str | os.PathLike[str], idstr: str | None = None) -> BlockInfo:
    """Write a block as a raw image: byte X of the file is byte X of the block; zero pages are holes.

    Args:
        path: a mapped-ram file, multifd's or QEMU's.
        out: the file to make or replace; it appears only when complete.
        idstr: the block, such as ``pc.ram``; None if the capture has only one.

    Raises:
        RamError: there is no such block, or a file cannot be read or written.
    """
    with contextlib.closing(MappedRamSource(path)) as source:
        names = [block.idstr for block in source.blocks]
        if idstr is None and len(names) > 1:
            raise RamError(f"{path}: has several blocks, name one with --block: {', '.join(names)}")
        block = next((b for b in source.blocks if idstr in (None, b.idstr)), None)
        if block is None:
            raise RamError(f"{path}: no block {idstr!r}, there are: {', '.join(names)}")
        target = PartFile(out)
        try:
            target.resize(block.used_length)
            geometry = Geometry.of(source.machine.page_size)
            copy = FileBlock(Block(block.idstr, block.used_length), geometry.page_size, target.fd, 0, target.part)
            staging = Staging(geometry)
            for offsets in block.portions(geometry.page_count):
                if block.load(offsets, staging) is not None:
                    copy.store(offsets, staging)
            target.commit()
        finally:
            target.discard()
        return _block_info(block)
