"""QEMU's multifd wire, sans-IO: the init packet, the packet header, SYNC, and what releases differ in.

Rules of this file: bytes in, values out, and the other way; no connection, no clock. Everything is
validated before it is used, and only `RemoteWireError` and `LocalWireError` leave. Field names are
QEMU's, so that both sources can be read side by side. All integers are big-endian. What QEMU leaves
zero and ignores carries our announcement; nothing else is added.

Sources: migration/multifd.h of QEMU 7.2.0 and 10.0 (MultiFDInit_t, MultiFDPacket_t), confirmed by
exchanging streams with QEMU 7.2.22 and 10.0.2.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from multifd.errors import LocalWireError, RemoteWireError
from multifd.pages import Geometry, Offsets

MAGIC = 0x11223344
VERSION = 1
MAGIC_BYTES = struct.pack(">I", MAGIC)
"""The first four bytes of a channel; main starts with ``QEVM``."""
FLAG_SYNC = 0x01
FLAG_DEVICE_STATE = 0x40  # QEMU 10.0
METHOD_MASK = 0x3E
"""The compression field: 0x0e up to 9.0, 0x1e in 9.1, 0x3e since 9.2; each QEMU method is one bit."""
PRIVATE_CODE = 0x3E
"""All bits of the field, which no QEMU sends: a method that has no code of its own."""
_INIT = struct.Struct(">II16sBBB5x32s")
INIT_BYTES = _INIT.size
NAME_BYTES = 31
MOST_ID = 254
"""Of a channel: there are at most 255 (multifd-channels, qapi/migration.json, QEMU 10.0)."""
_HEADER = struct.Struct(">IIIIIIQII24x256s")
_NAME = slice(64, 320)
_U32 = struct.Struct(">I")
_PREFIX = struct.Struct(">III")
PREFIX_BYTES = _PREFIX.size
"""Enough of a header to tell a RAM packet from a device-state packet (QEMU 10.0 reads it first)."""
DEVICE_STATE_BYTES = 276
"""Header of a device-state packet: u32 magic, version, flags, 256 bytes idstr, u32 instance, size."""
NO_OFFSETS: Offsets = np.empty(0, np.int64)


@dataclass(frozen=True)
class InitPacket:
    """The first 64 bytes of every channel (MultiFDInit_t)."""

    id: int
    """The channel, 0 .. channels-1."""
    uuid: bytes = bytes(16)
    """The guest's uuid, raw; all zero if it has none. A QEMU destination compares it with its own."""
    channels: int = 0
    """Byte 25, ours: how many channels there are; 0 if not announced, as by QEMU."""
    wire_version: int = 0
    """Byte 26, ours: the method's wire_version."""
    method: str = ""
    """Bytes 32-63, ours: the method's name, NUL-padded; empty if not announced."""

    def encode(self) -> bytes:
        """The 64 bytes.

        Raises:
            LocalWireError: a field does not fit its bytes.
        """
        fits = 0 <= self.id <= MOST_ID and 0 <= self.channels <= 255 and 0 <= self.wire_version <= 255
        if not (fits and len(self.uuid) == 16 and self.method.isascii() and len(self.method) <= NAME_BYTES):
            raise LocalWireError(f"cannot announce {self}")
        name = self.method.encode("ascii")
        return _INIT.pack(MAGIC, VERSION, self.uuid, self.id, self.channels, self.wire_version, name)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> InitPacket:
        """The packet in 64 bytes.

        Raises:
            RemoteWireError: they are not an init packet of this version; `offset` is the byte that is wrong.
        """
        _check_length(len(data), INIT_BYTES)
        magic, version, uuid, id_, channels, wire_version, name = _INIT.unpack(data)
        _check_magic(magic, version)
        text, _, padding = name.partition(b"\0")
        if any(padding) or len(text) > NAME_BYTES or not (text.isascii() and text.decode("ascii").isprintable()):
            raise RemoteWireError(f"method name {name!r} is not NUL-padded ASCII", offset=32)
        if id_ > MOST_ID:
            raise RemoteWireError(f"channel id {id_}, at most {MOST_ID}", offset=24)
        if channels and id_ >= channels:
            raise RemoteWireError(f"channel id {id_} with {channels} channels announced", offset=24)
        return cls(id_, uuid, channels, wire_version, text.decode("ascii"))


def _check_length(nbytes: int, expected: int) -> None:
    if nbytes != expected:
        raise RemoteWireError(f"{nbytes} bytes, expected {expected}", offset=min(nbytes, expected))


