"""The grammar of QEMU's main stream, sans-IO, as a coroutine that asks a driver for bytes.

`multifd.wire.reader` drives it with what a connection brings, `multifd.ram.file_stream` with a file.

Rules of this file: bytes in, events out; no connection, no file, no clock. Only `StreamError` leaves.
Everything the stream makes us hold has a bound.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from multifd.errors import StreamError
from multifd.pages import Buffer
from multifd.wire.stream import (
    COMMAND,
    COMPRESS_PAGE,
    CONFIGURATION,
    CONTINUE,
    END,
    EOF,
    EOS,
    FLUSH,
    FOOTER,
    FULL,
    HOOK,
    MAGIC_BYTES,
    MEM_SIZE,
    NO_UUID,
    OPEN_RETURN_PATH,
    PAGE,
    PART,
    PING,
    RAM_VERSION,
    START,
    SUBSECTION,
    SWITCHOVER_START,
    VERSION,
    XBZRLE,
    ZERO,
    Block,
    Event,
    Machine,
    Ping,
    ReturnPathOpened,
    StoredPages,
    SyncPoint,
    ZeroPages,
)

_MAX_NAME = 256
_MAX_BLOCKS = 65536
_MAX_RUN = 1024  # words taken at once: bounds what a run that breaks off early costs
_OTHER_PAGES = {
    XBZRLE: "xbzrle",
    COMPRESS_PAGE: "the old compression (capability compress, up to 9.0)",
    HOOK: "RDMA",
}


_OTHER_MIGRATIONS = {
    3: "postcopy-ram (or another of postcopy)", 4: "postcopy-ram", 5: "postcopy-ram", 6: "postcopy-ram",
    7: "postcopy-ram", 8: "x-colo", 9: "postcopy-ram", 10: "postcopy-ram",
}  # fmt: skip
"""Commands of migrations that end otherwise, by the capability that sends them (enum qemu_vm_cmd, migration/savevm.c,
QEMU 10.0): POSTCOPY_ADVISE to RAM_DISCARD, PACKAGED, ENABLE_COLO, POSTCOPY_RESUME, RECV_BITMAP."""


@dataclass(frozen=True)
class Skip:
    """Go on at this byte of the stream; what lies between is not the grammar's."""

    to: int


_T = TypeVar("_T")
Steps = Generator[int | Skip, bytes, _T]
"""``yield n`` gives exactly n bytes; ``yield Skip(to)`` gives b"" at another place."""


class Place(Protocol):
    """Where the pages of a stream are: decides what may be said of them. Each may raise `Grammar.error`."""

    def capability(self, grammar: Grammar, name: str) -> None:
        """A capability that changes the format was on at the source."""
        ...

    def block(self, grammar: Grammar, block: Block) -> Steps[None]:
        """Read what follows a block's entry in the list."""
        ...

    def check_page(self, grammar: Grammar) -> None:
        """Refuse a page that is in the stream itself, unless it may be there."""
        ...


