"""Mapped-ram files: every byte of what is written, everything a file can get wrong, against a layout built here."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import make_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import file_size_limit
from mapped_files import DEVICES, MIB, PAGE, VMDESC_TEXT, build

from multifd.errors import RamError
from multifd.pages import Geometry
from multifd.ram import capture
from multifd.ram.block import Staging
from multifd.ram.export import export
from multifd.ram.mapped_source import MappedRamSource
from multifd.ram.mapped_target import MappedRamTarget
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.wire.stream import NO_UUID, Block, Machine

UUID = bytes(range(16))
IMAGE = make_image(70, 3)

VMDESC_BYTES = 5 + len(VMDESC_TEXT)


def write(
    path: Path, blocks: list[tuple[bytes, bytes]], *, name: str = "pc-q35-9.0", page: int = PAGE, uuid: bytes = NO_UUID,
    from_channels: bytes = NO_UUID, ram_id: int = 1, devices: bytes = DEVICES,
) -> None:  # fmt: skip
    """What `MappedRamTarget` makes of it, every other page in a call."""
    listed = tuple(Block(n.decode(), len(data)) for n, data in blocks)
    target = MappedRamTarget(path)
    try:
        places = target.allocate(Machine(name, page, listed, uuid, ram_id))
        staging = Staging(Geometry.of(page))
        for n, data in blocks:
            block = places[n.decode()]
            held = [o for o in range(0, len(data), page) if any(data[o : o + page])]
            for offsets in (held[::2], held[1::2]):
                for at in range(0, len(offsets), 8):
                    some = np.array(offsets[at : at + 8], np.int64)
                    block.place(some, staging).scatter(b"".join(data[o : o + page] for o in some.tolist()))
                    block.store(some, staging)
        for at in range(0, len(devices), 7):
            target.add_device_state(devices[at : at + 7])
        target.flush()
        target.commit(from_channels)
    finally:
        target.discard()


def read(path: Path) -> tuple[Machine, dict[str, bytes], bytes]:
    """Machine, blocks and device state, as a sender gets them."""
    with contextlib.closing(MappedRamSource(path)) as source:
        page = source.machine.page_size
        staging, blocks = Staging(Geometry.of(page)), {}
        for block in source.blocks:
            data, seen = bytearray(block.used_length), set()
            for offsets in block.portions(8):
                assert 0 < len(offsets) <= 8
                assert not seen & set(offsets.tolist())
                seen |= set(offsets.tolist())
                pages = block.load(offsets, staging)
                for i, offset in enumerate(offsets.tolist() if pages is not None else []):
                    data[offset : offset + page] = list(pages)[i]
                mapped = block.map(offsets, staging)
                assert mapped is not None
                if pages is None:
                    assert mapped.views == []
                    assert mapped.zero_mask is not None
                    assert mapped.zero_mask.all()
                else:
                    assert mapped.zero_mask is None
                    assert b"".join(mapped.views) == b"".join(pages)
            assert len(seen) == block.used_length // page
            blocks[block.idstr] = bytes(data)
        return source.machine, blocks, b"".join(source.device_state())


TWO = [(b"pc.ram", IMAGE), (b"0000:00:02.0/vga.vram", bytes(3 * PAGE) + b"v" * PAGE)]


class TestWrites:
    @pytest.mark.parametrize("blocks", [[(b"ram", IMAGE)], TWO, [(b"%d" % i, b"x" * PAGE) for i in range(4)]])
    def test_bytes(self, tmp_path, blocks):
        write(tmp_path / "f", blocks)
        assert (tmp_path / "f").read_bytes() == build(blocks)

    @pytest.mark.parametrize("page", [4096, 8192, 16384, 32768, 65536])
    def test_page_sizes(self, tmp_path, page):
        blocks = [(b"ram", make_image(65 * page // PAGE, 5)), (b"rom", b"r" * page)]
        write(tmp_path / "f", blocks, page=page)
        assert (tmp_path / "f").read_bytes() == build(blocks, page=page)
        assert read(tmp_path / "f")[1] == {n.decode(): data for n, data in blocks}

    def test_uuid_of_the_configuration(self, tmp_path):
        write(tmp_path / "f", TWO, uuid=UUID, from_channels=bytes(16), ram_id=7)
        assert (tmp_path / "f").read_bytes() == build(TWO, uuid=UUID, ram_id=7)

    def test_uuid_of_the_channels(self, tmp_path):
        """QEMU puts it into the configuration only with validate-uuid; a replay needs it always."""
        write(tmp_path / "f", TWO, from_channels=UUID)
        assert (tmp_path / "f").read_bytes() == build(TWO, uuid=UUID)
        assert read(tmp_path / "f")[0].uuid == UUID

    @pytest.mark.parametrize("pages", [1, 63, 64, 65, 8 * 4096, 8 * (MIB - 200), 8 * (MIB - 150)])
    def test_alignment(self, tmp_path, pages):
        """Also where the bitmap, or the room for a uuid, just fits in front of the pages."""
        target = MappedRamTarget(tmp_path / "f")
        target.allocate(Machine("pc-i440fx-9.0", PAGE, (Block("a", pages * PAGE), Block("b", PAGE))))
        target.add_device_state(DEVICES)
        target.commit(UUID)
        with (tmp_path / "f").open("rb") as file:
            head = file.read(200)
            at = head.index(b"\x01a" + struct.pack(">Q", pages * PAGE)) + 10
            _, _, bitmap_at, pages_at = struct.unpack_from(">IQQQ", head, at)
            assert bitmap_at == at + 28
            assert pages_at % MIB == 0
            assert pages_at >= bitmap_at + (pages + 63) // 64 * 8
            file.seek(pages_at + pages * PAGE)
            assert file.read(2) == b"\x01b"
        assert capture.verify(tmp_path / "f").uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"
        assert (tmp_path / "f").stat().st_blocks * 512 < 4 * MIB

    def test_a_page_that_became_zero(self, tmp_path):
        target = MappedRamTarget(tmp_path / "f")
        block = target.allocate(Machine("none", PAGE, (Block("ram", 4 * PAGE),)))["ram"]
        staging, all_pages = Staging(Geometry.of(PAGE)), np.arange(4, dtype=np.int64) * PAGE
        block.place(all_pages, staging).scatter(b"x" * 4 * PAGE)
        block.store(all_pages, staging)
        block.clear(all_pages[1:3])
        block.place(all_pages[2:3], staging).scatter(b"y" * PAGE)
        block.store(all_pages[2:3], staging)
        target.add_device_state(DEVICES)
        target.commit(NO_UUID)
        assert read(tmp_path / "f")[1] == {"ram": b"x" * PAGE + bytes(PAGE) + b"y" * PAGE + b"x" * PAGE}
        assert capture.info(tmp_path / "f").blocks[0].present_pages == 3

    def test_without_a_name(self, tmp_path):
        """Machine types up to 2.3 have no configuration: no place for page size, capability and uuid either."""
        write(tmp_path / "f", [(b"ram", IMAGE)], name="", ram_id=2, from_channels=UUID)
        assert (tmp_path / "f").read_bytes() == build([(b"ram", IMAGE)], machine=b"", ram_id=2)
        machine, blocks, devices = read(tmp_path / "f")
        assert machine == Machine("", PAGE, (Block("ram", len(IMAGE)),), NO_UUID, 2)
        assert (blocks, devices) == ({"ram": IMAGE}, DEVICES)

    def test_without_devices(self, tmp_path):
        """It gets a vmdesc: QEMU's destination waits for one."""
        write(tmp_path / "f", TWO, devices=b"\0")
        data = (tmp_path / "f").read_bytes()
        ram = build(TWO, devices=b"\0")
        assert data.startswith(ram)
        assert data[len(ram)] == 6
        assert int.from_bytes(data[len(ram) + 1 : len(ram) + 5], "big") == len(data) - len(ram) - 5
        assert json.loads(data[len(ram) + 5 :]) == {"page_size": PAGE, "devices": []}
        assert capture.verify(tmp_path / "f").devices == ()

    def test_nothing_before_commit(self, tmp_path):
        target = MappedRamTarget(tmp_path / "f")
        target.allocate(Machine("none", PAGE, (Block("ram", PAGE),)))
        target.add_device_state(DEVICES)
        assert [p.name for p in tmp_path.iterdir()] == [".f.multifd-part"]
        target.discard()
        target.discard()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("room", [MIB, MIB + 8 * PAGE, MIB + 16 * PAGE + 30])
    def test_full_disk(self, tmp_path, room):
        """In front of the pages, among them, behind them."""
        with file_size_limit(room), pytest.raises(RamError, match="cannot"):
            write(tmp_path / "f", [(b"ram", b"x" * 16 * PAGE)])
        assert list(tmp_path.iterdir()) == []


