"""A pull parser for QEMU's main stream, sans-IO: as much as RAM needs; the rest passes through opaque.

Rules of this file: bytes in, events out; no connection, no clock. A reader fed byte by byte gives
the same events as one fed at once. Only `StreamError` leaves. Everything the stream makes us hold
has a bound.
"""

from __future__ import annotations

import struct
from collections.abc import Generator

import numpy as np

from multifd.errors import StreamError
from multifd.wire import vmdesc
from multifd.wire.stream import (
    COMMAND,
    CONFIGURATION,
    CONTINUE,
    END,
    EOF,
    EOS,
    FLUSH,
    FOOTER,
    FULL,
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
    ZERO,
    ZERO_RECORD,
    Block,
    DeviceState,
    Event,
    Machine,
    Ping,
    ReturnPathOpened,
    StreamEnd,
    SyncPoint,
    ZeroPages,
)

_MAX_NAME = 256
_MAX_BLOCKS = 65536
_MAX_TAIL = 16 << 20
"""Bytes of the opaque remainder searched for its end; a vmdesc is about 100 KB for an empty pc."""
_MAX_RUN = 1024  # words taken at once: bounds what a run that breaks off early costs


class MainStreamReader:
    """A pull parser: `feed` bytes, get events, and call `end` when the connection ends.

    Args:
        page_size: bytes of a target page unless the configuration says otherwise.
    """

    def __init__(self, page_size: int = 4096) -> None:
        self.page_size = page_size
        self._machine = ""
        self._uuid = NO_UUID
        self._has_footers: bool | None = None  # None: no configuration section, not known yet
        self._blocks: dict[str, int] = {}
        self._current = ""
        self._at_word = False  # what comes next is a word of the ram section
        self._flushes: bool | None = None  # sync points are FLUSH words; None: not known yet
        self._ram_id: int | None = None
        self._return_path = False
        self._events: list[Event] = []
        self._buffer = bytearray()
        self._position = 0  # of the buffer's first byte in the stream
        self._is_ram = True
        self._tail = bytearray()  # the remainder, once ram has ended
        self._ended = False
        self._parser = self._parse()
        self._need = next(self._parser)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """The events that these bytes complete.

        Raises:
            StreamError: the peer broke the grammar; the reader is of no use any more.
        """
        if not self._is_ram:
            self._remainder(data)
        else:
            self._buffer += data
            start = 0
            while self._is_ram and len(self._buffer) - start >= self._need:
                taken = bytes(self._buffer[start : start + self._need])
                start += self._need
                self._position += self._need
                try:
                    self._need = self._parser.send(taken)
                except StopIteration:
                    self._is_ram = False
                    self._remainder(self._buffer[start:])
                    start = len(self._buffer)
                    break
                skipped = self._zero_run(start)
                start += skipped
                self._position += skipped
            del self._buffer[:start]
        events, self._events = self._events, []
        return events

    @property
    def has_configuration(self) -> bool:
        """Whether a configuration section was read: machine types from 2.4 on begin with one."""
        return bool(self._has_footers) and bool(self._machine)

    @property
    def has_started(self) -> bool:
        """Whether something was read that only a source of a migration sends: a configuration, or a first item."""
        return bool(self._machine) or self._return_path or self._ram_id is not None

    def end(self) -> None:
        """The connection ended.

        Raises:
            StreamError: before the stream did.
        """
        if self._is_ram:
            raise StreamError("the stream ends before all of RAM was announced as sent", offset=self._position)
        if not self._ended and not vmdesc.may_end(self._tail, has_footers=bool(self._has_footers)):
            raise StreamError("the stream ends inside the devices' state", offset=self._position)

    # -- the grammar, as a coroutine: `yield n` gives exactly n bytes ---------------------------

    def _parse(self) -> Generator[int, bytes, None]:
        magic, version = struct.unpack(">4sI", (yield 8))
        if magic != MAGIC_BYTES:
            raise self._error(f"magic {magic!r}, expected {MAGIC_BYTES!r}", 8)
        if version != VERSION:
            raise self._error(f"stream version {version}, expected {VERSION}", 4)
        kind = (yield 1)[0]
        if kind == CONFIGURATION:
            self._has_footers = True
            kind = yield from self._configuration()
        while True:
            if kind == COMMAND:
                yield from self._command()
            elif kind in (START, PART, END, FULL):
                yield from self._section(kind)
                if self._has_footers is None:
                    byte = (yield 1)[0]
                    self._has_footers = byte == FOOTER
                    if not self._has_footers:
                        kind = byte
                        continue
                    yield from self._footer()
                elif self._has_footers:
                    yield from self._footer((yield 1)[0])
                if kind == END:
                    return
            elif kind == EOF:
                raise self._error("the stream ends without the end of the ram section", 1)
            else:
                raise self._error(f"item of unknown type {kind:#04x}", 1)
            kind = (yield 1)[0]

    def _configuration(self) -> Generator[int, bytes, int]:
        (length,) = struct.unpack(">I", (yield 4))
        if not 0 < length <= _MAX_NAME:
            raise self._error(f"machine name of {length} bytes, expected 1 to {_MAX_NAME}", 4)
        self._machine = _text((yield length))
        while (kind := (yield 1)[0]) == SUBSECTION:
            name = yield from self._name()
            (version,) = struct.unpack(">I", (yield 4))
            if name == "configuration/target-page-bits":
                (bits,) = struct.unpack(">I", (yield 4))
                if not 12 <= bits <= 16:
                    raise self._error(f"target-page-bits {bits}, expected 12 to 16", 4)
                self.page_size = 1 << bits
            elif name == "configuration/uuid":
                self._uuid = yield 16
            elif name == "configuration/capabilities":
                (count,) = struct.unpack(">I", (yield 4))
                if count > 64:
                    raise self._error(f"{count} capabilities, at most 64 expected", 4)
                for _ in range(count):
                    self._capability((yield from self._name()))
            else:
                raise self._error(f"unknown configuration subsection {name!r}, version {version}")
        return kind

    def _capability(self, name: str) -> None:
        """A capability that changes the format is on."""
        raise self._error(
            f"the source has capability {name!r} on, with which RAM does not travel on the connections: "
            "switch it off there"
        )

    def _command(self) -> Generator[int, bytes, None]:
        command, length = struct.unpack(">HH", (yield 4))
        expected = {OPEN_RETURN_PATH: 0, PING: 4, SWITCHOVER_START: 0}.get(command)
        if expected is None:
            raise self._error(f"command {command}: not one of a precopy migration (postcopy, COLO?)", 4)
        if length != expected:
            raise self._error(f"command {command} of {length} bytes, expected {expected}", 2)
        data = (yield length) if length else b""
        if command == OPEN_RETURN_PATH:
            self._return_path = True
            self._events.append(ReturnPathOpened())
        elif command == PING:
            if not self._return_path:
                raise self._error("PING without OPEN_RETURN_PATH before it", 4)
            self._events.append(Ping(struct.unpack(">I", data)[0]))

    def _section(self, kind: int) -> Generator[int, bytes, None]:
        """One section, up to its footer."""
        (section_id,) = struct.unpack(">I", (yield 4))
        if kind in (START, FULL):
            name = yield from self._name()
            instance, version = struct.unpack(">II", (yield 8))
            if kind == FULL or name != "ram" or self._ram_id is not None:
                raise self._error(
                    f"section {name!r} comes before the end of RAM: only ram is understood while it is live; "
                    "remove the device, or the capability, that sends it"
                )
            if (instance, version) != (0, RAM_VERSION):
                raise self._error(f"ram instance {instance} version {version}, expected 0 and {RAM_VERSION}", 8)
            self._ram_id = section_id
        elif section_id != self._ram_id:
            raise self._error(f"section id {section_id}, expected ram's {self._ram_id}", 4)
        yield from self._ram(is_setup=kind == START)

    def _footer(self, footer: int = FOOTER) -> Generator[int, bytes, None]:
        (section_id,) = struct.unpack(">I", (yield 4))
        if (footer, section_id) != (FOOTER, self._ram_id):
            raise self._error(
                f"section footer {footer:#04x} id {section_id}, expected {FOOTER:#04x} id {self._ram_id}", 5
            )

    def _ram(self, *, is_setup: bool) -> Generator[int, bytes, None]:
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
                    if not self._blocks:
                        raise self._error("the ram section's SETUP lists no blocks", 8)
                if not self._flushes:
                    self._events.append(SyncPoint())
                return
            if flags == FLUSH:
                if not is_setup and not self._flushes:
                    raise self._error("FLUSH word, but SETUP had none", 8)
                saw_flush = True
                self._events.append(SyncPoint())
            elif flags == MEM_SIZE and is_setup and not self._blocks:
                yield from self._block_list(offset)
            elif flags & ~CONTINUE == ZERO:
                if not flags & CONTINUE:
                    self._current = yield from self._name()
                if (fill := (yield 1)[0]) != 0:
                    raise self._error(f"ZERO word with fill byte {fill:#04x}, expected 0", 1)
                self._check_offset(offset)
                self._events.append(ZeroPages(self._current, np.array([offset], np.int64)))
            elif flags & ~CONTINUE == PAGE:
                raise self._error(
                    "pages on the main stream: the source does not use multifd; switch the capability on there", 8
                )
            else:
                raise self._error(f"word with flags {flags:#x}, not one of a multifd migration", 8)

    def _block_list(self, total: int) -> Generator[int, bytes, None]:
        if not 0 < total < 1 << 63:  # offsets are int64
            raise self._error(f"block list of {total} bytes, expected 1 to {(1 << 63) - 1}", 8)
        left = total
        while left > 0:
            idstr = yield from self._name()
            (length,) = struct.unpack(">Q", (yield 8))
            if not 0 < length <= left or length % self.page_size:
                raise self._error(
                    f"block {idstr!r} of {length} bytes, expected a multiple of {self.page_size} up to {left}", 8
                )
            if idstr in self._blocks or len(self._blocks) >= _MAX_BLOCKS:
                raise self._error(f"block {idstr!r} is listed twice, or there are too many")
            self._blocks[idstr] = length
            left -= length
            yield from self._block_header(Block(idstr, length))
        assert self._ram_id is not None
        blocks = tuple(Block(*item) for item in self._blocks.items())
        self._events.append(Machine(self._machine, self.page_size, blocks, self._uuid, self._ram_id))

    def _block_header(self, block: Block) -> Generator[int, bytes, None]:
        """What the format puts after a block's entry in the list: nothing on a connection."""
        yield from ()

    def _name(self) -> Generator[int, bytes, str]:
        (length,) = yield 1
        if not length:
            raise self._error("an empty name", 1)
        return _text((yield length))

    def _check_offset(self, offset: int) -> None:
        if self._current not in self._blocks:
            raise self._error(f"zero page of unknown block {self._current!r}")
        if offset > self._blocks[self._current] - self.page_size:
            raise self._error(f"zero page at {offset:#x} outside block {self._current!r}")

    def _zero_run(self, start: int) -> int:
        """Take a run of ZERO|CONTINUE words at `start` in one piece; returns its bytes.

        Each is 9 bytes, the word and the fill. A guest has millions, so no loop over them.
        """
        next_flags = int.from_bytes(self._buffer[start : start + 8], "big") & (self.page_size - 1)
        if not (self._at_word and self._current in self._blocks and next_flags == ZERO | CONTINUE):
            return 0
        count = min((len(self._buffer) - start) // 9, _MAX_RUN)
        if not count:
            return 0
        records = np.frombuffer(self._buffer, ZERO_RECORD, count, start)
        words = records["word"].astype(np.int64)
        mask = np.int64(self.page_size - 1)
        offsets = words & ~mask
        good = ((words & mask) == (ZERO | CONTINUE)) & (records["fill"] == 0) & (offsets >= 0)
        good &= offsets <= self._blocks[self._current] - self.page_size
        run = count if good.all() else int((~good).argmax())
        if run:
            self._events.append(ZeroPages(self._current, offsets[:run]))
        return 9 * run

    # -- after ram ------------------------------------------------------------------------------

    def _remainder(self, data: bytes | bytearray | memoryview) -> None:
        """Pass on what ram does not understand, and look for the stream's end in it.

        Without devices the EOF byte comes at once. Else the last thing is the vmdesc.
        """
        if self._ended or not data:
            return
        if not self._tail and data[0] == EOF:
            data = data[:1]
            self._ended = True
        self._events.append(DeviceState(bytes(data)))
        self._position += len(data)
        self._tail += data
        if self._ended or vmdesc.ends(self._tail):
            self._ended = True
            self._events.append(StreamEnd())
        elif len(self._tail) > _MAX_TAIL:
            del self._tail[: len(self._tail) - _MAX_TAIL // 2]

    def _error(self, what: str, length: int = 0) -> StreamError:
        """An error about the `length` bytes that were read last."""
        return StreamError(f"main stream: {what}", offset=self._position - length)


def _text(data: bytes) -> str:
    return data.decode("ascii", "backslashreplace")
