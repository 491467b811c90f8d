"""Raw images: one RAM block, byte X of the file is byte X of RAM."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from multifd.ram.block import RAM_IDSTR, TargetBlock, bare_machine, check_size, only_block
from multifd.ram.file import open_regular
from multifd.ram.file_block import FileBlock
from multifd.ram.part_file import PartFile
from multifd.ram.span import Span, cut_block
from multifd.wire.stream import Block, Machine
from multifd.wire.writer import encode_end


class RawImageSource:
    """A raw image of RAM: one block, byte X of the file is byte X of RAM. Holes are not read.

    Args:
        path: a regular file, a multiple of `page_size` long.
        page_size: bytes.

    Raises:
        RamError: it is not.
    """

    form: ClassVar[str] = "raw"
    """The format's name, as `multifd.ram.image` has it."""

    def __init__(self, path: str | os.PathLike[str], page_size: int = 4096) -> None:
        self.path = Path(path)
        self.file, self.nbytes = open_regular(self.path)
        try:
            check_size(self.nbytes, page_size, str(self.path))
        except BaseException:
            self.file.close()
            raise
        self.machine = bare_machine(self.nbytes, page_size)
        self.blocks = (FileBlock(Block(RAM_IDSTR, self.nbytes), page_size, self.file, 0, self.path),)

    def device_state(self) -> Iterator[bytes]:
        """See `Source`: there are no devices."""
        yield encode_end(self.machine.page_size)

    def spans(self, step: int) -> Sequence[Span]:
        """All of the file in order, in pieces of at most `step` bytes, for digests."""
        return tuple(cut_block(0, self.nbytes, step, RAM_IDSTR))

    def close(self) -> None:
        """See `Source`."""
        self.file.close()


class RawImageTarget:
    """A raw image of one RAM block; the state of devices is not kept.

    Args:
        path: the file to make or replace; see `PartFile`.

    Raises:
        RamError: it cannot be written there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = PartFile(path)

    def allocate(self, machine: Machine) -> Mapping[str, TargetBlock]:
        """See `Target`."""
        block = only_block(machine.blocks, "a raw image")
        self._file.resize(block.used_length)
        return {block.idstr: FileBlock(block, machine.page_size, self._file.fd, 0, self._file.part)}

    def add_device_state(self, data: bytes) -> None:
        """See `Target`; a raw image holds RAM only."""

    def flush(self) -> None:
        """See `Target`."""
        self._file.flush()

    def commit(self, uuid: bytes) -> None:
        """See `Target`."""
        self._file.commit()

    @property
    def is_committed(self) -> bool:
        """See `Target`."""
        return self._file.is_committed

    def discard(self) -> None:
        """See `Target`."""
        self._file.discard()
