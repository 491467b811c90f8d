"""The pump and the Python path are the same to the other end and to the user: bytes, pages, figures, errors."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mapped_files import build
from peer import packet, sync

from multifd.live.arena import Arena, ArenaTarget
from multifd.live.tracker import LiveBlock
from multifd.methods import _adaptive
from multifd.methods._adaptive_zstd import END_BLOCK, MOST_BLOCK, raw_frame
from multifd.methods._libzstd import Compressor
from multifd.pump import library
from multifd.ram.block import bare_machine
from multifd.ram.mapped_source import MappedRamSource
from multifd.ram.mapped_target import MappedRamTarget
from multifd.ram.memory import MemorySource, MemoryTarget
from multifd.ram.raw import RawImageSource, RawImageTarget
from multifd.registry import load_method
from multifd.wire.stream import Block, Machine
from tests.pump.both_paths import PATHS, memory, offsets_of_zero, random_pages, receive, send

pytestmark = pytest.mark.skipif(bool(library.unavailable_reason()), reason=f"no pump: {library.unavailable_reason()}")

PAGE, PAGES = 4096, 40
NAMES = ("a", "bb")
MACHINE = Machine("none", PAGE, tuple(Block(name, PAGES * PAGE) for name in NAMES))
WIRE = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
METHODS = ["none", "zlib:engine=zlib", "zstd"]


def targets(kind: str, folder: Path):
    """(target, machine, how to see what it holds)."""
    if kind == "memory":
        buffer = memory(PAGES * PAGE, b"old" * 9000)
        return MemoryTarget(buffer), bare_machine(PAGES * PAGE, PAGE), lambda: bytes(buffer)
    if kind == "arena":
        buffers = {name: memory(PAGES * PAGE, b"old" * 9000) for name in NAMES}
        arena = Arena(buffers)
        return ArenaTarget(arena), MACHINE, lambda: b"".join(map(bytes, buffers.values()))
    path = folder / "out"
    if kind == "raw":
        target = RawImageTarget(path)
        machine = bare_machine(PAGES * PAGE, PAGE)
    else:
        target, machine = MappedRamTarget(path), MACHINE

    def content() -> bytes:
        target.commit(bytes(16))
        return path.read_bytes()

    return target, machine, content


MOST = PAGES * PAGE
FIELDS = {
    (12, 4): [0, 1, 2, 3, 4, 127, 129, 1 << 31],  # pages_alloc
    (16, 4): [0, 1, 3, 4, 128, 129, (1 << 32) - 2, (1 << 32) - 1],  # normal_pages
    (20, 4): [1, PAGE, 2 * PAGE - 1, 2 * PAGE + 1, 1 << 20, 1 << 21, (1 << 32) - 1],  # next_packet_size
    (32, 4): [0, 1, 3, 126, 127, (1 << 32) - 2, (1 << 32) - 1],  # zero_pages
    (64, 4): [0, 0x61000000, 0x61616161, 0xFF000000],  # the block's name
    (320, 8): [MOST, MOST - PAGE, MOST - 1, 1, 2048, PAGE - 1, 1 << 63, (1 << 64) - PAGE, (1 << 64) - 1],
    (344, 8): [MOST, MOST - PAGE, MOST - 1, 1, 2048, PAGE - 1, 1 << 63, (1 << 64) - PAGE, (1 << 64) - 1],
}
"""Where a header's fields are, and values at and beyond their bounds, for two normal and two zero pages."""


def damage(header: bytearray, draw) -> None:
    """A bit, or a field with a value at one of its bounds."""
    if draw(st.booleans()):
        header[draw(st.integers(0, 380))] ^= draw(st.integers(1, 255))
        return
    (at, nbytes), values = draw(st.sampled_from(list(FIELDS.items())))
    header[at : at + nbytes] = draw(st.sampled_from(values)).to_bytes(nbytes, "big")


