"""QEMU's mapped-ram file: what a capture writes, and what QEMU 9.0 and later writes and loads.

It is a main stream whose ram section lists, after each block, where in the file the block's pages
lie and a bitmap of those that are not zero; the devices' state follows. Source: migration/ram.c of
QEMU 10.0 (MappedRamHeader, mapped_ram_setup_ramblock), confirmed with files written and loaded by
QEMU 10.0.2.

The bitmap is of the writing host's words; a file of a big-endian host is not understood.

Thread rule: blocks may be used by all channels at once, each with its own `Staging`.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import struct
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multifd import mainstream, vmdesc
from multifd.errors import RamError, StreamError
from multifd.mainstream import NO_UUID, Block, Machine
from multifd.mainstream_reader import MainStreamReader
from multifd.pages import Memory, Offsets, Pages
from multifd.ram import Staging, TargetBlock
from multifd.raw_image import FileBlock, PartFile, open_regular, read_exactly, write

CAPABILITY = "mapped-ram"
_HEADER = struct.Struct(">IQQQ")  # version, page_size, bitmap_offset, pages_offset
_VERSION = 1
_ALIGNMENT = 1 << 20
"""Of a block's pages in the file, so that O_DIRECT readers can use it."""
_WINDOW = 1 << 20  # pages whose bits are looked at together
_PIECE = 1 << 20  # bytes of device state read together
_MAPPED = 16 << 20
"""About how many bytes of a file's map may be resident at once."""

Bits = npt.NDArray[np.uint8]


def is_mapped_ram(path: str | os.PathLike[str]) -> bool:
    """Whether the file starts as a QEMU stream does, which no raw image of RAM can be told by."""
    fd, nbytes = open_regular(Path(path))
    try:
        start = mainstream.MAGIC_BYTES + struct.pack(">I", mainstream.VERSION)
        return nbytes >= len(start) and os.pread(fd, len(start), 0) == start
    finally:
        os.close(fd)


