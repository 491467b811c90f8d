"""What is in a stored machine, and whether it is sound."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from multifd.pages import Geometry
from multifd.ram import digest
from multifd.ram.block import Staging
from multifd.ram.digest import Verdict
from multifd.ram.image import is_stored, open_source, open_stored
from multifd.ram.raw import RawImageSource
from multifd.ram.sidecar import path_beside
from multifd.ram.span_digests import Progress
from multifd.ram.stored import StoredBlock, StoredSource
from multifd.wire import vmdesc
from multifd.wire.dialect import release_of
from multifd.wire.stream import NO_UUID

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
    """mapped-ram, stream or raw, as `multifd.ram.image` has them."""
    domain: str | None = None
    """The name in the domain's XML, of a libvirt save image."""
    was_running: bool | None = None
    """Of a libvirt save image: whether ``virsh restore`` lets the guest run."""
    xml: str | None = None
    """The domain's, of a libvirt save image."""
    disk_bytes: int = field(default=0, compare=False)
    """That the file takes on its disk."""
    unused_bytes: int = field(default=0, compare=False)
    """About as many of them are of zero pages and gaps, whose holes a copy has filled: ``fallocate --dig-holes`` frees
    them."""
    checked: Verdict | None = field(default=None, compare=False)
    """What its digests say, of one that was verified."""

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
        blocks=tuple(block_info(block) for block in source.blocks),
        device_state_bytes=source.nbytes - source.device_state_offset,
        devices=tuple(vmdesc.devices(description)),
        format=source.form,
        domain=header.domain if header else None,
        was_running=header.was_running if header else None,
        xml=header.xml if header else None,
        disk_bytes=source.disk_bytes,
        unused_bytes=max(source.disk_bytes - source.needed_bytes(), 0),
    )


def block_info(block: StoredBlock) -> BlockInfo:
    """Name, length and how many pages are not zero."""
    present = block.count_present()
    return BlockInfo(block.idstr, block.used_length, present, block.page_count - present)


def verify(path: str | os.PathLike[str], digest_mode: str = "auto", on_progress: Progress | None = None) -> CaptureInfo:
    """Check a capture: structure, bitmaps, lengths, the end, and every byte if there are digests beside it.

    No format has a checksum: without digests, bytes inside a page, or in the middle of the devices' state, are not
    checked.

    Args:
        path: a file that `multifd.ram.image.open_stored` takes, or a raw image that has digests.
        digest_mode: one of `multifd.ram.digest.MODES`.
        on_progress: called with the bytes that are compared and all.

    Returns:
        What is in it, with what the digests say.

    Raises:
        RamError: what is wrong first.
    """
    if _has_digests_alone(path):
        with contextlib.closing(RawImageSource(path)) as image:
            verdict = digest.verify(image, digest_mode, on_progress)
            return replace(_info_of_image(image), checked=verdict)
    with contextlib.closing(open_stored(path)) as source:
        source.check()
        verdict = digest.verify(source, digest_mode, on_progress)
        verdict.log()
        return replace(_info(source), checked=verdict)


def digest_file(path: str | os.PathLike[str], on_progress: Progress | None = None) -> Path:
    """Write the digests of a file with RAM beside it, for `verify`, `multifd.send` and ``sha256sum -c``.

    Args:
        path: a capture, or anything else that `multifd.ram.image.open_source` takes.
        on_progress: called with the bytes that are digested and all.

    Returns:
        The file with the digests, durable and under its name.

    Raises:
        RamError: the file cannot be read or changes meanwhile, or its digests cannot be written.
    """
    with contextlib.closing(open_source(path)) as source:
        return digest.make(source, on_progress)


def _has_digests_alone(path: str | os.PathLike[str]) -> bool:
    """Whether nothing but digests can tell if it is sound: a raw image has no mark."""
    path = Path(path)
    return os.path.lexists(path_beside(path)) and not is_stored(path)


def _info_of_image(image: RawImageSource) -> CaptureInfo:
    machine, (block,) = image.machine, image.blocks
    geometry = Geometry.of(machine.page_size)
    staging, present = Staging(geometry), 0
    for offsets in block.portions(geometry.page_count):
        if (pages := block.load(offsets, staging)) is not None:
            zero = pages.zero_mask()
            present += len(offsets) - (0 if zero is None else int(np.count_nonzero(zero)))
    found = BlockInfo(block.idstr, block.used_length, present, block.used_length // machine.page_size - present)
    return CaptureInfo(machine.name, None, machine.page_size, None, (found,), 0, (), format="raw")
