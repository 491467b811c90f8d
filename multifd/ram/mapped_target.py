"""A mapped-ram file that is received: RAM, devices, uuid.

Thread rule: blocks may be used by all channels at once, each with its own `Staging`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from multifd.pages import Offsets
from multifd.ram.block import TargetBlock
from multifd.ram.file import write
from multifd.ram.file_block import FileBlock
from multifd.ram.mapped_ram import CAPABILITY, HEADER, VERSION, bitmap_bytes
from multifd.ram.part_file import PartFile
from multifd.wire import stream, vmdesc, writer
from multifd.wire.stream import NO_UUID, Machine

_ALIGNMENT = 1 << 20
"""Of a block's pages in the file, so that O_DIRECT readers can use it."""


class _CapturedBlock(FileBlock):
    """A block that is received into a mapped-ram file: a page is what its bit says."""

    def clear(self, offsets: Offsets) -> None:
        """See `TargetBlock`: a slot whose bit is clear may keep its old bytes."""
        self._written.remove(offsets // self._page_size)

    def write_bitmap(self, position: int) -> None:
        """Write the bitmap at the file's byte `position`; where no page was received it stays a hole of zeros.

        Raises:
            RamError: it cannot be written.
        """
        nbytes = bitmap_bytes(self.used_length, self._page_size)
        for first, bits in self._written.pieces():
            write(self._file, bits[: nbytes - first // 8].data, position + first // 8, self._path)


class MappedRamTarget:
    """A mapped-ram file with everything a machine sends: RAM, devices, uuid.

    Args:
        path: the file to make or replace; see `PartFile`.
        prefix: what comes before the stream in the file.

    Raises:
        RamError: it cannot be written there.
    """

    def __init__(self, path: str | os.PathLike[str], prefix: bytes = b"") -> None:
        self._prefix = prefix
        self._file = PartFile(path)
        self._machine = Machine("", 4096, ())
        self._blocks: list[tuple[_CapturedBlock, int]] = []
        self._end = 0
        self._device_state_offset = 0

    def allocate(self, machine: Machine) -> Mapping[str, TargetBlock]:
        """See `Target`. The uuid comes at the end: room for it is left in front of the first block."""
        self._machine = machine
        position = len(self._prefix) + len(_stream_start(dataclasses.replace(machine, uuid=b"\1" * 16)))
        for block in machine.blocks:
            bitmap_end = (
                position
                + len(writer.encode_block(block))
                + HEADER.size
                + bitmap_bytes(block.used_length, machine.page_size)
            )
            pages_offset = -(-bitmap_end // _ALIGNMENT) * _ALIGNMENT
            captured = _CapturedBlock(block, machine.page_size, self._file.fd, pages_offset, self._file.part)
            self._blocks.append((captured, pages_offset))
            position = pages_offset + block.used_length
        self._file.resize(position)
        end_section = writer.encode_eos(machine)
        end_section += writer.encode_ram_next(stream.END, machine.ram_section_id)
        end_section += writer.encode_eos(machine)
        write(self._file.fd, end_section, position, self._file.part)
        self._end = self._device_state_offset = position + len(end_section)
        return {block.idstr: block for block, _ in self._blocks}

    def add_device_state(self, data: bytes) -> None:
        """See `Target`."""
        write(self._file.fd, data, self._end, self._file.part)
        self._end += len(data)

    def flush(self) -> None:
        """See `Target`."""
        self._file.flush()

    def commit(self, uuid: bytes) -> None:
        """See `Target`."""
        machine = self._machine
        if self._end == self._device_state_offset + 1:  # EOF alone: a machine without devices
            self.add_device_state(vmdesc.encode(machine.page_size))
        if machine.uuid == NO_UUID:
            machine = dataclasses.replace(machine, uuid=uuid)
        data, position = self._prefix + _stream_start(machine), 0
        for (captured, pages_offset), block in zip(self._blocks, machine.blocks, strict=True):
            data += writer.encode_block(block)
            bitmap_offset = position + len(data) + HEADER.size
            data += HEADER.pack(VERSION, machine.page_size, bitmap_offset, pages_offset)
            write(self._file.fd, data, position, self._file.part)
            captured.write_bitmap(bitmap_offset)
            data, position = b"", pages_offset + block.used_length
        self._file.commit()

    @property
    def is_committed(self) -> bool:
        """See `Target`."""
        return self._file.is_committed

    def discard(self) -> None:
        """See `Target`."""
        self._file.discard()


def _stream_start(machine: Machine) -> bytes:
    return writer.encode_header(machine, (CAPABILITY,)) + writer.encode_ram_start(machine)
