"""The multifd wire: tables of bytes written by hand, then properties."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifd.errors import LocalWireError, MultifdError, RemoteWireError
from multifd.method import Geometry
from multifd.wire import (
    DIALECTS,
    INIT_BYTES,
    NO_OFFSETS,
    PREFIX_BYTES,
    InitPacket,
    Packet,
    PacketEncoder,
    check_prefix,
    decode_packet,
    header_bytes,
)

GEOMETRY = Geometry.of(4096)
BLOCKS = {"pc.ram": 0x800000, "pc.bios": 0x2000}


def offsets(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def header(
    *, magic: int = 0x11223344, version: int = 1, flags: int = 0, alloc: int = 128, normal: int = 0, size: int = 0,
    number: int = 0, zero: int = 0, name: bytes = b"pc.ram", pages: tuple[int, ...] = (),
) -> bytearray:  # fmt: skip
    """A header as the table of MultiFDPacket_t says, field by field."""
    out = b"".join(n.to_bytes(4, "big") for n in (magic, version, flags, alloc, normal, size))
    out += number.to_bytes(8, "big") + zero.to_bytes(4, "big") + bytes(4 + 24) + name.ljust(256, b"\0")
    assert len(out) == 320
    return bytearray(out + b"".join(p.to_bytes(8, "big") for p in pages).ljust(128 * 8, b"\0"))


@pytest.mark.parametrize(("page_size", "expected"), [(4096, 1344), (8192, 832), (16384, 576), (65536, 384)])
def test_header_is_always_full_length(page_size: int, expected: int) -> None:
    assert header_bytes(Geometry.of(page_size)) == expected


# -- init packet -----------------------------------------------------------------------------------

QEMU_INIT = bytes.fromhex("11223344 00000001") + bytes(range(16)) + b"\x03" + bytes(39)
OUR_INIT = bytes.fromhex("11223344 00000001") + bytes(16) + b"\x01\x04\x02" + bytes(5) + b"zstd".ljust(32, b"\0")


@pytest.mark.parametrize(
    ("data", "packet"),
    [
        (QEMU_INIT, InitPacket(3, bytes(range(16)))),
        (OUR_INIT, InitPacket(1, channels=4, wire_version=2, method="zstd")),
    ],
)
def test_init_packet_bytes(data: bytes, packet: InitPacket) -> None:
    assert len(data) == INIT_BYTES == 64
    assert packet.encode() == data
    assert InitPacket.decode(data) == packet


@pytest.mark.parametrize(
    ("at", "value", "offset"),
    [
        (0, b"\x12", 0),  # magic
        (7, b"\x02", 4),  # version
        (24, b"\x04", 24),  # id 4 of 4
        (63, b"x", 32),  # 32 bytes of name
        (32, b"\xff", 32),  # not ASCII
        (33, b"\n", 32),  # not printable
        (32, b"\0", 32),  # not NUL-padded
    ],
)
def test_init_packet_damaged(at: int, value: bytes, offset: int) -> None:
    data = bytearray(OUR_INIT)
    data[at : at + 1] = value
    if at == 63:
        data[32:64] = b"x" * 32
    with pytest.raises(RemoteWireError) as caught:
        InitPacket.decode(data)
    assert caught.value.offset == offset


@pytest.mark.parametrize(
    "packet", [InitPacket(255), InitPacket(-1), InitPacket(0, channels=256), InitPacket(0, method="m" * 32)]
)
def test_init_packet_that_does_not_fit(packet: InitPacket) -> None:
    with pytest.raises(LocalWireError):
        packet.encode()


@given(
    st.integers(1, 255),
    st.integers(0, 254),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 255),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=31),
)
def test_init_packet_round_trip(channels: int, id: int, uuid: bytes, wire_version: int, method: str) -> None:
    packet = InitPacket(min(id, channels - 1), uuid, channels, wire_version, method)
    assert InitPacket.decode(packet.encode()) == packet


# -- headers: what must be accepted ------------------------------------------------------------------


def test_data_packet() -> None:
    data = header(flags=4, normal=2, size=77, number=9, zero=1, pages=(0x1000, 0x7FF000, 0))
    packet = decode_packet(data, GEOMETRY, BLOCKS)
    assert (packet.flags, packet.packet_num, packet.ramblock, packet.next_packet_size) == (4, 9, "pc.ram", 77)
    assert packet.normal.tolist() == [0x1000, 0x7FF000]
    assert packet.zero.tolist() == [0]
    assert packet.code == 4
    assert not packet.is_sync


def test_stale_fields() -> None:
    """QEMU 7.2 sends SYNC with the size, block and offsets of the packet before it, and no payload."""
    data = header(flags=1, size=113398, name=b"gone", pages=(1, 2, 3))
    packet = decode_packet(data, GEOMETRY, BLOCKS)
    assert packet.is_sync
    assert packet.next_packet_size == 0
    assert len(packet.normal) == len(packet.zero) == 0


def test_sync_of_qemu_10_is_all_zero() -> None:
    data = header(flags=1, alloc=0, number=5, name=b"")
    assert decode_packet(data, GEOMETRY, {}).is_sync
    assert bytes(PacketEncoder(GEOMETRY).sync(5)) == bytes(data)


def test_sync_on_a_data_packet() -> None:
    """QEMU up to 8.2."""
    packet = decode_packet(header(flags=3, normal=1, size=10), GEOMETRY, BLOCKS)
    assert packet.is_sync
    assert packet.code == 2
    assert packet.next_packet_size == 10


def test_only_zero_pages_have_no_payload() -> None:
    packet = decode_packet(header(flags=2, zero=2, size=999, pages=(0, 4096)), GEOMETRY, BLOCKS)
    assert packet.next_packet_size == 0
    assert packet.zero.tolist() == [0, 4096]


def test_full_packet() -> None:
    pages = tuple(range(0, 128 * 4096, 4096))
    assert len(decode_packet(header(normal=128, pages=pages), GEOMETRY, BLOCKS).normal) == 128


def test_nothing_of_the_header_is_kept() -> None:
    data = header(normal=1, zero=1, pages=(0x1000, 0x2000))
    packet = decode_packet(data, GEOMETRY, BLOCKS)
    data[:] = b"\xff" * len(data)
    assert packet.normal.tolist() == [0x1000]
    assert packet.zero.tolist() == [0x2000]


# -- headers: what must not ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "offset", "says"),
    [
        (header(magic=0x44332211), 0, "magic"),
        (header(version=2), 4, "version"),
        (header(flags=0x40), 8, "device-state"),
        (header(flags=0x80), 8, "flags"),
        (header(flags=1 << 31), 8, "flags"),
        (header(alloc=129), 12, "pages_alloc"),
        (header(alloc=2, normal=3), 16, "normal_pages"),
        (header(normal=129), 16, "normal_pages"),
        (header(normal=100, zero=29), 32, "zero_pages"),
        (header(zero=(1 << 32) - 1), 32, "zero_pages"),
        (header(normal=1, name=b"pc.rom"), 64, "'pc.rom'"),
        (header(zero=1, name=b""), 64, "''"),
        (header(normal=1, name=b"n" * 256), 64, "unknown block"),
        (header(normal=1, name=b"\xff"), 64, "unknown block"),
        (header(normal=1, pages=(0x800000,)), 320, "0x800000"),
        (header(normal=1, zero=1, pages=(0, 0x800000)), 328, "0x800000"),
        (header(normal=1, pages=(1,)), 320, "multiple of 4096"),
        (header(normal=2, pages=(0, 0x7FF001)), 328, "0x7ff001"),
        (header(normal=1, pages=(1 << 63,)), 320, "0x8000000000000000"),
        (header(normal=1, pages=((1 << 64) - 4096,)), 320, "0xfffffffffffff000"),
    ],
)
def test_damaged_header(data: bytearray, offset: int, says: str) -> None:
    data = bytearray(data[: header_bytes(GEOMETRY)])
    with pytest.raises(RemoteWireError, match=says) as caught:
        decode_packet(data, GEOMETRY, BLOCKS)
    assert caught.value.offset == offset


def test_device_state_is_seen_in_the_first_bytes() -> None:
    with pytest.raises(RemoteWireError, match="device-state"):
        check_prefix(header(flags=0x40)[:PREFIX_BYTES])
    check_prefix(header(flags=0x3F)[:PREFIX_BYTES])


@given(st.binary(min_size=1344, max_size=1344))
def test_any_bytes_never_crash(data: bytes) -> None:
    with pytest.raises(RemoteWireError):
        decode_packet(bytearray(data), GEOMETRY, BLOCKS)


@given(st.integers(0, 1344 * 8 - 1), st.integers(0, 1344 * 8 - 1))
def test_flipped_bits_never_crash(first: int, second: int) -> None:
    data = header(flags=2, normal=2, zero=1, size=50, pages=(0, 4096, 8192))
    for bit in {first, second}:
        data[bit // 8] ^= 1 << bit % 8
    try:
        packet = decode_packet(data, GEOMETRY, BLOCKS)
    except RemoteWireError:
        return
    inside = [*packet.normal.tolist(), *packet.zero.tolist()]
    assert all(0 <= o <= BLOCKS[packet.ramblock] - 4096 and o % 4096 == 0 for o in inside)
    assert len(inside) <= 128


# -- encoder ---------------------------------------------------------------------------------------


def test_encoder_bytes() -> None:
    encoder = PacketEncoder(GEOMETRY)
    encoder.data(2, 1, "pc.bios", offsets(*range(0, 128 * 4096, 4096)), NO_OFFSETS, 999)
    got = encoder.data(4, 9, "pc.ram", offsets(0x1000, 0x7FF000), offsets(0), 77)
    assert bytes(got) == bytes(header(flags=4, normal=2, size=77, number=9, zero=1, pages=(0x1000, 0x7FF000, 0)))


def test_encoder_leaves_nothing_in_a_sync() -> None:
    encoder = PacketEncoder(GEOMETRY)
    encoder.data(4, 1, "pc.ram", offsets(0x1000), offsets(0x2000), 77)
    assert bytes(encoder.sync(2)) == bytes(header(flags=1, alloc=0, number=2, name=b""))


@pytest.mark.parametrize(
    ("code", "name", "pages"), [(0, "pc.ram", 129), (0, "n" * 256, 1), (1, "pc.ram", 1), (0x40, "pc.ram", 1)]
)
def test_encoder_refuses(code: int, name: str, pages: int) -> None:
    with pytest.raises(LocalWireError):
        PacketEncoder(GEOMETRY).data(code, 0, name, np.arange(pages, dtype=np.int64) * 4096, NO_OFFSETS, 0)


@given(
    st.sampled_from([0, 2, 4, 8, 16, 32, 0x3E]),
    st.integers(0, (1 << 64) - 1),
    st.lists(st.integers(0, 2047), unique=True, max_size=128),
    st.integers(0, 128),
    st.integers(0, (1 << 32) - 1),
)
def test_round_trip(code: int, number: int, pages: list[int], cut: int, size: int) -> None:
    both = offsets(*pages) * 4096
    normal, zero = both[:cut], both[cut:]
    data = PacketEncoder(GEOMETRY).data(code, number, "pc.ram", normal, zero, size)
    packet = decode_packet(data, GEOMETRY, BLOCKS)
    assert isinstance(packet, Packet)
    assert (packet.code, packet.packet_num) == (code, number)
    assert packet.normal.tolist() == normal.tolist()
    assert packet.zero.tolist() == zero.tolist()
    assert packet.next_packet_size == (size if len(normal) else 0)


def test_dialects() -> None:
    """Each capability came with a release and stayed; the newest is the default."""
    assert next(iter(DIALECTS)) == "9.0"
    table = {name: (d.flush_words, d.zero_pages_in_packets) for name, d in DIALECTS.items()}
    assert table == {"9.0": (True, True), "8.1": (True, False), "7.2": (False, False)}


def test_struct_of_the_field_names() -> None:
    """The offsets that error messages give are those of the table."""
    data = PacketEncoder(GEOMETRY).data(4, 0x0102030405060708, "pc.ram", offsets(0x1000), NO_OFFSETS, 0x0A0B0C0D)
    assert struct.unpack_from(">I", data, 20)[0] == 0x0A0B0C0D
    assert struct.unpack_from(">Q", data, 24)[0] == 0x0102030405060708
    assert issubclass(RemoteWireError, MultifdError)