def _bitmap_bytes(used_length: int, page_size: int) -> int:
    return -(-used_length // page_size // 64) * 8


class MappedBlock(FileBlock):
    """A block in a mapped-ram file, to be sent.

    Args:
        block: name and length.
        page_size: bytes.
        fd: stays the caller's.
        pages_offset: where the pages lie in the file.
        bits: uint8, the bitmap as it is in the file; bit i%8 of byte i//8 says that page i is present.
        path: the file, for error messages.
    """

    def __init__(self, block: Block, page_size: int, fd: int, pages_offset: int, bits: Bits, path: Path) -> None:
        super().__init__(block, page_size, fd, pages_offset, path)
        self.page_count = block.used_length // page_size
        self._bits = bits

    def present(self) -> Iterator[npt.NDArray[np.bool_]]:
        """Which pages are present, for a window of pages after the other."""
        for start in range(0, self.page_count, _WINDOW):
            count = min(_WINDOW, self.page_count - start)
            yield np.unpackbits(self._bits[start // 8 :], count=count, bitorder="little").view(np.bool_)

    def count_present(self) -> int:
        """How many pages are not zero."""
        return sum(int(np.count_nonzero(window)) for window in self.present())

    def stray_bits(self) -> int:
        """Bits set behind the last page, of which there are none in a sound file."""
        last = np.unpackbits(self._bits[self.page_count // 8 :], bitorder="little")
        return int(np.count_nonzero(last[self.page_count % 8 :]))

    def portions(self, page_count: int) -> Iterator[Offsets]:
        """See `SourceBlock`: full packets of pages that are present, and of zero pages."""
        for i, window in enumerate(self.present()):
            for chosen in (window, ~window):
                offsets = (np.flatnonzero(chosen) + i * _WINDOW) * self._page_size
                for start in range(0, len(offsets), page_count):
                    yield offsets[start : start + page_count]

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        """See `SourceBlock`; a slot whose bit is clear may hold old bytes and is not read."""
        return super().load(offsets, staging) if self._is_present(offsets) else None

    def _is_present(self, portion: Offsets) -> bool:
        page = int(portion[0]) // self._page_size
        return bool(self._bits[page // 8] >> (page % 8) & 1)


class _PagesForTheKernel(Pages):
    """Pages in a file's map, for system calls alone: this process would die of a file that is cut short."""

    def zero_mask(self) -> None:
        """See `Pages`; the bitmap says so."""


class _VerbatimBlock(MappedBlock):
    """A block whose pages system calls read where the file's page cache has them."""

    def __init__(self, block: Block, page_size: int, fd: int, pages_offset: int, bits: Bits, path: Path) -> None:
        super().__init__(block, page_size, fd, pages_offset, bits, path)
        end = pages_offset + block.used_length
        try:
            self._map = mmap.mmap(fd, end, prot=mmap.PROT_READ)
        except (OSError, ValueError) as e:
            raise RamError(f"{path}: its first {end} bytes cannot be mapped: {e}") from e
        self._memory = Memory(memoryview(self._map)[pages_offset:], page_size)
        self._lent = 0

    def load(self, offsets: Offsets, staging: Staging) -> Pages | None:
        """See `SourceBlock`."""
        if not self._is_present(offsets):
            return None
        self._lent += len(offsets) * self._page_size
        if self._lent >= _MAPPED:
            self._lent = 0
            self._map.madvise(mmap.MADV_DONTNEED)  # another channel that is at it reads the page cache again
        return _PagesForTheKernel(self._memory, offsets, staging.scratch)


class _FileStream(MainStreamReader):
    """The main stream in a file, with seeks over the pages."""

    def __init__(self, fd: int, nbytes: int, path: Path) -> None:
        super().__init__()
        self._fd, self._nbytes, self._path = fd, nbytes, path
        self._is_mapped = False
        self.places: list[tuple[Block, int, int]] = []
        """Of each block: bitmap_offset and pages_offset."""

    def parse(self) -> tuple[Machine, int]:
        """The machine, and where the devices' state begins."""
        while True:
            data = bytearray(self._need)
            if self._position + self._need > self._nbytes:
                raise self._error(f"the file ends at byte {self._nbytes}, in the middle of the stream")
            read_exactly(self._fd, memoryview(data), self._position, self._path)
            self._position += self._need
            try:
                self._need = self._parser.send(bytes(data))
            except StopIteration:
                break
        machine = next(event for event in self._events if isinstance(event, Machine))
        return machine, self._position

    def _capability(self, name: str) -> None:
        if name != CAPABILITY:
            raise self._error(f"capability {name!r}, expected only {CAPABILITY!r}")
        self._is_mapped = True

    def _block_header(self, block: Block) -> Generator[int, bytes, None]:
        if self._has_footers and not self._is_mapped:
            raise self._error(
                f"not a mapped-ram file, its configuration lacks the capability; record with {CAPABILITY!r} on"
            )
        version, page_size, bitmap_offset, pages_offset = _HEADER.unpack((yield _HEADER.size))
        if (version, page_size) != (_VERSION, self.page_size):
            raise self._error(
                f"block {block.idstr!r}: mapped-ram version {version} with pages of {page_size} bytes, "
                f"expected {_VERSION} and {self.page_size}",
                _HEADER.size,
            )
        bitmap_end = bitmap_offset + _bitmap_bytes(block.used_length, page_size)
        end = pages_offset + block.used_length
        if not self._position <= bitmap_offset < bitmap_end <= pages_offset < end <= self._nbytes:
            raise self._error(
                f"block {block.idstr!r}: bitmap at {bitmap_offset} to {bitmap_end}, pages at {pages_offset} to {end}, "
                f"expected in this order from {self._position} on, in a file of {self._nbytes} bytes",
                _HEADER.size,
            )
        if pages_offset % page_size:
            raise self._error(f"block {block.idstr!r}: pages at {pages_offset}, not a multiple of {page_size}")
        self.places.append((block, bitmap_offset, pages_offset))
        self._position = end


class MappedRamSource:
    """A mapped-ram file, to be sent or looked at.

    Args:
        path: a capture, or a file that QEMU wrote.

    Raises:
        RamError: it is not a sound mapped-ram file up to the end of RAM.
    """

    _block_type = MappedBlock

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._fd, self.nbytes = open_regular(self.path)
        try:
            stream = _FileStream(self._fd, self.nbytes, self.path)
            try:
                self.machine, self.device_state_offset = stream.parse()
            except StreamError as e:
                raise RamError(f"{self.path}: {e}") from e
            self.blocks = tuple(self._block(*place) for place in stream.places)
        except BaseException:
            self.close()
            raise

    def _block(self, block: Block, bitmap_offset: int, pages_offset: int) -> MappedBlock:
        bits = np.empty(_bitmap_bytes(block.used_length, self.machine.page_size), np.uint8)
        read_exactly(self._fd, bits.data.cast("B"), bitmap_offset, self.path)
        return self._block_type(block, self.machine.page_size, self._fd, pages_offset, bits, self.path)

    def device_state(self) -> Iterator[bytes]:
        """See `Source`."""
        for start in range(self.device_state_offset, self.nbytes, _PIECE):
            data = bytearray(min(_PIECE, self.nbytes - start))
            read_exactly(self._fd, memoryview(data), start, self.path)
            yield bytes(data)

    def close(self) -> None:
        """See `Source`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class VerbatimSource(MappedRamSource):
    """A mapped-ram file for a method whose payload is the pages as they are.

    Its pages are for system calls alone: one that meets a file that was cut short fails, a process that
    reads it itself is killed. So nobody looks for zero pages among those that the bitmap has.
    """

    _block_type = _VerbatimBlock


class _CapturedBlock(FileBlock):
    """A block that is received into a mapped-ram file: a page is what its bit says."""

    def clear(self, offsets: Offsets) -> None:
        self._written[offsets // self._page_size] = False

    def bitmap(self) -> bytes:
        bits = np.packbits(self._written, bitorder="little").tobytes()
        return bits.ljust(_bitmap_bytes(self.used_length, self._page_size), b"\0")


class MappedRamTarget:
    """A mapped-ram file with everything a machine sends: RAM, devices, uuid.

    Args:
        path: the file to make or replace; see `PartFile`.

    Raises:
        RamError: it cannot be written there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = PartFile(path)
        self._machine = Machine("", 4096, ())
        self._blocks: list[tuple[_CapturedBlock, int]] = []
        self._end = 0
        self._device_state_offset = 0

    def allocate(self, machine: Machine) -> Mapping[str, TargetBlock]:
        """See `Target`. The uuid comes at the end: room for it is left in front of the first block."""
        self._machine = machine
        position = len(_stream_start(dataclasses.replace(machine, uuid=b"\1" * 16)))
        for block in machine.blocks:
            bitmap_end = (
                position
                + len(mainstream.encode_block(block))
                + _HEADER.size
                + _bitmap_bytes(block.used_length, machine.page_size)
            )
            pages_offset = -(-bitmap_end // _ALIGNMENT) * _ALIGNMENT
            captured = _CapturedBlock(block, machine.page_size, self._file.fd, pages_offset, self._file.part)
            self._blocks.append((captured, pages_offset))
            position = pages_offset + block.used_length
        self._file.resize(position)
        end_section = mainstream.encode_eos(machine)
        end_section += mainstream.encode_ram_next(mainstream.END, machine.ram_section_id)
        end_section += mainstream.encode_eos(machine)
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
        data, position = _stream_start(machine), 0
        for (captured, pages_offset), block in zip(self._blocks, machine.blocks, strict=True):
            data += mainstream.encode_block(block)
            bitmap_offset = position + len(data) + _HEADER.size
            data += _HEADER.pack(_VERSION, machine.page_size, bitmap_offset, pages_offset) + captured.bitmap()
            write(self._file.fd, data, position, self._file.part)
            data, position = b"", pages_offset + block.used_length
        self._file.commit()

    def discard(self) -> None:
        """See `Target`."""
        self._file.discard()


def _stream_start(machine: Machine) -> bytes:
    return mainstream.encode_header(machine, (CAPABILITY,)) + mainstream.encode_ram_start(machine)