class TestReads:
    @pytest.mark.parametrize("align", [PAGE, MIB])
    def test_blocks(self, tmp_path, align):
        (tmp_path / "f").write_bytes(build(TWO, uuid=UUID, ram_id=9, room=1000, align=align))
        listed = tuple(Block(n.decode(), len(data)) for n, data in TWO)
        expected = {n.decode(): data for n, data in TWO}
        assert read(tmp_path / "f") == (Machine("pc-q35-9.0", PAGE, listed, UUID, 9), expected, DEVICES)

    def test_slot_of_an_absent_page_is_not_read(self, tmp_path):
        (tmp_path / "f").write_bytes(build([(b"ram", b"old." * 1024 * 70)], absent=frozenset(range(10, 69))))
        expected = b"old." * 1024 * 10 + bytes(59 * PAGE) + b"old." * 1024
        assert read(tmp_path / "f")[1] == {"ram": expected}
        assert export(tmp_path / "f", tmp_path / "raw").blocks[0].zero_pages == 59
        assert (tmp_path / "raw").read_bytes() == expected

    def test_a_file_cut_short_before_it_is_mapped(self, tmp_path):
        (tmp_path / "f").write_bytes(build(TWO))
        staging, first = Staging(Geometry.of(PAGE)), np.array([PAGE * 4], np.int64)
        with contextlib.closing(MappedRamSource(tmp_path / "f")) as source:
            os.truncate(tmp_path / "f", MIB + PAGE)
            with pytest.raises(RamError, match="cannot be mapped"):
                source.blocks[0].map(first, staging)
            with pytest.raises(RamError, match="cut short"):
                source.blocks[0].load(first, staging)

    def test_a_file_cut_short_after_it_is_mapped(self, tmp_path):
        """`load` is for anybody to read; `map` is for system calls, which fail."""
        (tmp_path / "f").write_bytes(build(TWO))
        staging, portion = Staging(Geometry.of(PAGE)), np.arange(4, 8, dtype=np.int64) * PAGE
        here, there = socket.socketpair()
        with contextlib.closing(MappedRamSource(tmp_path / "f")) as source, here, there:
            mapped = source.blocks[0].map(portion, staging)
            os.truncate(tmp_path / "f", MIB + PAGE)
            with pytest.raises(RamError, match="cut short"):
                source.blocks[0].load(portion, staging)
            with pytest.raises(RamError, match="cannot be read"):
                Connection(here, IdleTimer(30), "peer").send(mapped.views)

    def test_the_map_is_given_back(self, tmp_path):
        (tmp_path / "f").write_bytes(build(TWO))
        staging, first = Staging(Geometry.of(PAGE)), np.array([0], np.int64)

        def held() -> tuple[int, int]:
            maps = Path("/proc/self/maps").read_text().count(str(tmp_path / "f"))
            return len(os.listdir("/proc/self/fd")), maps

        before = held()
        source = MappedRamSource(tmp_path / "f")
        for block in source.blocks:
            block.map(first, staging)
        assert held()[1] > before[1]
        source.close()
        assert held() == before
        source.close()
        with pytest.raises(RamError, match="closed"):
            source.blocks[0].map(first, staging)

    def test_no_descriptor_is_left(self, tmp_path):
        (tmp_path / "f").write_bytes(build(TWO))
        (tmp_path / "bad").write_bytes(build(TWO)[:2000])
        before = len(os.listdir("/proc/self/fd"))
        MappedRamSource(tmp_path / "f").close()
        for call in (MappedRamSource, capture.info, capture.verify):
            with pytest.raises(RamError):
                call(tmp_path / "bad")
        assert len(os.listdir("/proc/self/fd")) == before


