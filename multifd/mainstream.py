"""QEMU's main stream, sans-IO: its words, what a reader says of it, and how it is written.

Rules of this file: values in, bytes out; no connection, no clock. `mainstream_reader` reads.

Grammar (migration/savevm.c, migration/ram.c, QEMU 7.2.0 and 10.0; confirmed on recorded streams)::

    stream  := QEVM 3 [configuration] item* EOF [vmdesc]
    item    := START | PART | END | FULL | COMMAND
    ram     := words u64 offset|flags, until EOS; SETUP carries the list of blocks
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multifd import vmdesc
from multifd.errors import StreamError
from multifd.pages import Offsets

MAGIC_BYTES = b"QEVM"
VERSION = 3

# Section types, migration/savevm.h
EOF, START, PART, END, FULL, SUBSECTION, VMDESC, CONFIGURATION, COMMAND, FOOTER = (
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x7E,
)  # fmt: skip
# Words of the ram section, migration/ram.c
ZERO, MEM_SIZE, PAGE, EOS, CONTINUE, FLUSH = 0x02, 0x04, 0x08, 0x10, 0x20, 0x200
# Commands, migration/savevm.c, and messages of the return path, migration/migration.h
OPEN_RETURN_PATH, PING, SWITCHOVER_START = 1, 2, 11
SHUT, PONG = 1, 2

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


Event = Machine | ZeroPages | SyncPoint | ReturnPathOpened | Ping | DeviceState | StreamEnd


# -- writing --------------------------------------------------------------------------------------


def _name_bytes(name: str) -> bytes:
    data = name.encode("ascii")
    return bytes([len(data)]) + data


def encode_header(machine: Machine, capabilities: Sequence[str] = ()) -> bytes:
    """Magic, version and the configuration section.

    Subsection target-page-bits only if a page is not 4096 bytes, uuid only if there is one.

    Args:
        machine: its name, page size and uuid.
        capabilities: those that change the format.
    """
    out = MAGIC_BYTES + struct.pack(">I", VERSION)
    if not machine.name:
        return out
    out += struct.pack(">BI", CONFIGURATION, len(machine.name)) + machine.name.encode("ascii")
    if machine.page_size != 4096:
        out += _subsection("target-page-bits") + struct.pack(">I", machine.page_size.bit_length() - 1)
    if capabilities:
        out += _subsection("capabilities") + struct.pack(">I", len(capabilities))
        out += b"".join(map(_name_bytes, capabilities))
    if machine.uuid != NO_UUID:
        out += _subsection("uuid") + machine.uuid
    return out


def _subsection(name: str) -> bytes:
    return bytes([SUBSECTION]) + _name_bytes(f"configuration/{name}") + struct.pack(">I", 1)


def encode_return_path() -> bytes:
    """The two commands with which QEMU opens the return path: OPEN_RETURN_PATH, PING 1."""
    return struct.pack(">BHH", COMMAND, OPEN_RETURN_PATH, 0) + encode_ping(1)


def encode_ping(value: int) -> bytes:
    """To be answered by PONG with the same value, after all that came before it on main was done."""
    return struct.pack(">BHHI", COMMAND, PING, 4, value)


def encode_ram_start(machine: Machine) -> bytes:
    """START of the ram section up to the list of blocks, each of which `encode_block` gives."""
    out = struct.pack(">BI", START, machine.ram_section_id) + _name_bytes("ram") + struct.pack(">II", 0, RAM_VERSION)
    return out + struct.pack(">Q", sum(b.used_length for b in machine.blocks) | MEM_SIZE)


def encode_block(block: Block) -> bytes:
    """A block's entry in the list."""
    return _name_bytes(block.idstr) + struct.pack(">Q", block.used_length)


def encode_ram_next(kind: int, section_id: int) -> bytes:
    """PART or END of the ram section, its body left open."""
    return struct.pack(">BI", kind, section_id)


def encode_flush() -> bytes:
    """A sync point in the dialects that have words for it."""
    return struct.pack(">Q", FLUSH)


def encode_eos(machine: Machine) -> bytes:
    """The end of a ram section's body, and its footer."""
    footer = struct.pack(">BI", FOOTER, machine.ram_section_id) if machine.name else b""
    return struct.pack(">Q", EOS) + footer


def encode_zero_pages(idstr: str, offsets: Offsets) -> bytes:
    """ZERO words: the first names the block, the others continue it."""
    first = struct.pack(">Q", int(offsets[0]) | ZERO) + _name_bytes(idstr) + b"\0"
    rest = np.zeros(len(offsets) - 1, ZERO_RECORD)
    rest["word"] = offsets[1:] | (ZERO | CONTINUE)
    return first + rest.tobytes()


def encode_end(page_size: int) -> bytes:
    """The EOF item and the vmdesc of a machine without devices.

    QEMU's destination reads on until it has seen a vmdesc, before it answers SHUT (7.2.22, 10.0.2:
    tests/interop/test_qemu.py hangs without it).
    """
    return bytes([EOF]) + vmdesc.encode(page_size)


def encode_answer(kind: int, value: int) -> bytes:
    """A message of the return path: SHUT or PONG with its u32."""
    return struct.pack(">HHI", kind, 4, value)


class ReturnPathReader:
    """The source's side of the return path: `feed` bytes, get (type, value)."""

    _LENGTHS: Mapping[int, int] = {SHUT: 4, PONG: 4}

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int]]:
        """The messages that these bytes complete.

        Raises:
            StreamError: a message that a precopy destination does not send.
        """
        self._buffer += data
        messages = []
        while len(self._buffer) >= 4:
            kind, length = struct.unpack_from(">HH", self._buffer)
            if self._LENGTHS.get(kind) != length:
                raise StreamError(f"return path: message {kind} of {length} bytes, expected SHUT or PONG of 4")
            if len(self._buffer) < 4 + length:
                break
            messages.append((kind, int.from_bytes(self._buffer[4 : 4 + length], "big")))
            del self._buffer[: 4 + length]
        return messages