def _check_magic(magic: int, version: int) -> None:
    if magic != MAGIC:
        raise RemoteWireError(f"magic {magic:#010x}, expected {MAGIC:#010x}", offset=0)
    if version != VERSION:
        raise RemoteWireError(f"version {version}, expected {VERSION}", offset=4)


@dataclass(slots=True, eq=False)
class Packet:
    """A validated packet header (MultiFDPacket_t); the payload follows it on the wire."""

    flags: int
    packet_num: int
    ramblock: str
    """The block of all pages; empty if there are none."""
    normal: Offsets
    """int64, shape (normal_pages,): bytes in the block of the pages with payload."""
    zero: Offsets
    """int64, shape (zero_pages,): bytes in the block of pages that are all zero (QEMU 9.0 and later)."""
    next_packet_size: int
    """Payload bytes; 0 if there are no normal pages, whatever the sender left in the field."""

    @property
    def is_sync(self) -> bool:
        """Whether the sync point follows this packet (up to 8.2 it may carry pages as well)."""
        return bool(self.flags & FLAG_SYNC)

    @property
    def code(self) -> int:
        """The compression field, meaningful only if there are pages."""
        return self.flags & METHOD_MASK


@cache
def header_bytes(geometry: Geometry) -> int:
    """Bytes of a RAM packet's header: 320 and 8 for each page a packet can hold, used or not."""
    return _HEADER.size + 8 * geometry.page_count


def packet_flags(header: bytearray | memoryview) -> int:
    """The flags, from the first `PREFIX_BYTES` of a header, before the rest is read.

    Raises:
        RemoteWireError: not a packet, or flags that no release has.
    """
    if len(header) < PREFIX_BYTES:
        _check_length(len(header), PREFIX_BYTES)
    magic, version, flags = _PREFIX.unpack_from(header)
    _check_magic(magic, version)
    if flags & ~(FLAG_SYNC | FLAG_DEVICE_STATE | METHOD_MASK):
        raise RemoteWireError(f"unknown flags in {flags:#x}", offset=8)
    return int(flags)


def check_prefix(header: bytearray | memoryview) -> None:
    """Look at the first `PREFIX_BYTES` of a header, before the rest is read.

    Raises:
        RemoteWireError: not a packet, or one that carries no RAM.
    """
    if packet_flags(header) & FLAG_DEVICE_STATE:
        raise RemoteWireError(
            "a device-state packet (QEMU 10.0, a vfio device): only RAM can be received here", offset=8
        )


def device_state_bytes(header: bytearray | memoryview) -> int:
    """Payload bytes of a device-state packet.

    Args:
        header: its `DEVICE_STATE_BYTES` bytes of header.
    """
    return int.from_bytes(header[DEVICE_STATE_BYTES - 4 : DEVICE_STATE_BYTES], "big")


class Counts(NamedTuple):
    """What a RAM packet's header says of it, without its pages."""

    flags: int
    packet_num: int
    normal_pages: int
    zero_pages: int
    next_packet_size: int
    """As it is in the field: stale if there are no normal pages and the sender is 8.1 or older."""

    @property
    def code(self) -> int:
        """The compression field, meaningful only if there are pages."""
        return self.flags & METHOD_MASK


def decode_counts(header: bytearray | memoryview, geometry: Geometry) -> Counts:
    """Validate all of a header but its block and offsets. The checks are QEMU 10.0's.

    Raises:
        RemoteWireError: any field that cannot be.
    """
    check_prefix(header)
    _check_length(len(header), header_bytes(geometry))
    (_, _, flags, pages_alloc, normal_pages, next_packet_size, packet_num, zero_pages, _, _) = _HEADER.unpack_from(
        header
    )
    if pages_alloc > geometry.page_count:
        raise RemoteWireError(f"pages_alloc {pages_alloc}, at most {geometry.page_count}", offset=12)
    if normal_pages > pages_alloc:
        raise RemoteWireError(f"normal_pages {normal_pages}, at most {pages_alloc}", offset=16)
    if zero_pages > pages_alloc - normal_pages:
        raise RemoteWireError(f"zero_pages {zero_pages}, at most {pages_alloc - normal_pages}", offset=32)
    return Counts(flags, packet_num, normal_pages, zero_pages, next_packet_size)


