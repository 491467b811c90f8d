"""A plain main stream that is received into a file: pages one after the other, as a source without multifd sends them.

A QEMU takes it by ``-incoming "exec:cat FILE"``, libvirt behind its header as a save image.

Thread rule: blocks may be used by all channels at once, each with its own `Staging`.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multifd.errors import RamError
from multifd.pages import Offsets, Pages
from multifd.pump.extent import Extent
from multifd.ram.block import Staging, TargetBlock
from multifd.ram.file import OpenFile, read_exactly, write
from multifd.ram.part_file import PartFile
from multifd.wire import stream, vmdesc, writer
from multifd.wire.stream import Block, Machine

_ZEROS_AT_ONCE = 1 << 16  # zero pages encoded together
_PIECE = 1 << 20  # bytes of the devices' state copied together


class _Log:
    """Where the next record goes: records are appended, a page that comes again is written over its first."""

    def __init__(self, file: PartFile) -> None:
        self.file = file
        self.end = 0
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> int:
        """Room for `nbytes`; its place in the file."""
        with self._lock:
            self.end += nbytes
            return self.end - nbytes


class _LoggedBlock:
    """A block whose pages are records in the file."""

    def __init__(self, block: Block, page_size: int, log: _Log) -> None:
        self.idstr, self.used_length = block.idstr, block.used_length
        self._page_size, self._log = page_size, log
        self._name = writer.name_bytes(self.idstr)
        self._lock = threading.Lock()  # of _positions
        try:
            # Where each page is in the file; 0: nowhere, it is zero. Touched only where pages come.
            self._positions = np.zeros(block.used_length // page_size, np.int64)
        except MemoryError:
            raise RamError(f"block {block.idstr!r} of {block.used_length} bytes: no memory for it") from None

    def extent(self) -> Extent | None:
        """See `TargetBlock`: a record has a word before its page."""
        return None

    def written(self, offsets: Offsets, is_zero: npt.NDArray[np.bool_]) -> None:
        """See `TargetBlock`: the pump writes nothing here."""

    def lend(self, offsets: Offsets) -> list[memoryview] | None:
        """See `TargetBlock`: a record has a word before its page, so pages are staged."""
        return None

    def place(self, offsets: Offsets, staging: Staging) -> Pages:
        """See `TargetBlock`."""
        return staging.pages_by_offset(offsets)

    def store(self, offsets: Offsets, staging: Staging) -> None:
        """See `TargetBlock`."""
        page_size, file = self._page_size, self._log.file
        offsets = np.sort(offsets)
        places, first_new, new = self._places(offsets)
        pages = staging.data
        if len(new):
            # The first record names the block: those before it in the file may be another channel's.
            records = np.empty(len(new), [("word", ">u8"), ("page", np.uint8, page_size)])
            records["word"] = offsets[new] | (stream.PAGE | stream.CONTINUE)
            records["page"] = pages.array[new].reshape(len(new), page_size)
            first = (int(offsets[new[0]]) | stream.PAGE).to_bytes(8, "big") + self._name
            write(file.fd, first + records.tobytes()[8:], first_new, file.part)
        for i in np.setdiff1d(np.arange(len(offsets)), new).tolist():
            write(file.fd, pages.view[i * page_size : (i + 1) * page_size], int(places[i]), file.part)

    def _places(self, offsets: Offsets) -> tuple[Offsets, int, Offsets]:
        """Where each page goes; where the records of new pages begin; which are new, as indexes.

        A page has one record, whatever comes of it on which channel: the last record in the file would win.
        """
        indexes = offsets // self._page_size
        with self._lock:
            new = (self._positions[indexes] == 0).nonzero()[0]
            start = 0
            if len(new):
                record, head = 8 + self._page_size, 8 + len(self._name)
                start = self._log.take(len(new) * record + len(self._name))
                self._positions[indexes[new]] = start + head + np.arange(len(new), dtype=np.int64) * record
            return self._positions[indexes], start, new

    def clear(self, offsets: Offsets) -> None:
        """See `TargetBlock`; pages that never came are zero already."""
        positions = self._positions[offsets // self._page_size]
        for position in positions[positions != 0].tolist():
            write(self._log.file.fd, bytes(self._page_size), position, self._log.file.part)

    def write_zero_pages(self) -> None:
        """Append the pages that never came: a destination may hold other bytes there, such as its firmware."""
        zero = np.flatnonzero(self._positions == 0) * self._page_size
        for start in range(0, len(zero), _ZEROS_AT_ONCE):
            data = writer.encode_zero_pages(self.idstr, zero[start : start + _ZEROS_AT_ONCE])
            write(self._log.file.fd, data, self._log.take(len(data)), self._log.file.part)


class PlainTarget:
    """A plain stream with everything a machine sends, as from a source without multifd.

    Args:
        path: the file to make or replace; see `PartFile`.
        prefix: what comes before the stream in the file.

    Raises:
        RamError: it cannot be written there.
    """

    def __init__(self, path: str | os.PathLike[str], prefix: bytes = b"") -> None:
        self._prefix = prefix
        self._file = PartFile(path)
        self._log = _Log(self._file)
        self._machine = Machine("", 4096, ())
        self._blocks: list[_LoggedBlock] = []
        # Records may come as long as the channels run, so the devices' state waits elsewhere.
        self._devices, self._devices_nbytes = self._open_devices(), 0

    def allocate(self, machine: Machine) -> Mapping[str, TargetBlock]:
        """See `Target`."""
        # A uuid that only the channels told is not put into the configuration: nothing in front of the records moves,
        # and a destination has the domain's own.
        self._machine = machine
        data = self._prefix + writer.encode_header(machine) + writer.encode_ram_start(machine)
        data += b"".join(map(writer.encode_block, machine.blocks))
        data += writer.encode_eos(machine) + writer.encode_ram_next(stream.PART, machine.ram_section_id)
        write(self._file.fd, data, self._log.take(len(data)), self._file.part)
        self._blocks = [_LoggedBlock(block, machine.page_size, self._log) for block in machine.blocks]
        return {block.idstr: block for block in self._blocks}

    def add_device_state(self, data: bytes) -> None:
        """See `Target`."""
        write(self._devices, data, self._devices_nbytes, self._devices.path)
        self._devices_nbytes += len(data)

    def flush(self) -> None:
        """See `Target`."""
        self._file.flush()

    @property
    def is_committed(self) -> bool:
        """See `Target`."""
        return self._file.is_committed

    def commit(self, uuid: bytes) -> None:
        """See `Target`."""
        machine, file = self._machine, self._file
        for block in self._blocks:
            block.write_zero_pages()
        data = writer.encode_eos(machine) + writer.encode_ram_next(stream.END, machine.ram_section_id)
        data += writer.encode_eos(machine)
        write(file.fd, data, self._log.take(len(data)), file.part)
        for start in range(0, self._devices_nbytes, _PIECE):
            state = bytearray(min(_PIECE, self._devices_nbytes - start))
            read_exactly(self._devices, memoryview(state), start, self._devices.path)
            write(file.fd, state, self._log.take(len(state)), file.part)
        if self._devices_nbytes == 1:  # EOF alone: a machine without devices
            piece = vmdesc.encode(machine.page_size)
            write(file.fd, piece, self._log.take(len(piece)), file.part)
        file.commit()

    def discard(self) -> None:
        """See `Target`."""
        self._devices.close()
        self._file.discard()

    def _open_devices(self) -> OpenFile:
        """A file without a name, beside the other."""
        try:
            with tempfile.TemporaryFile(dir=self._file.path.parent) as file:
                return OpenFile(os.dup(file.fileno()), Path(f"{self._file.part} (its devices' state)"))
        except OSError as e:
            self._file.discard()
            raise RamError(f"{self._file.path}: no file can be made beside it: {e.strerror or e}") from e
