"""Plain QEMU streams and libvirt save images, built from the formats' descriptions."""

from __future__ import annotations

import struct

from mapped_files import DEVICES, PAGE, named

XML = b"<domain type='qemu'><name>tiny</name><uuid>00010203-0405-0607-0809-0a0b0c0d0e0f</uuid></domain>"
XML_UUID = bytes(range(16))


def word(value: int) -> bytes:
    return struct.pack(">Q", value)


def page_record(offset: int, data: bytes, block: bytes | None = None) -> bytes:
    """A page; of `block`, or of the one before."""
    return word(offset | 8 | (0 if block else 0x20)) + (named(block) if block else b"") + data


def zero_record(offset: int, block: bytes | None = None) -> bytes:
    return word(offset | 2 | (0 if block else 0x20)) + (named(block) if block else b"") + b"\0"


def section(kind: int, body: bytes, ram_id: int = 2, *, has_footer: bool = True) -> bytes:
    """PART (2) or END (3) of RAM."""
    footer = b"\x7e" + struct.pack(">I", ram_id) if has_footer else b""
    return bytes([kind]) + struct.pack(">I", ram_id) + body + word(0x10) + footer


def start(
    blocks: list[tuple[bytes, bytes]], machine: bytes = b"pc-i440fx-7.2", page: int = PAGE, ram_id: int = 2
) -> bytes:
    """Up to the end of SETUP."""
    out = b"QEVM\0\0\0\3"
    if machine:
        out += b"\7" + struct.pack(">I", len(machine)) + machine
        if page != PAGE:
            bits = struct.pack(">II", 1, page.bit_length() - 1)
            out += b"\5" + named(b"configuration/target-page-bits") + bits
    out += b"\1" + struct.pack(">I", ram_id) + b"\3ram" + struct.pack(">II", 0, 4)
    out += word(sum(len(data) for _, data in blocks) | 4)
    out += b"".join(named(name) + word(len(data)) for name, data in blocks)
    return out + word(0x10) + (b"\x7e" + struct.pack(">I", ram_id) if machine else b"")


def build_plain(
    blocks: list[tuple[bytes, bytes]], *, machine: bytes = b"pc-i440fx-7.2", page: int = PAGE, devices: bytes = DEVICES,
) -> bytes:  # fmt: skip
    """A stream as a source without multifd sends it: every page once, zero pages as ZERO words."""
    body = b""
    for name, data in blocks:
        block: bytes | None = name
        for offset in range(0, len(data), page):
            one = data[offset : offset + page]
            body += page_record(offset, one, block) if any(one) else zero_record(offset, block)
            block = None
    has_footer = bool(machine)
    end = section(2, body, has_footer=has_footer) + section(3, b"", has_footer=has_footer)
    return start(blocks, machine, page) + end + devices


def save_header(
    form: int, *, magic: bytes = b"LibvirtQemudSave", version: int = 2, xml: bytes = XML, room: int = 1000,
    was_running: int = 1, data_len: int | None = None, cookie: int = 0,
) -> bytes:  # fmt: skip
    """libvirt's header: 92 bytes, XML, zeros."""
    text = xml + bytes(1 + room)
    if data_len is None:
        data_len = len(text)
    return magic + struct.pack("<5I56x", version, data_len, was_running, form, cookie) + text
