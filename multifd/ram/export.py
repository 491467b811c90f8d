"""RAM out of a stored machine, for debuggers and forensics: a block as it is, or guest-physical memory.

Thread rule: one thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from multifd.errors import RamError, UsageError
from multifd.pages import Geometry
from multifd.ram import digest, elf, lime, physical
from multifd.ram.block import Staging
from multifd.ram.capture import BlockInfo, block_info
from multifd.ram.file import write
from multifd.ram.file_block import FileBlock
from multifd.ram.image import open_stored
from multifd.ram.part_file import PartFile
from multifd.ram.physical import Extent
from multifd.ram.span_digests import Progress
from multifd.ram.stored import StoredBlock, StoredSource
from multifd.ram.x86_notes import Note, cpu_notes, cpu_sections
from multifd.wire import vmdesc, vmstate
from multifd.wire.stream import Block

FORMATS = ("raw", "physical", "elf", "lime")
_MAX_STATE = 64 << 20
"""Bytes of the devices' state in which CPUs and the clock chip are looked for; they come early."""
_MAX_VMCOREINFO = 1 << 16
"""Bytes; Linux keeps it in a page (VMCOREINFO_BYTES, include/linux/vmcore_info.h)."""
_VMCOREINFO = b"VMCOREINFO"


@dataclass(frozen=True)
class Exported:
    """What was written; `as_dict` is the command line's JSON."""

    format: str
    blocks: tuple[BlockInfo, ...]
    """Those that are in the file."""
    extents: tuple[Extent, ...]
    """Where they are in guest-physical memory; empty if that does not show."""
    cpus: int
    """How many have notes, of an ELF core."""
    has_vmcoreinfo: bool
    """Of an ELF core: the guest's kernel left its description in RAM."""
    remarks: tuple[str, ...]
    """What to know about it, in words."""

    def as_dict(self) -> dict[str, Any]:
        """A dict of plain values, in the order of the fields."""
        return asdict(self)


@dataclass(frozen=True)
class _State:
    """What the devices' state says."""

    data: bytes
    description: dict[str, Any]

    def cmos(self) -> bytes | None:
        for section in vmstate.sections(self.data, self.description, "mc146818rtc"):
            if (field := section.fields.get("cmos_data")) is not None:
                return field.data
        return None