@st.composite
def wires(draw, names=NAMES, code=0, encode=None):
    """Packets of a channel: mostly sound, sometimes damaged, cut short, with pages that come again."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    out = []
    for number in range(draw(st.integers(1, 5))):
        pages = draw(st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=12, unique=draw(st.booleans())))
        if draw(st.booleans()):
            pages.sort()
        cut = draw(st.integers(0, len(pages))) if number else len(pages)
        normal, zero = [p * PAGE for p in pages[:cut]], [p * PAGE for p in pages[cut:]]
        payload = random_pages(rng, len(normal), PAGE)
        if encode is not None and normal:
            payload = encode(payload)
        flags = code | draw(st.sampled_from([0] * 10 + [1, 2, 64, 128]))
        size = draw(st.sampled_from([None] * 10 + [0, 1, 1 << 21]))
        data = bytearray(
            packet(normal, payload, flags=flags, zero=zero, block=draw(st.sampled_from(names)).encode(), size=size)
        )
        if number and draw(st.integers(0, 2)) == 2:  # the first is Python's, whatever it is
            damage(data, draw)
        out.append(bytes(data))
        if draw(st.integers(0, 3)) == 3:
            out.append(sync())
    whole = b"".join(out) + (sync() if draw(st.integers(0, 3)) else b"")
    return whole[: draw(st.integers(0, len(whole)))] if draw(st.integers(0, 7)) == 7 else whole


def as_they_are(pages: bytes) -> bytes:
    """As ``zstd:level=auto`` sends what it does not compress."""
    return b"".join(raw_frame([memoryview(pages)]))


def compare_receivers(kind, wire, specs, folder):
    seen = []
    for path in PATHS:
        target, machine, content = targets(kind, folder)
        try:
            one = receive(path, wire, target, machine, [load_method(spec) for spec in specs])
            one.data = content() if one.error is None else b""
        finally:
            target.discard()
        seen.append(one)
    assert seen[0] == seen[1]
    return seen[0]


@pytest.mark.parametrize("kind", ["memory", "arena", "raw", "mapped-ram"])
class TestReceive:
    @WIRE
    @given(data=st.data())
    def test_verbatim(self, kind, data, tmp_path):
        names = NAMES if kind in ("arena", "mapped-ram") else ("ram", "other")
        compare_receivers(kind, data.draw(wires(names)), ["none"], tmp_path)

    @WIRE
    @given(data=st.data())
    def test_zstd(self, kind, data, tmp_path):
        import zstandard

        names = NAMES if kind in ("arena", "mapped-ram") else ("ram",)
        frame = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()

        def encode(pages: bytes) -> bytes:
            return frame.compress(pages) + frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

        compare_receivers(kind, data.draw(wires(names, 4, encode)), ["none", "zstd"], tmp_path)

    @WIRE
    @given(data=st.data())
    def test_frames_of_raw_blocks(self, kind, data, tmp_path):
        names = NAMES if kind in ("arena", "mapped-ram") else ("ram",)
        compare_receivers(kind, data.draw(wires(names, 4, as_they_are)), ["none", "zstd"], tmp_path)

    @pytest.mark.parametrize("damaged", [None, 0, 4, 5, 8, 9, 11, -1, MOST_BLOCK + 12, MOST_BLOCK + 14])
    def test_what_stands_between_raw_pages(self, kind, damaged, tmp_path):
        """A frame whose heads are not those that its length promises is the decoder's."""
        name = b"a" if kind in ("arena", "mapped-ram") else b"ram"
        offsets, rng = [PAGE * i for i in range(PAGES)], np.random.default_rng(1)
        first, second = (bytearray(as_they_are(random_pages(rng, PAGES, PAGE))) for _ in range(2))
        if damaged is not None:
            second[damaged] ^= 1
        wire = b"".join(packet(offsets, bytes(data), flags=4, block=name) for data in (first, second, first))
        seen = compare_receivers(kind, wire + sync(), ["zstd"], tmp_path)
        assert (seen.error is None) == (damaged in (None, -1))

    @pytest.mark.parametrize("field", list(FIELDS))
    def test_bounds(self, kind, field, tmp_path):
        """A field at and beyond its bounds, in a packet that would be the pump's."""
        name = b"a" if kind in ("arena", "mapped-ram") else b"ram"
        at, nbytes = field
        sound = packet([0, PAGE], b"x" * 2 * PAGE, zero=[2 * PAGE, 3 * PAGE], block=name)
        errors = 0
        for value in FIELDS[field]:
            damaged = bytearray(sound)
            damaged[at : at + nbytes] = value.to_bytes(nbytes, "big")
            errors += compare_receivers(kind, sound + bytes(damaged) + sync(), ["none"], tmp_path).error is not None
        assert errors >= len(FIELDS[field]) // 2

    def test_what_a_page_was_last(self, kind, tmp_path):
        """A page that comes again within one call: as data, as zero, as data."""
        name = b"a" if kind in ("arena", "mapped-ram") else b"ram"
        x, y = b"x" * PAGE, b"y" * PAGE
        wire = (
            packet([0, PAGE], x + x, block=name)
            + packet([2 * PAGE], y, zero=[0], block=name)
            + packet([PAGE], y, zero=[2 * PAGE, 3 * PAGE], block=name)
            + packet([3 * PAGE, 0], y + x, block=name)
            + packet([], zero=[0], block=name)
            + sync()
        )
        seen = compare_receivers(kind, wire, ["none"], tmp_path)
        assert seen.error is None
        assert (seen.normal_pages, seen.zero_pages) == (6, 4)
        assert seen.data.count(y) >= 2


