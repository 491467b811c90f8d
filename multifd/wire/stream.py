"""QEMU's main stream, sans-IO: its words, what a reader says of it, and how it is written.

Rules of this file: values in, bytes out; no connection, no clock. `multifd.wire.grammar` reads.

Grammar (migration/savevm.c, migration/ram.c, QEMU 7.2.0 and 10.0; confirmed on recorded streams)::

    stream  := QEVM 3 [configuration] item* EOF [vmdesc]
    item    := START | PART | END | FULL | COMMAND
    ram     := words u64 offset|flags, until EOS; SETUP carries the list of blocks
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multifd.pages import Offsets

MAGIC_BYTES = b"QEVM"
VERSION = 3
# Section types, migration/savevm.h
EOF, START, PART, END, FULL, SUBSECTION, VMDESC, CONFIGURATION, COMMAND, FOOTER = (
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x7E,
)  # fmt: skip
# Words of the ram section, migration/ram.c
ZERO, MEM_SIZE, PAGE, EOS, CONTINUE, FLUSH = 0x02, 0x04, 0x08, 0x10, 0x20, 0x200
XBZRLE, HOOK, COMPRESS_PAGE = 0x40, 0x80, 0x100
# Commands, migration/savevm.c, and messages of the return path, migration/migration.h
OPEN_RETURN_PATH, PING, SWITCHOVER_START = 1, 2, 11
NO_UUID = bytes(16)
RAM_VERSION = 4
ZERO_RECORD = np.dtype([("word", ">u8"), ("fill", "u1")])


@dataclass(frozen=True)
class Block:
    """A RAM block as the stream lists it."""

    idstr: str
    used_length: int
    """Bytes, a multiple of the page size."""


@dataclass(frozen=True)
class Machine:
    """What a stream says of its machine up to the list of RAM blocks; comes once, before any page."""

    name: str
    """The full machine type, such as ``pc-i440fx-7.2``; empty for types up to 2.3, which have no
    configuration section and no section footers (hw/core/machine.c, hw_compat_2_3)."""
    page_size: int
    blocks: tuple[Block, ...]
    uuid: bytes = NO_UUID
    """The guest's, of subsection ``configuration/uuid``; all zero if the stream has none."""
    ram_section_id: int = 1
    """A replay must use it again: the ids of the devices' sections were chosen around it."""


@dataclass(frozen=True, eq=False)
class ZeroPages:
    """Pages of one block that are all zero."""

    idstr: str
    offsets: Offsets


@dataclass(frozen=True, eq=False)
class StoredPages:
    """Pages of one block that are in the stream itself, as without multifd."""

    idstr: str
    offsets: Offsets
    positions: Offsets
    """Of each page's first byte in the stream."""


@dataclass(frozen=True)
class SyncPoint:
    """Every channel has one SYNC that belongs here."""


@dataclass(frozen=True)
class ReturnPathOpened:
    """The source reads answers on this connection and waits for SHUT."""


@dataclass(frozen=True)
class Ping:
    """To be answered by PONG with the same value, if the return path is open."""

    value: int


@dataclass(frozen=True)
class DeviceState:
    """A piece of what follows the end of RAM up to the stream's end, as it came: the devices' own."""

    data: bytes


@dataclass(frozen=True)
class StreamEnd:
    """The last item was seen; with a return path the source now waits for SHUT."""


Event = Machine | ZeroPages | StoredPages | SyncPoint | ReturnPathOpened | Ping | DeviceState | StreamEnd
