"""What is in a stored machine, whether it is sound, and a block of it as a raw image."""

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
from multifd.ram.image import open_stored
from multifd.ram.part_file import PartFile
from multifd.ram.stored import StoredBlock, StoredSource
from multifd.wire import vmdesc
from multifd.wire.dialect import release_of
from multifd.wire.stream import NO_UUID, Block

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
    format: str = "mapped-ram"
    """mapped-ram or stream, as `multifd.ram.image` has them."""
    domain: str | None = None
    """The name in the domain's XML, of a libvirt save image."""
    was_running: bool | None = None
    """Of a libvirt save image: whether ``virsh restore`` lets the guest run."""
    xml: str | None = None
    """The domain's, of a libvirt save image."""

    def as_dict(self) -> dict[str, Any]:
        """A dict of plain values, in the order of the fields."""
        return asdict(self)


def info(path: str | os.PathLike[str]) -> CaptureInfo:
    """What is in a capture.

    Args:
        path: a file that `multifd.ram.image.open_stored` takes.

    Raises:
        RamError: it is none, or is not sound up to the end of RAM.
    """
    with contextlib.closing(open_stored(path)) as source:
        return _info(source)


def _info(source: StoredSource) -> CaptureInfo:
    machine, header = source.machine, source.libvirt
    description = vmdesc.find(source.end_of_device_state()) or {}
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
        format=source.form,
        domain=header.domain if header else None,
        was_running=header.was_running if header else None,
        xml=header.xml if header else None,
    )


def _block_info(block: StoredBlock) -> BlockInfo:
    present = block.count_present()
    return BlockInfo(block.idstr, block.used_length, present, block.page_count - present)


def verify(path: str | os.PathLike[str]) -> CaptureInfo:
    """Check a capture: structure, bitmaps, lengths, the end.

    The format has no checksum: bytes inside a page, or in the middle of the devices' state, are not checked.

    Args:
        path: a file that `multifd.ram.image.open_stored` takes.

    Returns:
        What is in it.

    Raises:
        RamError: what is wrong first.
    """
    with contextlib.closing(open_stored(path)) as source:
        source.check()
        return _info(source)


def export(path: str | os.PathLike[str], out: str | os.PathLike[str], idstr: str | None = None) -> BlockInfo:
    """Write a block as a raw image: byte X of the file is byte X of the block; zero pages are holes.

    Args:
        path: a file that `multifd.ram.image.open_stored` takes.
        out: the file to make or replace; it appears only when complete.
        idstr: the block, such as ``pc.ram``; None if the capture has only one.

    Raises:
        RamError: there is no such block, or a file cannot be read or written.
    """
    with contextlib.closing(open_stored(path)) as source:
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