HOLES = [0, 1, 5, 6, 7, 20, 21, 39]


@pytest.fixture
def content():
    """Pages of which some are zero, and some but for their last byte."""
    rng = np.random.default_rng(7)
    pages = [random_pages(rng, 1, PAGE) for _ in range(300)]
    for i in (*HOLES, *range(128, 260)):
        pages[i] = bytes(PAGE)
    for i in (6, 200):
        pages[i] = bytes(PAGE - 1) + b"\1"
    return b"".join(pages)


class _Live:
    """Memory whose pages may go, as a source."""

    def __init__(self, buffer):
        self.machine = bare_machine(len(buffer), PAGE)
        self.blocks = (LiveBlock("ram", memoryview(buffer), PAGE),)


def sources(kind, content, folder):
    if kind == "memory":
        return MemorySource(memory(len(content), content))
    if kind == "live":
        return _Live(memory(len(content), content))
    path = folder / f"{kind}.in"
    if kind == "raw":
        with open(path, "wb") as file:
            os.truncate(path, len(content))
            for at in range(0, len(content), PAGE):
                if any(content[at : at + PAGE]):
                    file.seek(at)
                    file.write(content[at : at + PAGE])
        return RawImageSource(path)
    path.write_bytes(build([(b"ram", content), (b"pc.bios", content[: 3 * PAGE])]))
    return MappedRamSource(path)


@pytest.mark.parametrize("dialect", ["9.0", "7.2"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["memory", "live", "raw", "mapped-ram"])
def test_send(kind, method, dialect, content, tmp_path):
    seen = []
    for path in PATHS:
        source = sources(kind, content, tmp_path)
        seen.append(send(path, source, load_method(method), dialect=dialect, rounds=2))
    # ZERO words of several packets are written together: the same pages, in other pieces.
    words = [sorted(offsets_of_zero(one.main)) for one in seen]
    assert words[0] == words[1]
    for one in seen:
        one.main = b""
    assert seen[0] == seen[1]
    assert seen[0].error is None
    assert seen[0].zero_pages > 0 < seen[0].normal_pages


class AsTheyAre:
    """A policy that never compresses."""

    place, is_watching, wants_look = 0, False, False

    def __init__(self, *given: object) -> None:
        pass

    def note(self, *told: object) -> None:
        pass


@pytest.mark.parametrize("dialect", ["9.0", "7.2"])
@pytest.mark.parametrize("kind", ["memory", "live", "raw", "mapped-ram"])
def test_send_pages_as_they_are(kind, dialect, content, tmp_path, monkeypatch):
    monkeypatch.setattr(_adaptive, "Policy", AsTheyAre)
    seen = []
    for path in PATHS:
        source = sources(kind, content, tmp_path)
        seen.append(send(path, source, load_method("zstd:level=auto"), dialect=dialect, bytes_per_s=64 << 20))
        assert seen[-1].counters["zstd.raw_packets"]
        for name in ("zstd.encode_us", "zstd.between_us"):
            del seen[-1].counters[name]
        seen[-1].main = b""
    assert seen[0] == seen[1]
    assert seen[0].error is None


@pytest.mark.parametrize("method", METHODS)
def test_send_slowly(method, content, tmp_path):
    """A limit cuts packets into pieces."""
    content = content[: 64 * PAGE]
    seen = [send(path, MemorySource(memory(len(content), content)), load_method(method), bytes_per_s=1 << 20)
            for path in PATHS]  # fmt: skip
    assert seen[0] == seen[1]
    assert seen[0].error is None


def protect(buffer: mmap.mmap, page: int) -> None:
    address = np.frombuffer(buffer, np.uint8).ctypes.data + page * PAGE
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address), PAGE, 0) == 0