class Grammar:
    """The stream from its first byte to the end of RAM.

    A driver looks at `request`, gives that many bytes to `feed`, or calls `skip`, takes `events`, and stops when
    `is_over`. Before it looks again it may offer what else it has to `take_run`.

    Args:
        place: where the pages are.
        page_size: bytes of a target page unless the configuration says otherwise.
        position: of the stream's first byte, for skips and for error messages.
    """

    def __init__(self, place: Place, page_size: int = 4096, position: int = 0) -> None:
        self.page_size = page_size
        self.position = position
        self.events: list[Event] = []
        self.has_footers: bool | None = None  # None: no configuration section, not known yet
        self.blocks: dict[str, int] = {}
        self.is_over = False
        self._place = place
        self._machine = ""
        self._uuid = NO_UUID
        self._current = ""
        self._at_word = False  # what comes next is a word of the ram section
        self._flushes: bool | None = None  # sync points are FLUSH words; None: not known yet
        self._ram_id: int | None = None
        self._return_path = False
        self._steps = self._parse()
        self.request: int | Skip = next(self._steps)
        """What the grammar needs next."""

    @property
    def has_configuration(self) -> bool:
        """Whether a configuration section was read: machine types from 2.4 on begin with one."""
        return bool(self.has_footers) and bool(self._machine)

    @property
    def has_started(self) -> bool:
        """Whether something was read that only a source of a migration sends: a configuration, or a first item."""
        return bool(self._machine) or self._return_path or self._ram_id is not None

    def feed(self, data: bytes) -> None:
        """Go on with exactly the bytes that were requested.

        Raises:
            StreamError: the stream broke the grammar; nothing can follow.
        """
        self.position += len(data)
        self._advance(data)

    def skip(self, request: Skip) -> None:
        """Go on at the place that was requested."""
        self.position = request.to
        self._advance(b"")

    def _advance(self, data: bytes) -> None:
        try:
            self.request = self._steps.send(data)
        except StopIteration:
            self.is_over = True

    def take_events(self) -> list[Event]:
        """The events since the last call."""
        events, self.events = self.events, []
        return events

    def error(self, what: str, length: int = 0) -> StreamError:
        """An error about the `length` bytes that were read last."""
        return StreamError(f"main stream: {what}", offset=self.position - length)

    def take_run(self, buffer: Buffer, start: int) -> int:
        """Take a run of words that continue a block in one piece: a guest has millions, so no loop over them.

        Args:
            buffer: holds what comes next in the stream.
            start: where in it.

        Returns:
            The bytes taken; 0 if there is no such run.
        """
        if not (self._at_word and self._current in self.blocks and len(buffer) - start >= 8):
            return 0
        flags = int.from_bytes(buffer[start : start + 8], "big") & (self.page_size - 1)
        if flags not in (ZERO | CONTINUE, PAGE | CONTINUE):
            return 0
        is_zero = flags == ZERO | CONTINUE
        if not is_zero:
            self._place.check_page(self)
        record = np.dtype([("word", ">u8"), ("rest", f"V{1 if is_zero else self.page_size}")])
        count = min((len(buffer) - start) // record.itemsize, _MAX_RUN)
        if not count:
            return 0
        records = np.frombuffer(buffer, record, count, start)
        words = records["word"].astype(np.int64)
        mask = np.int64(self.page_size - 1)
        offsets = words & ~mask
        good = ((words & mask) == flags) & (offsets >= 0) & (offsets <= self.blocks[self._current] - self.page_size)
        if is_zero:
            good &= records["rest"].view(np.uint8) == 0
        run = count if good.all() else int((~good).argmax())
        if run and is_zero:
            self.events.append(ZeroPages(self._current, offsets[:run]))
        elif run:
            positions = self.position + 8 + np.arange(run, dtype=np.int64) * record.itemsize
            self.events.append(StoredPages(self._current, offsets[:run], positions))
        self.position += run * record.itemsize
        return run * record.itemsize

    def _parse(self) -> Steps[None]:
        magic, version = struct.unpack(">4sI", (yield 8))
        if magic != MAGIC_BYTES:
            raise self.error(f"magic {magic!r}, expected {MAGIC_BYTES!r}", 8)
        if version != VERSION:
            raise self.error(f"stream version {version}, expected {VERSION}", 4)
        kind = (yield 1)[0]
        if kind == CONFIGURATION:
            self.has_footers = True
            kind = yield from self._configuration()
        while True:
            if kind == COMMAND:
                yield from self._command()
            elif kind in (START, PART, END, FULL):
                yield from self._section(kind)
                if self.has_footers is None:
                    byte = (yield 1)[0]
                    self.has_footers = byte == FOOTER
                    if not self.has_footers:
                        kind = byte
                        continue
                    yield from self._footer()
                elif self.has_footers:
                    yield from self._footer((yield 1)[0])
                if kind == END:
                    return
            elif kind == EOF:
                raise self.error("the stream ends without the end of the ram section", 1)
            else:
                raise self.error(f"item of unknown type {kind:#04x}", 1)
            kind = (yield 1)[0]

    def _configuration(self) -> Steps[int]:
        (length,) = struct.unpack(">I", (yield 4))
        if not 0 < length <= _MAX_NAME:
            raise self.error(f"machine name of {length} bytes, expected 1 to {_MAX_NAME}", 4)
        self._machine = self._text((yield length))
        while (kind := (yield 1)[0]) == SUBSECTION:
            name = yield from self.name()
            (version,) = struct.unpack(">I", (yield 4))
            if name == "configuration/target-page-bits":
                (bits,) = struct.unpack(">I", (yield 4))
                if not 12 <= bits <= 16:
                    raise self.error(f"target-page-bits {bits}, expected 12 to 16", 4)
                self.page_size = 1 << bits
            elif name == "configuration/uuid":
                self._uuid = yield 16
            elif name == "configuration/capabilities":
                (count,) = struct.unpack(">I", (yield 4))
                if count > 64:
                    raise self.error(f"{count} capabilities, at most 64 expected", 4)
                for _ in range(count):
                    self._place.capability(self, (yield from self.name()))
            else:
                raise self.error(f"unknown configuration subsection {name!r}, version {version}")
        return kind

    def _command(self) -> Steps[None]:
        command, length = struct.unpack(">HH", (yield 4))
        expected = {OPEN_RETURN_PATH: 0, PING: 4, SWITCHOVER_START: 0}.get(command)
        if (capability := _OTHER_MIGRATIONS.get(command)) is not None:
            what = f"the source has capability {capability} on, which is not received: switch it off there"
            raise self.error(f"command {command}: {what}", 4)
        if expected is None:
            raise self.error(f"command {command}, not one of a precopy migration", 4)
        if length != expected:
            raise self.error(f"command {command} of {length} bytes, expected {expected}", 2)
        data = (yield length) if length else b""
        if command == OPEN_RETURN_PATH:
            self._return_path = True
            self.events.append(ReturnPathOpened())
        elif command == PING:
            if not self._return_path:
                raise self.error("PING without OPEN_RETURN_PATH before it", 4)
            self.events.append(Ping(struct.unpack(">I", data)[0]))

    def _section(self, kind: int) -> Steps[None]:
        """One section, up to its footer."""
        (section_id,) = struct.unpack(">I", (yield 4))
        if kind in (START, FULL):
            name = yield from self.name()
            instance, version = struct.unpack(">II", (yield 8))
            if kind == FULL or name != "ram" or self._ram_id is not None:
                raise self.error(
                    f"section {name!r} comes before the end of RAM: only ram is understood while it is live; "
                    "remove the device, or the capability, that sends it"
                )
            if (instance, version) != (0, RAM_VERSION):
                raise self.error(f"ram instance {instance} version {version}, expected 0 and {RAM_VERSION}", 8)
            self._ram_id = section_id
        elif section_id != self._ram_id:
            raise self.error(f"section id {section_id}, expected ram's {self._ram_id}", 4)
        yield from self._ram(is_setup=kind == START)

    def _footer(self, footer: int = FOOTER) -> Steps[None]:
        (section_id,) = struct.unpack(">I", (yield 4))
        if (footer, section_id) != (FOOTER, self._ram_id):
            raise self.error(
                f"section footer {footer:#04x} id {section_id}, expected {FOOTER:#04x} id {self._ram_id}", 5
            )

    def _ram(self, *, is_setup: bool) -> Steps[None]:
        saw_flush = False
        while True:
            self._at_word = True
            (word,) = struct.unpack(">Q", (yield 8))
            self._at_word = False
            flags, offset = word & (self.page_size - 1), word & ~(self.page_size - 1)
            if flags == EOS:
                if is_setup:
                    # Every sender of FLUSH words puts one before the EOS of SETUP, no other does.
                    self._flushes = saw_flush
                    if not self.blocks:
                        raise self.error("the ram section's SETUP lists no blocks", 8)
                if not self._flushes:
                    self.events.append(SyncPoint())
                return
            if flags == FLUSH:
                if not is_setup and not self._flushes:
                    raise self.error("FLUSH word, but SETUP had none", 8)
                saw_flush = True
                self.events.append(SyncPoint())
            elif flags == MEM_SIZE and is_setup and not self.blocks:
                yield from self._block_list(offset)
            elif flags & ~CONTINUE == ZERO:
                if not flags & CONTINUE:
                    self._current = yield from self.name()
                if (fill := (yield 1)[0]) != 0:
                    raise self.error(f"ZERO word with fill byte {fill:#04x}, expected 0", 1)
                self._check_offset(offset)
                self.events.append(ZeroPages(self._current, np.array([offset], np.int64)))
            elif flags & ~CONTINUE == PAGE:
                self._place.check_page(self)
                if not flags & CONTINUE:
                    self._current = yield from self.name()
                self._check_offset(offset)
                self.events.append(StoredPages(self._current, np.array([offset]), np.array([self.position])))
                yield Skip(self.position + self.page_size)
            elif (feature := _OTHER_PAGES.get(flags & ~CONTINUE)) is not None:
                raise self.error(f"pages by {feature}, which is not read: switch the capability off at the source", 8)
            else:
                raise self.error(f"word with flags {flags:#x}, not one of a multifd migration", 8)

    def _block_list(self, total: int) -> Steps[None]:
        if not 0 < total < 1 << 63:  # offsets are int64
            raise self.error(f"block list of {total} bytes, expected 1 to {(1 << 63) - 1}", 8)
        left = total
        while left > 0:
            idstr = yield from self.name()
            (length,) = struct.unpack(">Q", (yield 8))
            if not 0 < length <= left or length % self.page_size:
                raise self.error(
                    f"block {idstr!r} of {length} bytes, expected a multiple of {self.page_size} up to {left}", 8
                )
            if idstr in self.blocks or len(self.blocks) >= _MAX_BLOCKS:
                raise self.error(f"block {idstr!r} is listed twice, or there are too many")
            self.blocks[idstr] = length
            left -= length
            yield from self._place.block(self, Block(idstr, length))
        assert self._ram_id is not None
        blocks = tuple(Block(*item) for item in self.blocks.items())
        self.events.append(Machine(self._machine, self.page_size, blocks, self._uuid, self._ram_id))

    def name(self) -> Steps[str]:
        (length,) = yield 1
        if not length:
            raise self.error("an empty name", 1)
        return self._text((yield length))

    def _check_offset(self, offset: int) -> None:
        if self._current not in self.blocks:
            raise self.error(f"page of unknown block {self._current!r}")
        if offset > self.blocks[self._current] - self.page_size:
            raise self.error(f"page at {offset:#x} outside block {self._current!r}")

    def _text(self, data: bytes) -> str:
        """QEMU's names are ASCII; another one could not be written again as it was."""
        if not data.isascii():
            raise self.error(f"name {data!r}, expected ASCII", len(data))
        return data.decode("ascii")
