"""Mapped-ram files built from the format's description."""

from __future__ import annotations

import json
import struct

MIB = 1 << 20


PAGE = 4096


VMDESC_TEXT = json.dumps({"page_size": PAGE, "devices": [{"name": "timer", "instance_id": 3}]}).encode()


DEVICES = (
    b"\x04\0\0\0\x05" + b"opaque" * 9 + b"\x7e\0\0\0\x05\0\x06" + struct.pack(">I", len(VMDESC_TEXT)) + VMDESC_TEXT
)


def named(name: bytes) -> bytes:
    return bytes([len(name)]) + name


def build(
    blocks: list[tuple[bytes, bytes]], *, machine: bytes = b"pc-q35-9.0", page: int = PAGE, uuid: bytes = b"",
    ram_id: int = 1, room: int = 0, align: int = MIB, devices: bytes = DEVICES, capabilities: tuple[bytes, ...] =
    (b"mapped-ram",), absent: frozenset[int] = frozenset(),
) -> bytes:  # fmt: skip
    """A file of blocks (name, content), from the format's description.

    Args:
        room: bytes left free in front of each block's pages, beside what alignment leaves.
        absent: pages of every block whose bit is clear though their slot holds bytes.
    """
    out = bytearray(b"QEVM\0\0\0\x03")
    if machine:
        out += b"\x07" + struct.pack(">I", len(machine)) + machine
        if page != PAGE:
            out += b"\x05" + named(b"configuration/target-page-bits")
            out += struct.pack(">II", 1, page.bit_length() - 1)
        if capabilities:
            out += b"\x05" + named(b"configuration/capabilities")
            out += struct.pack(">II", 1, len(capabilities)) + b"".join(map(named, capabilities))
        if uuid:
            out += b"\x05" + named(b"configuration/uuid") + struct.pack(">I", 1) + uuid
    footer = b"\x7e" + struct.pack(">I", ram_id) if machine else b""
    out += b"\x01" + struct.pack(">I", ram_id) + b"\x03ram" + struct.pack(">II", 0, 4)
    out += struct.pack(">Q", sum(len(data) for _, data in blocks) | 4)
    for name, data in blocks:
        count = len(data) // page
        bits = bytearray((count + 63) // 64 * 8)
        for i in range(count):
            if any(data[i * page : (i + 1) * page]) and i not in absent:
                bits[i // 8] |= 1 << i % 8
        out += named(name) + struct.pack(">Q", len(data))
        bitmap_at = len(out) + 28
        pages_at = (bitmap_at + len(bits) + room + align - 1) // align * align
        out += struct.pack(">IQQQ", 1, page, bitmap_at, pages_at) + bits
        out += bytes(pages_at - len(out)) + data
    eos = struct.pack(">Q", 0x10) + footer
    return bytes(out + eos + b"\x03" + struct.pack(">I", ram_id) + eos + devices)