@pytest.mark.parametrize("method", METHODS)
def test_send_what_cannot_be_read(method, content):
    """An error, never a signal; and nothing of its packet is out."""
    seen = []
    for path in PATHS:
        buffer = memory(len(content), content)
        protect(buffer, 270)
        seen.append(send(path, _Live(buffer), load_method(method)))
    assert seen[0] == seen[1]
    assert seen[0].error is not None
    assert "0x10e000 cannot be read" in seen[0].error[1]


@pytest.mark.parametrize("method", METHODS)
def test_receive_where_nothing_can_be_written(method, tmp_path):
    """Pages that are protected while they arrive."""
    data = random_pages(np.random.default_rng(1), 3, PAGE)
    source = MemorySource(memory(len(data), data))
    wire = send("python", source, load_method(method)).data
    wires_ = {"pages": wire, "zero": packet([], zero=[PAGE], flags=load_method(method).wire_code) + sync()}
    for wire in wires_.values():
        seen = []
        for path in PATHS:
            buffer = memory(3 * PAGE)
            with Arena(buffer) as arena:
                target = ArenaTarget(arena)
                allocate = target.allocate

                def then_protect(machine, allocate=allocate, buffer=buffer):
                    blocks = allocate(machine)
                    protect(buffer, 1)
                    return blocks

                target.allocate = then_protect
                seen.append(receive(path, wire, target, bare_machine(3 * PAGE, PAGE), [load_method(method)]))
        assert seen[0] == seen[1]
    assert len(wires_) == 2


def test_a_file_that_is_cut_short(content, tmp_path):
    seen = []
    for path in PATHS:
        source = sources("raw", content, tmp_path)
        os.truncate(tmp_path / "raw.in", 100 * PAGE)
        seen.append(send(path, source, load_method("none")))
    assert seen[0] == seen[1]
    assert "cut short" in seen[0].error[1]


def frame_of_its_own(data: bytes) -> bytes:
    """Of noise: as long as the raw frame of so many bytes, but for what libzstd writes before and behind it."""
    compressor = Compressor(12, 21, 512 * 1024)
    compressor.open(1)
    payload = b"".join(map(bytes, compressor.compress([memoryview(data)]))) + END_BLOCK
    assert len(payload) == sum(map(len, raw_frame([memoryview(data)])))
    return payload


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
@pytest.mark.parametrize("pages", [[[0], [1], [2]], [[0], [2, 1]], [[0], [1, 1]]])
def test_a_frame_as_long_as_pages_as_they_are(pages, flags):
    """It was read straight to its pages, and is decoded from there; in memory that the kernel is asked about, too."""
    noise = np.random.default_rng(3).bytes(4 * PAGE)
    wire = b"".join(
        packet([page * PAGE for page in some], frame_of_its_own(noise[i * PAGE : (i + len(some)) * PAGE]), flags=4)
        for i, some in enumerate(pages)
    )
    seen, memories = [], []
    for path in PATHS:
        memories.append(mmap.mmap(-1, 3 * PAGE, flags=flags | mmap.MAP_ANONYMOUS))
        target = MemoryTarget(memories[-1])
        seen.append(receive(path, wire + sync(), target, bare_machine(3 * PAGE, PAGE), [load_method("zstd")]))
    assert seen[0] == seen[1]
    assert seen[0].error is None
    assert memories[0][:] == memories[1][:]
    last = pages[-1][-1] * PAGE
    i = len(pages) - 1 + len(pages[-1]) - 1
    assert memories[0][last : last + PAGE] == noise[i * PAGE : (i + 1) * PAGE]
