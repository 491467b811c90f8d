"""Plain streams in files: read against a layout built here, written for QEMU's own grammar, cut and damaged."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import make_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import file_size_limit
from mapped_files import DEVICES, PAGE
from plain_files import build_plain, page_record, section, start, word, zero_record

from multifd.errors import RamError
from multifd.pages import Geometry
from multifd.ram import capture
from multifd.ram.block import Staging
from multifd.ram.plain_source import PlainSource
from multifd.ram.plain_target import PlainTarget
from multifd.wire.reader import MainStreamReader
from multifd.wire.stream import NO_UUID, Block, Machine, ZeroPages

IMAGE = make_image(700, 3)
TWO = [(b"pc.ram", IMAGE), (b"vga.vram", bytes(3 * PAGE) + b"v" * PAGE)]


def read(path: Path) -> tuple[Machine, dict[str, bytes], bytes]:
    """Machine, blocks and device state, as a sender gets them."""
    with contextlib.closing(PlainSource(path)) as source:
        page = source.machine.page_size
        geometry = Geometry.of(page)
        staging, blocks = Staging(geometry), {}
        for block in source.blocks:
            data, seen = bytearray(block.used_length), 0
            for offsets in block.portions(geometry.page_count):
                seen += len(offsets)
                pages = block.load(offsets, staging)
                for offset, one in zip(offsets.tolist(), pages or (), strict=pages is not None):
                    data[offset : offset + page] = one
            assert seen == block.page_count
            blocks[block.idstr] = bytes(data)
        return source.machine, blocks, b"".join(source.device_state())


def contents(blocks: list[tuple[bytes, bytes]]) -> dict[str, bytes]:
    return {name.decode(): data for name, data in blocks}


class TestReads:
    @pytest.mark.parametrize("machine", [b"pc-i440fx-7.2", b""])
    def test_blocks(self, tmp_path, machine):
        """Also without a configuration section, where nothing says that pages are in the stream."""
        (tmp_path / "f").write_bytes(build_plain(TWO, machine=machine))
        found, blocks, devices = read(tmp_path / "f")
        assert found.blocks == tuple(Block(n.decode(), len(data)) for n, data in TWO)
        assert (blocks, devices) == (contents(TWO), DEVICES)

    @pytest.mark.parametrize("page", [8192, 65536])
    def test_page_sizes(self, tmp_path, page):
        blocks = [(b"ram", make_image(65 * page // PAGE, 5))]
        (tmp_path / "f").write_bytes(build_plain(blocks, page=page))
        assert read(tmp_path / "f")[1] == contents(blocks)

    def test_the_last_version_counts(self, tmp_path):
        """Pages that come again, that become zero, that were zero: in any section and any mix of blocks."""
        rng, blocks = random.Random(7), [(b"a", bytes(40 * PAGE)), (b"b", bytes(9 * PAGE))]
        expected, sections, before = {n: bytearray(data) for n, data in blocks}, [], None
        for _ in range(6):
            body = b""
            for _ in range(rng.randint(0, 120)):
                name = rng.choice([b"a", b"a", b"a", b"b"])
                at = rng.randrange(len(expected[name]) // PAGE) * PAGE
                data = rng.randbytes(PAGE) if rng.random() < 0.7 else bytes(PAGE)
                mark = None if name == before and rng.random() < 0.9 else name
                body += page_record(at, data, mark) if any(data) else zero_record(at, mark)
                expected[name][at : at + PAGE] = data
                before = name
            sections.append(body)
        ram = b"".join(section(2, body) for body in sections[:-1]) + section(3, sections[-1])
        (tmp_path / "f").write_bytes(start(blocks) + ram + DEVICES)
        assert read(tmp_path / "f")[1] == {n.decode(): bytes(data) for n, data in expected.items()}

    def test_what_is_said_of_it(self, tmp_path):
        (tmp_path / "f").write_bytes(build_plain(TWO))
        found = capture.verify(tmp_path / "f")
        assert (found.format, found.machine, found.devices) == ("stream", "pc-i440fx-7.2", ("timer 3",))
        assert [b.present_pages + b.zero_pages for b in found.blocks] == [700, 4]
        assert (found.xml, found.domain, found.was_running) == (None, None, None)


ONE = [(b"ram", b"x" * PAGE * 2)]


class TestRefuses:
    @pytest.mark.parametrize(
        ("ram", "words"),
        [
            (section(3, b""), "RAM has no page in it; a stream that was recorded of a multifd migration"),
            (section(2, word(0x40) + b"\3ram\1\0\4data"), "pages by xbzrle"),
            (section(2, word(0x100) + b"\3ram\0\0\0\4data"), "pages by the old compression"),
            (section(2, word(0x80)), "pages by RDMA"),
            (section(2, page_record(2 * PAGE, b"x" * PAGE, b"ram")), "page at 0x2000 outside block 'ram'"),
            (section(2, page_record(0, b"x" * PAGE, b"rom")), "page of unknown block 'rom'"),
            (section(2, page_record(0, b"x" * PAGE)), "page of unknown block ''"),
            (section(2, page_record(0, b"x" * PAGE, b"ram") + page_record(-PAGE & 2**64 - 1, b"y" * PAGE)), "outside"),
            (section(2, word(0x200)), "FLUSH word"),
        ],
    )
    def test_ram(self, tmp_path, ram, words):
        (tmp_path / "f").write_bytes(start(ONE) + ram + DEVICES)
        for call in (capture.info, capture.verify):
            with pytest.raises(RamError, match=words):
                call(tmp_path / "f")

    def test_more_ram_than_there_is_memory_for(self, tmp_path):
        head = start([(b"ram", b"")])
        data = head.replace(word(4) + b"\3ram" + word(0), word(1 << 58 | 4) + b"\3ram" + word(1 << 58))
        assert data != head
        (tmp_path / "f").write_bytes(data + section(3, page_record(0, b"x" * PAGE, b"ram")) + DEVICES)
        with pytest.raises(RamError, match="no memory for it"):
            capture.info(tmp_path / "f")


SMALL = build_plain([(b"ram", b"x" * PAGE + bytes(PAGE) + b"y" * PAGE)])


def outcome(path: Path) -> bool:
    """Whether `verify` refuses it; an exception of another kind fails the test."""
    try:
        capture.verify(path)
    except RamError:
        return True
    return False


class TestDamage:
    def test_every_truncation(self, tmp_path):
        path = tmp_path / "f"
        path.write_bytes(SMALL)
        without_vmdesc = SMALL.rindex(b"\x06\0\0\0")
        for cut in reversed(range(len(SMALL))):
            if cut % 64 and 200 < cut < len(SMALL) - 400:
                continue  # inside pages
            os.truncate(path, cut)
            assert outcome(path) == (cut != without_vmdesc), cut

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(st.integers(8, len(SMALL) - 1), st.binary(min_size=1, max_size=8)), max_size=4))
    def test_anything(self, tmp_path, edits):
        data = bytearray(SMALL)
        for at, new in edits:
            data[at : at + len(new)] = new
        (tmp_path / "f").write_bytes(data)
        outcome(tmp_path / "f")

    def test_cut_while_it_is_read(self, tmp_path):
        path = tmp_path / "f"
        path.write_bytes(SMALL)
        with contextlib.closing(PlainSource(path)) as source:
            os.truncate(path, 300)
            (block,), staging = source.blocks, Staging(Geometry.of(PAGE))
            with pytest.raises(RamError, match="ends at byte 300"):
                block.load(next(block.portions(128)), staging)

    def test_no_descriptor_is_left(self, tmp_path):
        (tmp_path / "f").write_bytes(SMALL)
        (tmp_path / "bad").write_bytes(SMALL[:300])
        before = len(os.listdir("/proc/self/fd"))
        capture.verify(tmp_path / "f")
        assert outcome(tmp_path / "bad")
        assert len(os.listdir("/proc/self/fd")) == before


def write(path: Path, blocks: list[tuple[bytes, bytes]], devices: bytes = DEVICES) -> None:
    """What `PlainTarget` makes of it: every page twice, pages that become zero, in packets of mixed order."""
    target = PlainTarget(path)
    try:
        listed = tuple(Block(n.decode(), len(data)) for n, data in blocks)
        places = target.allocate(Machine("pc-i440fx-7.2", PAGE, listed))
        staging, rng = Staging(Geometry.of(PAGE)), random.Random(1)
        for is_last in (False, True):
            for n, data in blocks:
                block = places[n.decode()]
                pages = [data[i : i + PAGE] for i in range(0, len(data), PAGE)]
                held = [i for i, page in enumerate(pages) if any(page) or not is_last]
                rng.shuffle(held)
                for at in range(0, len(held), 100):
                    some = np.array(held[at : at + 100], np.int64) * PAGE
                    new = b"".join(pages[o // PAGE] if is_last else b"old." * (PAGE // 4) for o in some.tolist())
                    block.place(some, staging).scatter(new)
                    block.store(some, staging)
                zero = [i * PAGE for i, page in enumerate(pages) if not any(page)]
                if is_last and zero:
                    block.clear(np.array(zero, np.int64))
        for at in range(0, len(devices), 7):
            target.add_device_state(devices[at : at + 7])
        target.flush()
        target.commit(NO_UUID)
    finally:
        target.discard()


class TestWrites:
    def test_reads_back(self, tmp_path):
        write(tmp_path / "f", TWO)
        found, blocks, devices = read(tmp_path / "f")
        assert (blocks, devices, found.name) == (contents(TWO), DEVICES, "pc-i440fx-7.2")
        assert not outcome(tmp_path / "f")
        assert [p.name for p in tmp_path.iterdir()] == ["f"]
        assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600

    def test_every_page_is_in_it(self, tmp_path):
        """One that never came is a ZERO word: a destination may have other bytes there."""
        target = PlainTarget(tmp_path / "f")
        target.allocate(Machine("pc-i440fx-7.2", PAGE, (Block("ram", 70000 * PAGE),)))
        target.add_device_state(DEVICES)
        target.commit(NO_UUID)
        target.discard()
        events = MainStreamReader().feed((tmp_path / "f").read_bytes())
        assert sum(len(event.offsets) for event in events if isinstance(event, ZeroPages)) == 70000

    def test_without_devices(self, tmp_path):
        write(tmp_path / "f", TWO, devices=b"\0")
        assert capture.verify(tmp_path / "f").devices == ()

    @pytest.mark.parametrize("room", [10, 3 * PAGE, 60 * PAGE])
    def test_full_disk(self, tmp_path, room):
        with file_size_limit(room), pytest.raises(RamError, match="cannot"):
            write(tmp_path / "f", TWO)
        assert list(tmp_path.iterdir()) == []

    def test_a_disk_that_is_full_at_the_devices_state(self, tmp_path):
        target = PlainTarget(tmp_path / "f")
        target.allocate(Machine("pc-i440fx-7.2", PAGE, (Block("ram", PAGE),)))
        with file_size_limit(10), pytest.raises(RamError, match=r"devices' state.: cannot write"):
            target.add_device_state(DEVICES)
        target.discard()
        assert list(tmp_path.iterdir()) == []

    def test_no_room_for_the_devices_state(self, tmp_path, monkeypatch):
        def refuse(**_):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
        with pytest.raises(RamError, match="Too many open files"):
            PlainTarget(tmp_path / "f")
        assert list(tmp_path.iterdir()) == []

    def test_more_ram_than_there_is_memory_for(self, tmp_path):
        target = PlainTarget(tmp_path / "f")
        with pytest.raises(RamError, match="no memory for it"):
            target.allocate(Machine("none", PAGE, (Block("ram", 1 << 58),)))
        target.discard()
        assert list(tmp_path.iterdir()) == []
