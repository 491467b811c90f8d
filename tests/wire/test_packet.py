"""The channels' wire: every byte against tables, everything a peer can get wrong, both ways."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import peer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifd.errors import LocalWireError, RemoteWireError
from multifd.pages import Geometry
from multifd.wire import dialect, packet
from multifd.wire.packet import InitPacket, PacketEncoder, check_prefix, decode_packet, header_bytes

PAGE = peer.PAGE
GEOMETRY = Geometry.of(PAGE)
SMALL = Geometry(page_size=65536, page_count=8)
BLOCKS = {"ram": 1024 * PAGE, "vga": 4 * PAGE}
UUID = bytes(range(16))


def offsets(*pages: int) -> np.ndarray:
    return np.array(pages, np.int64) * PAGE


def decode(data: bytes, blocks=BLOCKS, geometry=GEOMETRY):
    return decode_packet(bytearray(data), geometry, blocks)


def shape(packet):
    return (
        packet.flags, packet.packet_num, packet.ramblock, packet.normal.tolist(), packet.zero.tolist(),
        packet.next_packet_size,
    )  # fmt: skip


class TestInit:
    @pytest.mark.parametrize(
        ("init", "expected"),
        [
            (InitPacket(0), "11223344 00000001" + "00" * 56),
            (InitPacket(3, UUID), "11223344 00000001 000102030405060708090a0b0c0d0e0f 03" + "00" * 39),
            (
                InitPacket(1, bytes(16), 4, 2, "zstd"),
                "11223344 00000001" + "00" * 16 + "01 04 02" + "00" * 5 + "7a737464" + "00" * 28,
            ),
            (
                InitPacket(254, bytes(16), 255, 255, "x" * 31),
                "11223344 00000001" + "00" * 16 + "fe ff ff" + "00" * 5 + "78" * 31 + "00",
            ),
        ],
    )
    def test_bytes(self, init, expected):
        data = bytes.fromhex(expected)
        assert len(data) == packet.INIT_BYTES == 64
        assert init.encode() == data
        assert InitPacket.decode(data) == init

    def test_written_by_someone_else(self):
        init = InitPacket.decode(peer.init(2, channels=3, version=7, name=b"lz4"))
        assert init == InitPacket(2, bytes(16), 3, 7, "lz4")

    def test_unused_bytes_are_ignored(self):
        data = bytearray(peer.init(2))
        data[27:32] = b"\xff" * 5
        assert InitPacket.decode(data) == InitPacket(2)

    @pytest.mark.parametrize(
        ("at", "data", "words", "offset"),
        [
            (0, b"QEVM", "magic 0x5145564d, expected 0x11223344", 0),
            (4, struct.pack(">I", 2), "version 2, expected 1", 4),
            (24, b"\xff", "channel id 255, at most 254", 24),
            (25, b"\x02", "channel id 2 with 2 channels", 24),
            (32, b"a\0b", "NUL-padded", 32),
            (32, b"\xff", "NUL-padded", 32),
            (32, b"a\nb", "NUL-padded", 32),
            (32, b"a" * 32, "NUL-padded", 32),
        ],
    )
    def test_refused(self, at, data, words, offset):
        init = bytearray(peer.init(2))
        init[at : at + len(data)] = data
        with pytest.raises(RemoteWireError, match=words) as caught:
            InitPacket.decode(init)
        assert caught.value.offset == offset

    @pytest.mark.parametrize(
        "init",
        [
            InitPacket(-1), InitPacket(255), InitPacket(0, channels=256), InitPacket(0, wire_version=256),
            InitPacket(0, wire_version=-1), InitPacket(0, method="x" * 32), InitPacket(0, uuid=bytes(15)),
            InitPacket(0, uuid=bytes(17)), InitPacket(0, method="é"),
        ],
    )  # fmt: skip
    def test_does_not_emit(self, init):
        with pytest.raises(LocalWireError, match="cannot announce"):
            init.encode()

    @given(
        st.builds(
            InitPacket,
            st.integers(0, 254),
            st.binary(min_size=16, max_size=16),
            st.just(255),
            st.integers(0, 255),
            st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=31),
        )
    )
    def test_round_trip(self, init):
        assert InitPacket.decode(init.encode()) == init

    def test_every_truncation(self):
        data = peer.init(1, channels=2, version=1, name=b"zstd")
        for cut in (*range(64), 65):
            with pytest.raises(RemoteWireError):
                InitPacket.decode((data + b"\0")[:cut])

    def test_every_flipped_bit(self):
        data = bytearray(peer.init(1, channels=2, version=1, name=b"zstd"))
        refused = 0
        for bit in range(8 * len(data)):
            data[bit // 8] ^= 1 << bit % 8
            try:
                assert isinstance(InitPacket.decode(data), InitPacket)
            except RemoteWireError:
                refused += 1
            data[bit // 8] ^= 1 << bit % 8
        assert refused > 64  # magic and version alone


class TestHeader:
    @pytest.mark.parametrize(
        ("page_size", "nbytes"), [(4096, 1344), (8192, 832), (16384, 576), (32768, 448), (65536, 384)]
    )
    def test_length_is_that_of_a_full_packet(self, page_size, nbytes):
        geometry = Geometry.of(page_size)
        assert header_bytes(geometry) == nbytes
        assert len(PacketEncoder(geometry).sync(0)) == nbytes

    def test_bytes_of_data(self):
        header = PacketEncoder(GEOMETRY).data(0x04, 7, "ram", offsets(1, 5), offsets(2), 1000)
        expected = bytes.fromhex(
            "11223344 00000001 00000004"  # magic, version, flags: zstd
            "00000080 00000002 000003e8"  # pages_alloc, normal_pages, next_packet_size
            "0000000000000007"  # packet_num
            "00000001 00000000"  # zero_pages, unused
            + "00" * 24 + "72616d" + "00" * 253 + "0000000000001000 0000000000005000 0000000000002000" + "00" * 8 * 125
        )  # fmt: skip
        assert bytes(header) == expected

    def test_bytes_of_sync(self):
        header = bytes(PacketEncoder(GEOMETRY).sync(9))
        assert header == bytes.fromhex("11223344 00000001 00000001" + "00" * 12 + "0000000000000009") + bytes(1312)

    def test_no_trace_of_the_packet_before(self):
        encoder = PacketEncoder(GEOMETRY)
        full = offsets(*range(100))
        encoder.data(0x3E, 1, "a longer name", full, offsets(*range(100, 128)), 12345)
        assert bytes(encoder.data(0, 2, "ram", offsets(3), offsets(), PAGE)) == peer.packet(
            [3 * PAGE], size=PAGE, number=2
        )
        encoder.data(0x3E, 3, "ram", full, offsets(), 12345)
        assert shape(decode(encoder.sync(4))) == (1, 4, "", [], [], 0)
        assert not any(encoder.sync(4)[32:])

    def test_decodes_what_someone_else_wrote(self):
        packet = decode(peer.packet([PAGE, 0], b"xyz", flags=2, zero=[3 * PAGE], block=b"vga", number=1 << 63)[:1344])
        assert shape(packet) == (2, 1 << 63, "vga", [PAGE, 0], [3 * PAGE], 3)
        assert packet.normal.dtype == packet.zero.dtype == np.int64
        assert (packet.is_sync, packet.code) == (False, 2)

    def test_keeps_nothing_of_the_buffer(self):
        header = bytearray(peer.packet([PAGE], size=1, zero=[0]))
        packet = decode_packet(header, GEOMETRY, BLOCKS)
        header[:] = b"\xff" * len(header)
        assert shape(packet) == (0, 1, "ram", [PAGE], [0], 1)

    def test_sync_may_carry_pages(self):
        """QEMU up to 8.2 lets SYNC ride on the last data packet."""
        packet = decode(peer.packet([PAGE], size=11, flags=1 | 4))
        assert (packet.is_sync, packet.code, packet.normal.tolist(), packet.next_packet_size) == (True, 4, [PAGE], 11)

    @pytest.mark.parametrize("flags", [0, 1])
    @pytest.mark.parametrize("block", [b"ram", b"gone", b"\xff" * 256])
    def test_stale_fields(self, flags, block):
        """QEMU up to 8.1 leaves size, block and offsets of the packet before in one without pages.

        The values are those of a channel of QEMU 7.2.22: flags 1, normal 0, next_packet_size 113398, no payload.
        """
        stale = bytearray(peer.packet([], flags=flags, size=113398, block=block))
        stale[320:] = b"\xff" * 1024
        assert shape(decode(stale)) == (flags, 1, "", [], [], 0)

    def test_stale_size_of_zero_pages(self):
        assert shape(decode(peer.packet([], flags=2, zero=[PAGE], size=4711))) == (2, 1, "ram", [], [PAGE], 0)

    def test_offsets_behind_the_counted_ones_are_ignored(self):
        data = bytearray(peer.packet([PAGE], size=1))
        data[328:] = b"\xff" * 1016
        assert shape(decode(data)) == (0, 1, "ram", [PAGE], [], 1)

    @pytest.mark.parametrize(
        ("data", "words", "offset"),
        [
            (b"QEVM" + bytes(1340), "magic 0x5145564d", 0),
            (struct.pack(">II", 0x11223344, 2) + bytes(1336), "version 2", 4),
            (peer.packet([], flags=0x40), "device-state packet", 8),
            (peer.packet([], flags=0x41), "device-state packet", 8),
            (peer.packet([], flags=0x80), "unknown flags", 8),
            (peer.packet([], flags=1 << 31), "unknown flags", 8),
            (peer.packet([], alloc=129), "pages_alloc 129, at most 128", 12),
            (peer.packet([], alloc=0xFFFFFFFF), "pages_alloc 4294967295", 12),
            (peer.packet([0, PAGE], alloc=1), "normal_pages 2, at most 1", 16),
            (peer.packet([0], zero=[PAGE], alloc=1), "zero_pages 1, at most 0", 32),
            (peer.packet([0], block=b"rom"), r"unknown block 'rom' \(known: ram, vga\)", 64),
            (peer.packet([0], block=b""), "unknown block ''", 64),
            (peer.packet([0], block=b"ram" + b"x" * 253), "unknown block 'ramxxx", 64),
            (peer.packet([0], block=b"\xff"), r"unknown block '\\\\xff'", 64),
            (peer.packet([0, 4 * PAGE], block=b"vga"), "page offset 0x4000 in block 'vga' of 0x4000 bytes", 328),
            (peer.packet([0], zero=[0, 4 * PAGE], block=b"vga"), "page offset 0x4000", 336),
            (peer.packet([PAGE + 1]), "page offset 0x1001", 320),
            (peer.packet([(1 << 64) - PAGE]), "page offset 0xfffffffffffff000", 320),
            (peer.packet([1 << 63]), "page offset 0x8000000000000000", 320),
        ],
    )  # fmt: skip
    def test_refused(self, data, words, offset):
        with pytest.raises(RemoteWireError, match=words) as caught:
            decode(data)
        assert caught.value.offset == offset

    def test_counts_do_not_wrap(self):
        data = bytearray(peer.packet([0]))
        struct.pack_into(">I", data, 32, 0xFFFFFFFF)
        with pytest.raises(RemoteWireError, match="zero_pages 4294967295, at most 127"):
            decode(data)

    def test_no_page_fits_a_block_smaller_than_one(self):
        with pytest.raises(RemoteWireError, match="page offset"):
            decode(peer.packet([0]), {"ram": PAGE - 1})

    def test_prefix_is_enough_to_refuse(self):
        prefix = bytearray(peer.packet([], flags=0x40)[: packet.PREFIX_BYTES])
        with pytest.raises(RemoteWireError, match="device-state"):
            check_prefix(prefix)
        check_prefix(bytearray(peer.sync()[: packet.PREFIX_BYTES]))

    def test_a_full_packet(self):
        normal, zero = offsets(*range(0, 200, 2)), offsets(*range(1, 57, 2))
        packet = decode(PacketEncoder(GEOMETRY).data(0, 1, "ram", normal, zero, 100 * PAGE))
        assert shape(packet) == (0, 1, "ram", normal.tolist(), zero.tolist(), 100 * PAGE)

    @pytest.mark.parametrize(
        ("code", "block", "normal", "nbytes"),
        [
            (0, "ram", 129, 0), (0, "x" * 256, 1, 0), (1, "ram", 1, 0), (0x40, "ram", 1, 0), (0, "ramé", 1, 0),
            (0, "ram", 1, 1 << 32), (0, "ram", 1, -1),
        ],
    )  # fmt: skip
    def test_does_not_emit(self, code, block, normal, nbytes):
        with pytest.raises(LocalWireError):
            PacketEncoder(GEOMETRY).data(code, 1, block, offsets(*range(normal)), offsets(), nbytes)

    @given(
        code=st.integers(0, 31).map(lambda bits: bits << 1),
        number=st.integers(0, (1 << 64) - 1),
        block=st.sampled_from(sorted(BLOCKS)),
        pages=st.lists(st.integers(0, 3), max_size=128),
        zeros=st.integers(0, 128),
        nbytes=st.integers(0, (1 << 32) - 1),
    )
    def test_round_trip(self, code, number, block, pages, zeros, nbytes):
        split = max(0, len(pages) - zeros)
        normal, zero = offsets(*pages[:split]), offsets(*pages[split:])
        packet = decode(PacketEncoder(GEOMETRY).data(code, number, block, normal, zero, nbytes))
        expected = (block, normal.tolist(), zero.tolist(), nbytes if split else 0)
        assert shape(packet) == (code, number, *(expected if pages else ("", [], [], 0)))


class TestDamage:
    HEADER = bytes(PacketEncoder(SMALL).data(0x02, 3, "ram", np.array([0, 65536]), np.array([131072]), 999))
    BLOCKS = {"ram": 8 * 65536}  # noqa: RUF012

    def test_every_truncation(self):
        for cut in range(len(self.HEADER)):
            with pytest.raises(RemoteWireError):
                decode(self.HEADER[:cut], self.BLOCKS, SMALL)
            with pytest.raises(RemoteWireError):
                decode(bytes(PacketEncoder(SMALL).sync(1))[:cut], self.BLOCKS, SMALL)
        for cut in range(packet.PREFIX_BYTES):
            with pytest.raises(RemoteWireError):
                check_prefix(bytearray(self.HEADER[:cut]))

    def test_every_flipped_bit(self):
        data = bytearray(self.HEADER)
        refused = 0
        for bit in range(8 * len(data)):
            data[bit // 8] ^= 1 << bit % 8
            try:
                self.check(decode_packet(data, SMALL, self.BLOCKS))
            except RemoteWireError:
                refused += 1
            data[bit // 8] ^= 1 << bit % 8
        # magic, version, the flags that are none, and of three offsets all bits but the page number's
        assert refused > 64 + 24 + 3 * 61

    @given(st.binary(min_size=12, max_size=52), st.binary(max_size=64))
    def test_any_fields(self, fields, tail):
        data = bytearray(self.HEADER)
        data[8 : 8 + len(fields)] = fields
        data[320 : 320 + len(tail)] = tail
        with contextlib.suppress(RemoteWireError):
            self.check(decode_packet(data, SMALL, self.BLOCKS))

    def check(self, packet):
        """Whatever is let through can be used without another look."""
        assert len(packet.normal) + len(packet.zero) <= SMALL.page_count
        for part in (packet.normal, packet.zero):
            assert part.dtype == np.int64
            assert all(0 <= o <= self.BLOCKS[packet.ramblock] - 65536 and o % 65536 == 0 for o in part.tolist())
        assert 0 <= packet.next_packet_size < 1 << 32
        assert packet.flags & ~0x3F == 0


def test_dialects():
    """What each release's machine type forces; the newest is the default."""
    assert [(d.name, d.flush_words, d.zero_pages_in_packets) for d in dialect.DIALECTS.values()] == [
        ("9.0", True, True),
        ("8.1", True, False),
        ("7.2", False, False),
    ]
    assert all(name == d.name for name, d in dialect.DIALECTS.items())
