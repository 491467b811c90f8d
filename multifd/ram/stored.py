"""A main stream in a file that is sent or looked at: what a mapped-ram file and a plain stream have in common.

Thread rule: blocks may be used by all channels at once, each with its own `Staging`; the rest is for one thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from multifd.errors import RamError, StreamError
from multifd.pages import Offsets
from multifd.ram.block import SourceBlock
from multifd.ram.file import open_regular, read_exactly
from multifd.ram.file_stream import FileStream, StreamLayout
from multifd.ram.libvirt import SaveHeader
from multifd.ram.span import Span, cut
from multifd.wire import stream, vmdesc

_PIECE = 1 << 20  # bytes of device state read together
_MAX_END = 16 << 20
"""Bytes at the end of the devices' state in which the vmdesc is looked for."""
Present = npt.NDArray[np.bool_]


class StoredBlock(SourceBlock, Protocol):
    """A block in a file that knows which of its pages are zero."""

    page_count: int

    def present(self) -> Iterator[Present]:
        """Which pages are not zero, for a window of pages after the other."""
        ...

    def count_present(self) -> int:
        """How many pages are not zero."""
        ...

    def check(self) -> None:
        """Raise `RamError` for what is not sound in it."""
        ...


def portions(windows: Iterator[Present], page_size: int, page_count: int) -> Iterator[Offsets]:
    """Full packets of pages that are present, and of zero pages: see `SourceBlock.portions`."""
    start = 0
    for window in windows:
        for chosen in (window, ~window):
            offsets = (np.flatnonzero(chosen) + start) * page_size
            for at in range(0, len(offsets), page_count):
                yield offsets[at : at + page_count]
        start += len(window)


class StoredSource:
    """A main stream in a file.

    Args:
        path: the file.
        start: the stream's first byte in it.

    Raises:
        RamError: it is not sound up to the end of RAM.
    """

    form: ClassVar[str] = ""
    """The format's name, as `multifd.ram.image` has it."""
    blocks: Sequence[StoredBlock]
    libvirt: SaveHeader | None = None
    """What libvirt put in front of the stream, if it did."""

    def __init__(self, path: str | os.PathLike[str], start: int = 0) -> None:
        self.path = Path(path)
        self.blocks = ()
        self.file, self.nbytes = open_regular(self.path)
        try:
            try:
                layout = FileStream(self.file, self.nbytes, self.path, start).parse()
            except StreamError as e:
                raise RamError(f"{self.path}: {e}") from e
            self.machine, self.device_state_offset = layout.machine, layout.device_state_offset
            self.blocks = self._open_blocks(layout)
        except BaseException:
            self.close()
            raise

    def _open_blocks(self, layout: StreamLayout) -> Sequence[StoredBlock]:
        raise NotImplementedError

    def device_state(self) -> Iterator[bytes]:
        """See `Source`. A state without a vmdesc gets one: a QEMU waits for it, and so does `receive`."""
        for start in range(self.device_state_offset, self.nbytes, _PIECE):
            yield self._read(start, min(_PIECE, self.nbytes - start))
        end = self.end_of_device_state()
        if not vmdesc.ends(end) and self._may_end(end):
            yield vmdesc.encode(self.machine.page_size)

    @property
    def disk_bytes(self) -> int:
        """What the file takes on its disk (st_blocks, in units of 512 bytes: stat(2))."""
        with self.file.use() as fd:
            return os.fstat(fd).st_blocks * 512

    def needed_bytes(self) -> int:
        """How many of the file's bytes cannot be a hole."""
        return self.nbytes

    def spans(self, step: int) -> Sequence[Span]:
        """All of the file in order, in pieces of at most `step` bytes, for digests."""
        return (*self._spans_of_ram(step), *cut(self.device_state_offset, self.nbytes, step, "devices"))

    def _spans_of_ram(self, step: int) -> Iterator[Span]:
        """What comes before the devices' state."""
        raise NotImplementedError

    def end_of_device_state(self) -> bytes:
        """Its last bytes, as many as can hold a vmdesc."""
        start = max(self.device_state_offset, self.nbytes - _MAX_END)
        return self._read(start, self.nbytes - start)

    def check(self) -> None:
        """Check all that can be without a checksum: blocks, and that the devices' state is not cut short.

        Raises:
            RamError: what is wrong first.
        """
        for block in self.blocks:
            block.check()
        if not self._may_end(self.end_of_device_state()):
            raise RamError(
                f"{self.path}: the devices' state, {self.nbytes - self.device_state_offset} bytes from "
                f"{self.device_state_offset} on, does not end as a stream does: it was cut short or damaged"
            )

    def _may_end(self, end: bytes) -> bool:
        return vmdesc.may_end(end, has_footers=bool(self.machine.name))

    def _read(self, start: int, count: int) -> bytes:
        data = bytearray(count)
        read_exactly(self.file, memoryview(data), start, self.path)
        return bytes(data)

    def close(self) -> None:
        """See `Source`; twice is harmless."""
        self.file.close()


def is_stream(start: bytes) -> bool:
    """Whether a file that starts so is a main stream."""
    return start.startswith(stream.MAGIC_BYTES + stream.VERSION.to_bytes(4, "big"))