SMALL = build([(b"ram", b"x" * PAGE + bytes(PAGE)), (b"v", b"v" * PAGE)], align=PAGE, machine=b"none")
FIRST = SMALL.index(b"\x03ram\0\0\0\0\0\0\x20\0") + 12  # the first block's mapped-ram header


def with_header(version: int = 1, page: int = PAGE, bitmap: int = FIRST + 28, pages: int = PAGE) -> bytes:
    return SMALL[:FIRST] + struct.pack(">IQQQ", version, page, bitmap, pages) + SMALL[FIRST + 28 :]


class TestRefuses:
    def test_the_base_is_sound(self, tmp_path):
        assert with_header() == SMALL
        (tmp_path / "f").write_bytes(SMALL)
        capture.verify(tmp_path / "f")

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (SMALL[:70], "in the middle"),
            (build(TWO, capabilities=()), "main stream"),  # the headers are no plain stream
            (build(TWO, capabilities=(b"x-ignore-shared",)), "capability 'x-ignore-shared'"),
            (with_header(version=2), "mapped-ram version 2"),
            (with_header(page=8192), "pages of 8192 bytes, expected 1 and 4096"),
            (with_header(page=0), "pages of 0 bytes"),
            (with_header(pages=PAGE + 512), "not a multiple of 4096"),
            (with_header(bitmap=FIRST), "expected in this order"),  # over the header
            (with_header(bitmap=PAGE), "expected in this order"),  # over the pages
            (with_header(bitmap=3 * PAGE), "expected in this order"),  # behind them
            (with_header(pages=0), "expected in this order"),  # over the stream
            (with_header(pages=FIRST + 30), "expected in this order"),  # over the bitmap
            (with_header(pages=1 << 40), "expected in this order"),  # behind the file
            (with_header(pages=(1 << 64) - PAGE), "expected in this order"),
            (with_header(bitmap=(1 << 64) - 1), "expected in this order"),
        ],
    )  # fmt: skip
    def test_refused(self, tmp_path, data, words):
        (tmp_path / "f").write_bytes(data)
        for call in (MappedRamSource, capture.info, capture.verify):
            with pytest.raises(RamError, match=words):
                call(tmp_path / "f")

    def test_bits_behind_the_last_page(self, tmp_path):
        (tmp_path / "f").write_bytes(SMALL[: FIRST + 28] + b"\x0d" + SMALL[FIRST + 29 :])
        with pytest.raises(RamError, match="'ram': 2 bits set behind the last page"):
            capture.verify(tmp_path / "f")
        assert capture.info(tmp_path / "f").blocks[0].present_pages == 1

    def test_devices_that_do_not_end(self, tmp_path):
        (tmp_path / "f").write_bytes(SMALL[:-1])
        with pytest.raises(RamError, match="does not end as a stream does"):
            capture.verify(tmp_path / "f")

    def test_huge_lengths_take_no_memory(self, tmp_path):
        """What is held is a bit and a flag for each page, and a window of them, not pages."""
        length = 1 << 36
        target = MappedRamTarget(tmp_path / "f")
        target.allocate(Machine("none", PAGE, (Block("ram", length),)))
        target.add_device_state(DEVICES)
        target.commit(NO_UUID)
        target.discard()
        tracemalloc.start()
        try:
            assert capture.verify(tmp_path / "f").blocks[0].zero_pages == length // PAGE
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2 * MIB + 16 * MIB + 8 * MIB
        assert (tmp_path / "f").stat().st_blocks * 512 < 4 * MIB