def export(
    path: str | os.PathLike[str], out: str | os.PathLike[str], idstr: str | None = None, *,
    format: str = "raw", below_4g: int | None = None, digest_mode: str = "auto",
    on_progress: Progress | None = None, go_on: Callable[[], object] = lambda: None,
) -> Exported:  # fmt: skip
    """Write RAM of a stored machine to a file of another format; zero pages are holes.

    ========  ==========================================================================================
    raw       a block: byte X of the file is byte X of the block, which may not be guest-physical address X
    physical  byte X of the file is guest-physical address X
    elf       an ELF core: memory at physical addresses, CPUs' registers, the kernel's VMCOREINFO
    lime      LiME: ranges of physical memory
    ========  ==========================================================================================

    Args:
        path: a file that `multifd.ram.image.open_stored` takes.
        out: the file to make or replace; it appears only when complete.
        idstr: of raw: the block, such as ``pc.ram``; None if there is only one.
        format: one of `FORMATS`.
        below_4g: bytes of RAM below the PCI hole, if the machine's are known better than here.
        digest_mode: whether to compare digests first, one of `multifd.ram.digest.MODES`.
        on_progress: called with the bytes that are compared and all.
        go_on: called between portions of a few hundred pages; what it raises ends this, and nothing is left.

    Raises:
        UsageError: there is no such format, or the block is named for another one than raw.
        RamError: there is no such block, where RAM lies does not show, or a file cannot be read or written.
    """
    if format not in FORMATS:
        raise UsageError(f"export format {format!r}, expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if idstr is not None and format != "raw":
        raise UsageError(f"format {format} has all RAM: a block is named for raw only")
    with contextlib.closing(open_stored(path)) as source:
        source.check()
        digest.check(source, digest_mode, on_progress).log()
        state = _read_state(source)
        if format == "raw":
            return _export_raw(source, out, idstr, state, below_4g, go_on)
        layout = physical.layout(source.machine, state.cmos(), below_4g=below_4g)
        extents, remarks = layout.extents, [f"RAM below 4 GiB {layout.reason}"]
        if layout.not_placed:
            remarks.append(f"not in it, their addresses do not show: {', '.join(layout.not_placed)}")
        cpus, vmcoreinfo = 0, None
        if format == "physical":
            pieces = [(b"", e.address) for e in extents]
        elif format == "lime":
            headers, at = lime.encode(extents), 0
            pieces = []
            for header, extent in zip(headers, extents, strict=True):
                pieces.append((header, at + len(header)))
                at += len(header) + extent.nbytes
        else:
            notes, cpus, vmcoreinfo = _notes(source, state, extents, remarks, go_on)
            extents = tuple(sorted(extents + layout.firmware, key=lambda extent: extent.address))
            start, places = elf.encode(extents, notes)
            pieces = [(start if i == 0 else b"", place) for i, place in enumerate(places)]
        _write(source, out, extents, pieces, go_on)
        used = {e.idstr for e in extents}
        blocks = tuple(block_info(b) for b in source.blocks if b.idstr in used)
        return Exported(format, blocks, extents, cpus, vmcoreinfo is not None, tuple(remarks))


def _export_raw(
    source: StoredSource, out: str | os.PathLike[str], idstr: str | None, state: _State, below_4g: int | None,
    go_on: Callable[[], object],
) -> Exported:  # fmt: skip
    names = [block.idstr for block in source.blocks]
    if idstr is None and len(names) > 1:
        raise RamError(f"{source.path}: has several blocks, name one: {', '.join(names)}")
    block = next((b for b in source.blocks if idstr in (None, b.idstr)), None)
    if block is None:
        raise RamError(f"{source.path}: no block {idstr!r}, there are: {', '.join(names)}")
    extents: tuple[Extent, ...] = ()
    with contextlib.suppress(RamError):  # a machine that is not known: then nothing is said about addresses
        layout = physical.layout(source.machine, state.cmos(), below_4g=below_4g)
        extents = tuple(e for e in layout.extents if e.idstr == block.idstr)
    moved = [e for e in extents if e.offset != e.address]
    remarks = tuple(
        f"byte {e.offset:#x} of the block is at guest-physical {e.address:#x}: it is not guest-physical memory, "
        "which format physical has"
        for e in moved
    )
    _write(source, out, [Extent(block.idstr, 0, 0, block.used_length)], [(b"", 0)], go_on)
    return Exported("raw", (block_info(block),), extents, 0, False, remarks)


def _read_state(source: StoredSource) -> _State:
    data = bytearray()
    for piece in source.device_state():
        data += piece[: _MAX_STATE - len(data)]
        if len(data) >= _MAX_STATE:
            break
    return _State(bytes(data), vmdesc.find(source.end_of_device_state()) or {})


def _notes(
    source: StoredSource, state: _State, extents: Sequence[Extent], remarks: list[str], go_on: Callable[[], object]
) -> tuple[list[Note], int, bytes | None]:
    """Notes, the number of CPUs that have some, and the kernel's description."""
    listed = [d for d in vmdesc.devices(state.description) if d.split(" ")[0] == "cpu"]
    cpus = cpu_sections(state.data, state.description)
    if len(cpus) < max(len(listed), 1):
        remarks.append(
            f"registers of {len(cpus)} of {len(listed)} CPUs: the others' state does not read as an x86-64 CPU's"
            if listed
            else "no registers: the devices' state does not tell its CPUs"
        )
    notes = list(cpu_notes(cpus))
    used = {e.idstr for e in extents}
    ram = (block for block in source.blocks if block.idstr in used)
    vmcoreinfo = next(filter(None, (_find_vmcoreinfo(source, block, go_on) for block in ram)), None)
    if vmcoreinfo is None:
        remarks.append("no VMCOREINFO in RAM: the guest has no Linux kernel that left one, so crash and drgn need more")
    else:
        notes.append(Note(_VMCOREINFO, 0, vmcoreinfo))
    return notes, len(cpus), vmcoreinfo


def _find_vmcoreinfo(source: StoredSource, block: StoredBlock, go_on: Callable[[], object]) -> bytes | None:
    """The text of Linux's own note, which stands at the start of a page (kernel/vmcore_info.c, vmcoreinfo_note)."""
    geometry = Geometry.of(source.machine.page_size)
    staging = Staging(geometry)
    page_size = geometry.page_size
    mark = np.frombuffer((len(_VMCOREINFO) + 1).to_bytes(4, "little"), np.uint32)[0]
    head = 12 + (len(_VMCOREINFO) + 1 + 3) // 4 * 4
    for offsets in block.portions(geometry.page_count):
        go_on()
        if block.load(offsets, staging) is None:
            continue
        pages = staging.data.array.reshape(-1, page_size)[: len(offsets)]
        for i in np.flatnonzero(pages[:, :4].copy().view(np.uint32)[:, 0] == mark).tolist():
            page = bytes(pages[i])
            nbytes, kind = int.from_bytes(page[4:8], "little"), int.from_bytes(page[8:12], "little")
            text = page[head : head + nbytes]
            if kind == 0 and page[12 : 12 + len(_VMCOREINFO)] == _VMCOREINFO and text.startswith(b"OSRELEASE="):
                return text.rstrip(b"\0")
    return None


def _write(
    source: StoredSource, out: str | os.PathLike[str], extents: Sequence[Extent], pieces: Sequence[tuple[bytes, int]],
    go_on: Callable[[], object],
) -> None:  # fmt: skip
    """The file: of each extent bytes that come right before its place, and the place of its memory."""
    target = PartFile(out)
    try:
        target.resize(max(place + e.nbytes for e, (_, place) in zip(extents, pieces, strict=True)))
        geometry = Geometry.of(source.machine.page_size)
        staging = Staging(geometry)
        for extent, (header, place) in zip(extents, pieces, strict=True):
            write(target.fd, header, place - len(header), target.part)
            block = next(b for b in source.blocks if b.idstr == extent.idstr)
            copy = FileBlock(Block(extent.idstr, extent.nbytes), geometry.page_size, target.fd, place, target.part)
            for offsets in block.portions(geometry.page_count):
                go_on()
                inside = offsets[(offsets >= extent.offset) & (offsets < extent.offset + extent.nbytes)]
                if len(inside) and block.load(inside, staging) is not None:
                    copy.store(inside - extent.offset, staging)
        target.commit()
    finally:
        target.discard()
