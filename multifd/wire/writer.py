"""How the main stream is written, sans-IO: values in, bytes out."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from multifd.pages import Offsets
from multifd.wire import vmdesc
from multifd.wire.stream import (
    COMMAND,
    CONFIGURATION,
    CONTINUE,
    EOF,
    EOS,
    FLUSH,
    FOOTER,
    MAGIC_BYTES,
    MEM_SIZE,
    NO_UUID,
    OPEN_RETURN_PATH,
    PING,
    RAM_VERSION,
    START,
    SUBSECTION,
    VERSION,
    ZERO,
    ZERO_RECORD,
    Block,
    Machine,
)


def name_bytes(name: str) -> bytes:
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
        out += b"".join(map(name_bytes, capabilities))
    if machine.uuid != NO_UUID:
        out += _subsection("uuid") + machine.uuid
    return out


def _subsection(name: str) -> bytes:
    return bytes([SUBSECTION]) + name_bytes(f"configuration/{name}") + struct.pack(">I", 1)


def encode_return_path() -> bytes:
    """The two commands with which QEMU opens the return path: OPEN_RETURN_PATH, PING 1."""
    return struct.pack(">BHH", COMMAND, OPEN_RETURN_PATH, 0) + encode_ping(1)


def encode_ping(value: int) -> bytes:
    """To be answered by PONG with the same value, after all that came before it on main was done."""
    return struct.pack(">BHHI", COMMAND, PING, 4, value)


def encode_ram_start(machine: Machine) -> bytes:
    """START of the ram section up to the list of blocks, each of which `encode_block` gives."""
    out = struct.pack(">BI", START, machine.ram_section_id) + name_bytes("ram") + struct.pack(">II", 0, RAM_VERSION)
    return out + struct.pack(">Q", sum(b.used_length for b in machine.blocks) | MEM_SIZE)


def encode_block(block: Block) -> bytes:
    """A block's entry in the list."""
    return name_bytes(block.idstr) + struct.pack(">Q", block.used_length)


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
    first = struct.pack(">Q", int(offsets[0]) | ZERO) + name_bytes(idstr) + b"\0"
    rest = np.zeros(len(offsets) - 1, ZERO_RECORD)
    rest["word"] = offsets[1:] | (ZERO | CONTINUE)
    return first + rest.tobytes()


def encode_end(page_size: int) -> bytes:
    """The EOF item and the vmdesc of a machine without devices.

    QEMU's destination reads on until it has seen a vmdesc, before it answers SHUT (7.2.22, 10.0.2:
    tests/interop/test_qemu.py hangs without it).
    """
    return bytes([EOF]) + vmdesc.encode(page_size)