def outcome(path: Path, call: Callable[[Path], object]) -> bool:
    """Whether it was refused; an exception of another kind fails the test, and so does what is no info."""
    try:
        found = call(path)
    except RamError:
        return True
    assert isinstance(found, capture.CaptureInfo)
    assert all(b.present_pages >= 0 and b.zero_pages >= 0 and b.used_length <= len(SMALL) for b in found.blocks)
    json.dumps(found.as_dict())
    return False


class TestDamage:
    RAM_END = len(SMALL) - len(DEVICES)

    @pytest.fixture
    def memory(self):
        """Growth is a failure here, not of the machine."""
        before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 512 * MIB, before[1]))
        yield
        resource.setrlimit(resource.RLIMIT_AS, before)

    def test_every_truncation(self, tmp_path, memory):
        path = tmp_path / "f"
        path.write_bytes(SMALL)
        for cut in reversed(range(len(SMALL))):
            if cut in range(PAGE + 100, 5 * PAGE - 100) and cut % 64:
                continue  # inside pages
            os.truncate(path, cut)
            # The vmdesc is for whoever looks: a stream that ends with the EOF item is one.
            assert outcome(path, capture.verify) == (cut != len(SMALL) - VMDESC_BYTES), cut
            if cut < self.RAM_END:
                assert outcome(path, capture.info), cut

    @pytest.mark.parametrize("machine", [b"pc-q35-9.0", b""])
    def test_devices_cut_short_at_a_nul(self, tmp_path, machine):
        """It passed for the EOF item. Up to 2.3 sections have no footers, so there it still does."""
        data = build([(b"ram", b"x" * PAGE)], machine=machine, devices=b"\x04\0\0\0\x05" + bytes(50))
        (tmp_path / "f").write_bytes(data)
        assert outcome(tmp_path / "f", capture.verify) == bool(machine)

    def test_every_bit(self, tmp_path, memory):
        path, refused = tmp_path / "f", 0
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.write(fd, SMALL)
        for i in [*range(FIRST + 40), *range(3 * PAGE, 3 * PAGE + 50), *range(5 * PAGE, len(SMALL))]:
            for bit in range(8):
                os.pwrite(fd, bytes([SMALL[i] ^ 1 << bit]), i)
                refused += outcome(path, capture.info)
                outcome(path, capture.verify)
            os.pwrite(fd, SMALL[i : i + 1], i)
        os.close(fd)
        assert path.read_bytes() == SMALL
        assert refused > 1000

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        edits=st.lists(
            st.tuples(
                st.sampled_from([*range(FIRST + 40), *range(3 * PAGE, 3 * PAGE + 50), *range(RAM_END, len(SMALL))]),
                st.one_of(
                    st.binary(min_size=1, max_size=8),
                    st.sampled_from([b"\xff" * 8, b"\x7f" + b"\xff" * 7, bytes(8), struct.pack(">Q", 1 << 62)]),
                ),
            ),
            max_size=4,
        ),
        cut=st.one_of(st.none(), st.integers(0, len(SMALL))),
    )
    def test_anything(self, tmp_path, edits, cut):
        data = bytearray(SMALL)
        for at, new in edits:
            data[at : at + len(new)] = new
        (tmp_path / "f").write_bytes(data[:cut])
        refused = outcome(tmp_path / "f", capture.info)
        assert outcome(tmp_path / "f", capture.verify) >= refused

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.binary(max_size=300))
    def test_any_bytes(self, tmp_path, data):
        (tmp_path / "f").write_bytes(b"QEVM\0\0\0\x03" + data)
        assert outcome(tmp_path / "f", capture.info)