def recode_header(header: bytearray | memoryview, code: int, payload_bytes: int) -> None:
    """Make a valid header that of the same pages by another method, in place: flags and size change.

    Args:
        header: of a packet with pages, from `decode_counts`; everything else in it stays.
        code: the other method's.
        payload_bytes: of the other method's payload, 0 if there are no normal pages.
    """
    (flags,) = _U32.unpack_from(header, 8)
    _U32.pack_into(header, 8, flags & ~METHOD_MASK | code)
    _U32.pack_into(header, 20, payload_bytes)


def decode_packet(header: bytearray | memoryview, geometry: Geometry, blocks: Mapping[str, int]) -> Packet:
    """Validate a whole header. The checks are QEMU 10.0's and alignment; nothing of `header` is kept.

    Args:
        header: `header_bytes` bytes.
        geometry: the migration's.
        blocks: names of the RAM blocks to their used_length in bytes.

    Raises:
        RemoteWireError: any field that cannot be.
    """
    flags, packet_num, normal_pages, zero_pages, next_packet_size = decode_counts(header, geometry)
    count = normal_pages + zero_pages
    if not count:
        # Up to 8.1 size, block and offsets are the previous packet's: tests/wire/test_packet.py.
        return Packet(flags, packet_num, "", NO_OFFSETS, NO_OFFSETS, 0)
    ramblock = bytes(header[_NAME]).partition(b"\0")[0].decode("ascii", "backslashreplace")
    used_length = blocks.get(ramblock)
    if used_length is None:
        known = ", ".join(blocks) or "none"
        raise RemoteWireError(f"pages of unknown block {ramblock!r} (known: {known})", offset=64)
    unsigned = np.frombuffer(header, ">u8", count, _HEADER.size).astype(np.uint64)
    limit, low_bits = used_length - geometry.page_size, geometry.page_size - 1
    if int(np.maximum.reduce(unsigned)) > limit or int(np.bitwise_or.reduce(unsigned)) & low_bits:
        i = next(i for i, offset in enumerate(unsigned.tolist()) if offset > limit or offset & low_bits)
        raise RemoteWireError(
            f"page offset {int(unsigned[i]):#x} in block {ramblock!r} of {used_length:#x} bytes, "
            f"expected a multiple of {geometry.page_size} inside it",
            offset=_HEADER.size + 8 * i,
        )
    offsets = unsigned.view(np.int64)
    size = next_packet_size if normal_pages else 0
    return Packet(flags, packet_num, ramblock, offsets[:normal_pages], offsets[normal_pages:], size)


class PacketEncoder:
    """Fills headers in one buffer that belongs to a channel; not for two threads."""

    def __init__(self, geometry: Geometry) -> None:
        self._header = bytearray(header_bytes(geometry))
        self._view = memoryview(self._header)
        self._offsets = np.frombuffer(self._header, ">u8", offset=_HEADER.size)
        self._page_count = geometry.page_count
        self._names: dict[str, bytes] = {}

    def data(
        self, code: int, packet_num: int, ramblock: str, normal: Offsets, zero: Offsets, payload_bytes: int
    ) -> memoryview:
        """A data packet's header, valid until the next call.

        Raises:
            LocalWireError: more pages or bytes than a packet holds, or a block name that does not fit.
        """
        used, count = len(normal), len(normal) + len(zero)
        name = self._names.get(ramblock)
        if name is None:
            if not ramblock.isascii() or len(ramblock) > 255:
                raise LocalWireError(f"block name {ramblock!r}, expected at most 255 bytes of ASCII")
            name = self._names[ramblock] = ramblock.encode("ascii")
        if count > self._page_count or code & ~METHOD_MASK or not 0 <= payload_bytes <= 0xFFFFFFFF:
            raise LocalWireError(
                f"{count} pages of block {ramblock!r}, code {code:#x}, {payload_bytes} bytes, in one packet"
            )
        _HEADER.pack_into(
            self._header, 0, MAGIC, VERSION, code, self._page_count, used, payload_bytes, packet_num,
            len(zero), 0, name,
        )  # fmt: skip
        self._offsets[:used] = normal
        if count > used:
            self._offsets[used:count] = zero
        if count < self._page_count:
            self._offsets[count:] = 0
        return self._view

    def sync(self, packet_num: int) -> memoryview:
        """A SYNC packet: its own packet, all other fields zero, as QEMU 10.0 sends it."""
        self._offsets[:] = 0
        _HEADER.pack_into(self._header, 0, MAGIC, VERSION, FLAG_SYNC, 0, 0, 0, packet_num, 0, 0, b"")
        return self._view
