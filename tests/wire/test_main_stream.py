"""The main stream and the return path: every byte against tables, everything a peer can get wrong, both ways."""

from __future__ import annotations

import json
import struct
import tracemalloc

import numpy as np
import peer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifd.errors import StreamError
from multifd.wire import return_path, stream, writer
from multifd.wire import vmdesc as vmdesc_module
from multifd.wire.reader import MainStreamReader
from multifd.wire.return_path import ReturnPathReader
from multifd.wire.stream import Block, DeviceState, Machine, Ping, ReturnPathOpened, StreamEnd, SyncPoint, ZeroPages

PAGE = peer.PAGE
RAM, VGA = 64 * PAGE, 4 * PAGE
EOS = struct.pack(">QBI", 0x10, 0x7E, 2)
FLUSH = struct.pack(">Q", 0x200)
START = b"\x01\0\0\0\x02\x03ram" + struct.pack(">II", 0, 4)
PART, END = b"\x02\0\0\0\x02", b"\x03\0\0\0\x02"
CONFIG = b"QEVM\0\0\0\x03\x07\0\0\0\x0bpc-q35-10.0"


def listed(*blocks: tuple[bytes, int], total: int | None = None) -> bytes:
    total = sum(length for _, length in blocks) if total is None else total
    return struct.pack(">Q", total | 4) + b"".join(
        bytes([len(n)]) + n + struct.pack(">Q", length) for n, length in blocks
    )


def zero(offset: int, name: bytes = b"", fill: int = 0) -> bytes:
    """A ZERO word; without a name it continues the block."""
    named = bytes([len(name)]) + name if name else b""
    return struct.pack(">Q", offset | (2 if name else 0x22)) + named + bytes([fill])


def vmdesc(length: int = 0, **more: object) -> bytes:
    """The last item, its text padded to `length` bytes."""
    text = json.dumps({"configuration": {}, "page_size": 4096, "devices": [{"name": "timer"}], **more}).encode()
    text = text[:-1].ljust(length - 1) + b"}"
    return b"\x06" + struct.pack(">I", len(text)) + text


SETUP = START + listed((b"pc.ram", RAM), (b"vga", VGA))
DEVICES = b"\x04\0\0\0\x05\x05timer" + struct.pack(">II", 0, 2) + bytes(24) + b"{}\x7e\0\0\0\x05" + b"\0" + vmdesc()
BLOCKS = (Block("pc.ram", RAM), Block("vga", VGA))
MACHINE = Machine("pc-q35-10.0", PAGE, BLOCKS, ram_section_id=2)

PER_ROUND = (
    CONFIG + b"\x08\0\x01\0\0" + b"\x08\0\x02\0\x04\0\0\0\x01"
    + SETUP + FLUSH + EOS
    + PART + zero(0, b"pc.ram") + zero(PAGE) + zero(3 * PAGE) + FLUSH + zero(PAGE, b"vga") + EOS
    + PART + zero(3 * PAGE) + EOS
    + b"\x08\0\x0b\0\0" + END + zero(2 * PAGE) + FLUSH + EOS
    + DEVICES
)  # fmt: skip
PER_SECTION = CONFIG + SETUP + EOS + PART + zero(0, b"vga") + EOS + PART + EOS + END + EOS + b"\0"


def events(data: bytes, step: int | None = None, ended: bool = True) -> list[object]:
    """What a reader says of `data`, fed in pieces of `step` bytes; neighbouring zero pages, and state, joined."""
    reader, out, step = MainStreamReader(), [], step or len(data) or 1
    for at in range(0, len(data), step):
        for event in reader.feed(data[at : at + step]):
            if isinstance(event, DeviceState) and out and isinstance(out[-1], DeviceState):
                out[-1] = DeviceState(out[-1].data + event.data)
                continue
            if not isinstance(event, ZeroPages):
                out.append(event)
                continue
            assert event.offsets.dtype == np.int64
            if out and isinstance(out[-1], tuple) and out[-1][0] == event.idstr:
                out[-1][1].extend(event.offsets.tolist())
            else:
                out.append((event.idstr, event.offsets.tolist()))
    if ended:
        reader.end()
    return out


def outcome(data: bytes, step: int | None = None) -> object:
    """The events, or the one error that may leave; anything else fails the test."""
    try:
        return events(data, step)
    except StreamError as e:
        return str(e)


def refused(data: bytes, words: str, offset: int | None = None) -> None:
    """At once and byte by byte, with the same words."""
    for step in (None, 1):
        with pytest.raises(StreamError, match=words) as caught:
            events(data, step, ended=False)
        assert offset is None or caught.value.offset == offset


class TestReads:
    @pytest.mark.parametrize("step", [None, 1, 2, 7, 9, 64])
    def test_per_round(self, step):
        """Machine types from 8.1: a sync point is a FLUSH word, an EOS is none."""
        assert events(PER_ROUND, step) == [
            ReturnPathOpened(), Ping(1), MACHINE, SyncPoint(),
            ("pc.ram", [0, PAGE, 3 * PAGE]), SyncPoint(), ("vga", [PAGE, 3 * PAGE, 2 * PAGE]), SyncPoint(),
            DeviceState(DEVICES), StreamEnd(),
        ]  # fmt: skip

    @pytest.mark.parametrize("step", [None, 1, 2, 7, 9, 64])
    def test_per_section(self, step):
        """Machine types up to 8.0: every EOS is a sync point."""
        assert events(PER_SECTION, step) == [
            MACHINE, SyncPoint(), ("vga", [0]), SyncPoint(), SyncPoint(), SyncPoint(), DeviceState(b"\0"), StreamEnd(),
        ]  # fmt: skip

    @pytest.mark.parametrize("return_path", [False, True])
    @pytest.mark.parametrize("per_section", [False, True])
    def test_written_by_someone_else(self, return_path, per_section):
        stream = peer.main_stream([(b"ram", RAM)], return_path=return_path, per_section=per_section)
        opened = [ReturnPathOpened(), Ping(1)] if return_path else []
        assert events(b"".join(stream.values())) == [
            *opened, Machine("none", 4096, (Block("ram", RAM),), ram_section_id=peer.RAM_ID), SyncPoint(), SyncPoint(),
            DeviceState(b"\0"), StreamEnd(),
        ]  # fmt: skip

    def test_without_configuration(self):
        """Machine types up to 2.3: no section footers either."""
        stream = peer.main_stream([(b"ram", RAM)], config=False)
        expected = Machine("", 4096, (Block("ram", RAM),), ram_section_id=peer.RAM_ID)
        found = [expected, SyncPoint(), SyncPoint(), DeviceState(b"\0"), StreamEnd()]
        assert events(b"".join(stream.values())) == events(b"".join(stream.values()), 1) == found

    @pytest.mark.parametrize("step", [None, 1])
    def test_without_configuration_but_footers(self, step):
        stream = CONFIG[:8] + PER_SECTION[len(CONFIG) :]
        assert events(stream, step)[0] == Machine("", PAGE, BLOCKS, ram_section_id=2)
        assert events(stream, step)[1:] == events(PER_SECTION)[1:]

    @pytest.mark.parametrize("bits", [12, 13, 16])
    def test_subsections(self, bits):
        page_bits = b"\x05\x1econfiguration/target-page-bits" + struct.pack(">II", 1, bits)
        uuid = b"\x05\x12configuration/uuid" + struct.pack(">I", 1) + bytes(range(16))
        capabilities = b"\x05\x1aconfiguration/capabilities" + struct.pack(">II", 1, 0)
        config = CONFIG + page_bits + uuid + capabilities
        assert events(config + START + listed((b"ram", 1 << bits)) + EOS + END + EOS + b"\0") == [
            Machine("pc-q35-10.0", 1 << bits, (Block("ram", 1 << bits),), bytes(range(16)), 2),
            SyncPoint(), SyncPoint(),
            DeviceState(b"\0"), StreamEnd(),
        ]  # fmt: skip

    def test_continue_survives_sections(self):
        """The current block is reset only when the sender's list of blocks changes."""
        stream = CONFIG + SETUP + FLUSH + EOS + PART + zero(0, b"vga") + EOS + PART + zero(PAGE) + EOS
        assert events(stream, ended=False)[-1] == ("vga", [0, PAGE])

    def test_a_section_header_is_no_zero_page(self):
        """Its id and the word after it looked like a word with a fill byte: a wrong page was cleared."""
        big = CONFIG + START + listed((b"ram", 256 << 30)) + FLUSH + EOS
        stream = big + PART + zero(0, b"ram") + EOS + PART + zero(0x2200005000) + EOS
        assert events(stream, ended=False) == events(stream, 1, ended=False)
        assert events(stream, ended=False)[-1] == ("ram", [0, 0x2200005000])

    def test_a_block_name_is_no_zero_page(self):
        name = b"\0\0\0\0\0\0\x10\x22\0"
        setup = CONFIG + START + listed((b"ram", RAM), (name, RAM)) + FLUSH + EOS
        stream = setup + PART + zero(0, b"ram") + zero(PAGE, name)
        assert events(stream, ended=False) == events(stream, 1, ended=False)
        assert events(stream, ended=False)[-1] == (name.decode(), [PAGE])

    def test_a_long_run(self):
        """Runs are taken in pieces, and end at the first word that is not of them."""
        pages = [i * PAGE for i in range(5000)]
        run = zero(0, b"ram") + b"".join(zero(o) for o in pages)
        stream = CONFIG + START + listed((b"ram", 5000 * PAGE), (b"vga", VGA)) + FLUSH + EOS + PART + run
        assert len(MainStreamReader().feed(stream)) < 30
        expected = [("ram", [0, *pages]), ("vga", [0]), SyncPoint(), ("vga", [PAGE])]
        for step in (None, 1000, 13):
            assert events(stream + zero(0, b"vga") + FLUSH + zero(PAGE) + EOS, step, ended=False)[-4:] == expected

    @pytest.mark.parametrize("bad", [zero(RAM), zero(0, fill=1), zero(1 << 63), struct.pack(">Q", 0x10022 | 8) + b"\0"])
    def test_a_run_hides_nothing(self, bad):
        stream = CONFIG + SETUP + FLUSH + EOS + PART + zero(0, b"pc.ram") + zero(0) * 20
        assert isinstance(outcome(stream + bad + zero(0) * 20), str)
        assert outcome(stream + bad + zero(0) * 20) == outcome(stream + bad + zero(0) * 20, 1)

    def test_a_page_reaches_the_end_of_its_block(self):
        stream = CONFIG + SETUP + FLUSH + EOS + PART + zero(VGA - PAGE, b"vga") + zero(VGA - PAGE)
        assert events(stream, ended=False)[-1] == ("vga", [VGA - PAGE] * 2)


def after_start(*data: bytes) -> bytes:
    return CONFIG + SETUP + FLUSH + EOS + b"".join(data)


class TestRefuses:
    @pytest.mark.parametrize(
        ("data", "words", "offset"),
        [
            (b"\x11\x22\x33\x44\0\0\0\x01", "magic", 0),
            (b"QEVM\0\0\0\x02", "stream version 2, expected 3", 4),
            (b"QEVM\0\0\0\x03\x07\0\0\x01\x01", "machine name of 257 bytes", 9),
            (b"QEVM\0\0\0\x03\x07\0\0\0\0", "machine name of 0 bytes", 9),
            (b"QEVM\0\0\0\x03\x07\xff\xff\xff\xff", "machine name of 4294967295 bytes", 9),
            (b"QEVM\0\0\0\x03\x09", "unknown type 0x09", 8),
            (CONFIG + b"\x05\0", "empty name", 25),
            (CONFIG + b"\x05\x03foo\0\0\0\x01", "unknown configuration subsection 'foo'", None),
            (CONFIG + b"\x05\x1econfiguration/target-page-bits\0\0\0\x01\0\0\0\x0b", "target-page-bits 11", 60),
            (CONFIG + b"\x05\x1econfiguration/target-page-bits\0\0\0\x01\xff\xff\xff\xff", "expected 12 to 16", 60),
            (CONFIG + b"\x05\x1aconfiguration/capabilities\0\0\0\x01\xff\xff\xff\xff", "4294967295 capabilities", None),
            (CONFIG + b"\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x0amapped-ram", "'mapped-ram' on", None),
            (CONFIG + b"\x08\0\x02\0\x04\0\0\0\x01", "PING without OPEN_RETURN_PATH", 29),
            (CONFIG + b"\x08\0\x01\0\x01", "command 1 of 1 bytes, expected 0", 27),
            (CONFIG + b"\x08\0\x03\0\x00", r"command 3: .*postcopy", 25),
            (CONFIG + b"\x08\0\x00\0\x00", "command 0", 25),
            (CONFIG + b"\x08\0\x07\xff\xff", "command 7", 25),
            (CONFIG + b"\0", "without the end of the ram section", 24),
            (CONFIG + PART, "section id 2, expected ram's None", 25),
            (CONFIG + END, "section id 2, expected ram's None", 25),
            (CONFIG + b"\x01\0\0\0\x03\x05block" + bytes(8), "section 'block' comes before", None),
            (CONFIG + b"\x04\0\0\0\x03\x03ram" + bytes(8), "section 'ram' comes before", None),
            (CONFIG + b"\x01\0\0\0\x02\0", "empty name", 29),
            (CONFIG + START[:-4] + b"\0\0\0\x05", "ram instance 0 version 5", 33),
            (CONFIG + START[:-8] + b"\0\0\0\x01\0\0\0\x04", "ram instance 1 version 4", 33),
            (CONFIG + START + EOS, "lists no blocks", 41),
            (CONFIG + START + listed(), "block list of 0 bytes", 41),
            (CONFIG + START + listed(total=1 << 63), "block list of 9223372036854775808 bytes", 41),
            (CONFIG + START + listed((b"ram", 0), total=PAGE), "block 'ram' of 0 bytes", 53),
            (CONFIG + START + listed((b"ram", PAGE + 1), total=2 * PAGE), "block 'ram' of 4097 bytes", 53),
            (CONFIG + START + listed((b"ram", 2 * PAGE), total=PAGE), "up to 4096", 53),
            (CONFIG + START + listed((b"ram", (1 << 64) - PAGE), total=PAGE), "up to 4096", 53),
            (CONFIG + START + listed((b"ram", PAGE), (b"ram", PAGE)), "listed twice", None),
            (CONFIG + START + listed((b"r\xe4m", PAGE)), "name b'r.xe4m', expected ASCII", None),
            (b"QEVM\0\0\0\x03\x07\0\0\0\x02\xffpc", "expected ASCII", 13),
            (CONFIG + START + listed((b"", PAGE)), "empty name", 49),
            (CONFIG + SETUP + listed((b"x", PAGE)), "flags 0x4", None),
            (after_start(START), "section 'ram' comes before", None),
            (after_start(PART, listed((b"x", PAGE))), "flags 0x4", None),
            (after_start(b"\x02\0\0\0\x09"), "section id 9, expected ram's 2", None),
            (after_start(PART, struct.pack(">QBI", 0x10, 0x7D, 2)), "footer 0x7d id 2, expected 0x7e id 2", None),
            (after_start(PART, struct.pack(">QBI", 0x10, 0x7E, 3)), "footer 0x7e id 3", None),
            (after_start(PART, struct.pack(">Q", 0)), "flags 0x0", None),
            (after_start(PART, struct.pack(">Q", 0x08)), "switch the capability on", None),
            (after_start(PART, struct.pack(">Q", 0x28)), "switch the capability on", None),
            (after_start(PART, struct.pack(">Q", 0x210)), "flags 0x210", None),
            (after_start(PART, struct.pack(">Q", 0x12)), "flags 0x12", None),
            (after_start(PART, struct.pack(">Q", 0x40)), "pages by xbzrle", None),
            (after_start(PART, struct.pack(">Q", 0x100)), "pages by the old compression", None),
            (after_start(PART, zero(0)), "unknown block ''", None),
            (after_start(PART, zero(0, b"gone")), "unknown block 'gone'", None),
            (after_start(PART, zero(0, b"vga", fill=7)), "fill byte 0x07", None),
            (after_start(PART, zero(VGA, b"vga")), "0x4000 outside block 'vga'", None),
            (after_start(PART, zero(0, b"vga"), zero(VGA)), "0x4000 outside block 'vga'", None),
            (after_start(PART, zero(1 << 63, b"vga")), "outside block 'vga'", None),
            (CONFIG + START + zero(0, b"ram"), "unknown block 'ram'", None),
            (CONFIG + SETUP + EOS + PART + FLUSH, "FLUSH word, but SETUP had none", None),
        ],
    )  # fmt: skip
    def test_refused(self, data, words, offset):
        refused(data, words, offset)

    @pytest.mark.parametrize("data", [b"", CONFIG, CONFIG + SETUP + EOS, PER_SECTION[:-2]])
    def test_ends_before_ram(self, data):
        reader = MainStreamReader()
        reader.feed(data)
        with pytest.raises(StreamError, match="before all of RAM") as caught:
            reader.end()
        assert caught.value.offset <= len(data)

    @pytest.mark.parametrize("devices", [b"", b"\x04\0\0\0\x05\x05timer", b"\x04\0\0\0\x05" + bytes(50)])
    def test_ends_in_the_devices(self, devices):
        """Most of their bytes are NUL, as the EOF item is: that one follows a section's footer."""
        reader = MainStreamReader()
        reader.feed(PER_SECTION[:-1] + devices)
        with pytest.raises(StreamError, match="inside the devices' state"):
            reader.end()

    @pytest.mark.parametrize("kind", [b"\x03", b"\x04"])
    def test_ends_without_a_vmdesc(self, kind):
        """Machine types up to 2.2 send none."""
        reader = MainStreamReader()
        reader.feed(PER_SECTION[:-1] + kind + b"\0\0\0\x05" + bytes(50) + b"\x7e\0\0\0\x05\0")
        reader.end()

    def test_ends_without_footers(self):
        """Machine types up to 2.3: whether a NUL is the EOF item does not show."""
        reader = MainStreamReader()
        reader.feed(b"".join(peer.main_stream([(b"ram", RAM)], config=False).values())[:-1] + b"\x04\0\0\0\x05\0")
        reader.end()


class TestRemainder:
    """What ram does not understand; only its end matters."""

    RAM = PER_SECTION[:-1]

    def after_ram(self, data: bytes, step: int | None = None) -> list[object]:
        found = events(self.RAM + data, step, ended=False)
        expected = data[:1] if data[:1] == b"\0" else data
        assert found[6:7] == ([DeviceState(expected)] if data else [])
        return found[7:]

    @pytest.mark.parametrize("step", [None, 1, 50])
    @pytest.mark.parametrize(
        "data",
        [
            b"\0",  # a machine without devices, nothing after
            DEVICES,
            b"\x04dev}" + b"\0" + vmdesc(),
            # lengths that look like what is searched
            *(b"\x04dev" + b"\0" + vmdesc(length) for length in (0x7B, 0x0600, 0x0606, 0x067B)),
            b"\x04dev" + b"\0" + vmdesc(pad="\0\x06\0\0\0\x01{}"),
        ],
    )  # fmt: skip
    def test_ends(self, data, step):
        assert self.after_ram(data[:-1], step) == []
        assert self.after_ram(data, step) == [StreamEnd()]

    @pytest.mark.parametrize(
        "data",
        [
            b"\x04{}",
            b"\x04\0\x06\0\0\0\x02{}",  # JSON, but not a vmdesc
            b"\x04\0\x06\0\0\0\x02}}",
            b"\x04\0\x06\0\0\0\x03{]}",
            b"\x04\0\x06\0\0\0\x04{\xff\xff}",
            b"\x04\0" + vmdesc()[:1] + b"\xff\xff\xff\xff" + vmdesc()[5:],
            b"\x04\0" + vmdesc()[:-1] + b" }",
            b'\x04\0\x06\0\x03\x0d\x46{"a":' + b"[" * 200000 + b"}",  # deeper than json goes
        ],
    )
    def test_does_not_end(self, data):
        assert self.after_ram(data) == []

    def test_many_that_look_like_the_end(self, monkeypatch):
        """Only what can be the last text is parsed: a sender cannot keep the reader busy with a small stream."""
        data = b"}"
        for _ in range(1000):
            data = b"\0\x06" + struct.pack(">I", len(data) + 1) + b"{" + data
        parsed = []
        monkeypatch.setattr(vmdesc_module.json, "loads", lambda text: parsed.append(text) or {})
        assert self.after_ram(b"\x04" + data) == []
        assert parsed == [b"{}"]

    def test_anything_after_the_end_is_ignored(self):
        assert events(PER_SECTION + b"anything") == events(PER_SECTION)

    def test_a_remainder_without_end_is_bounded(self):
        reader = MainStreamReader()
        reader.feed(self.RAM + b"\x04")
        chunk = bytes(1 << 20)
        tracemalloc.start()
        try:
            for _ in range(64):
                reader.feed(chunk)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 34 << 20
        assert reader.feed(b"\0" + vmdesc())[-1] == StreamEnd()


class TestBounds:
    def test_too_many_blocks(self):
        blocks = [(b"%d" % i, PAGE) for i in range(65537)]
        assert len(events(CONFIG + START + listed(*blocks[:-1]), ended=False)[-1].blocks) == 65536
        refused(CONFIG + START + listed(*blocks), "too many")

    @pytest.mark.parametrize(
        ("data", "piece"),
        [
            (CONFIG, b"\x05\x12configuration/uuid" + bytes(20)),
            (CONFIG + b"\x08\0\x01\0\0", b"\x08\0\x02\0\x04\0\0\0\x01"),
            (CONFIG + SETUP, FLUSH),
            (CONFIG + SETUP + EOS + PART, zero(0, b"vga")),
            (CONFIG + SETUP + EOS + PART + zero(0, b"vga"), zero(0)),
            (CONFIG + SETUP + EOS, PART + EOS),
        ],
        ids=["subsection", "ping", "flush", "zero", "continue", "part"],
    )
    def test_endless_items_are_not_kept(self, data, piece):
        """What is fed is handed out or dropped."""
        piece *= 200
        reader = MainStreamReader()
        reader.feed(data)
        reader.feed(piece)
        tracemalloc.start()
        try:
            for _ in range(30):
                reader.feed(piece)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 2 * len(piece)


class TestDamage:
    STREAMS = pytest.mark.parametrize("stream", [PER_ROUND, PER_SECTION], ids=["per-round", "per-section"])

    @STREAMS
    def test_every_truncation(self, stream):
        whole = events(stream, ended=False)
        end_of_ram = stream.index(END) if stream is PER_SECTION else len(stream) - len(DEVICES)
        for cut in range(len(stream)):
            found = events(stream[:cut], ended=False)
            assert isinstance(outcome(stream[:cut]), str) or cut > end_of_ram
            last = found.pop() if found else None
            assert found == whole[: len(found)]
            if isinstance(last, tuple):
                name, pages = whole[len(found)]
                assert last == (name, pages[: len(last[1])])
            elif isinstance(last, DeviceState):
                assert whole[len(found)].data.startswith(last.data)

    @STREAMS
    def test_every_flipped_bit(self, stream):
        data = bytearray(stream)
        refused = 0
        for bit in range(8 * len(data)):
            data[bit // 8] ^= 1 << bit % 8
            found = outcome(data)
            assert outcome(data, 1) == found
            if isinstance(found, str):
                refused += 1
            else:
                self.check(found)
            data[bit // 8] ^= 1 << bit % 8
        assert refused > 4 * (len(stream) - len(DEVICES) * (stream is PER_ROUND))

    @given(
        st.lists(
            st.one_of(
                st.sampled_from([SETUP, START, PART, END, FLUSH, EOS, CONFIG[8:], DEVICES, b"\0", b"\x08\0\x01\0\0"]),
                st.builds(zero, st.integers(0, 70).map(lambda p: p * PAGE), st.sampled_from([b"", b"pc.ram", b"vga"])),
                st.binary(max_size=12),
            ),
            max_size=20,
        ),
        st.integers(1, 40),
    )
    def test_any_order(self, pieces, step):
        data = CONFIG + SETUP + FLUSH + EOS + b"".join(pieces)
        found = outcome(data)
        assert outcome(data, step) == outcome(data, 1) == found
        if not isinstance(found, str):
            self.check(found)

    def check(self, found):
        """Whatever is let through can be used without another look."""
        lists = [e for e in found if isinstance(e, Machine)]
        assert len(lists) == 1
        lengths = {b.idstr: b.used_length for b in lists[0].blocks}
        assert len(lengths) == len(lists[0].blocks)
        start = found.index(lists[0])
        end = next(i for i, event in enumerate(found) if isinstance(event, DeviceState))
        for i, event in enumerate(found):
            if isinstance(event, tuple):
                name, pages = event
                assert start < i < end
                assert all(0 <= p <= lengths[name] - PAGE and p % PAGE == 0 for p in pages)
        assert found[end + 1 :] in ([], [StreamEnd()])


class TestWrites:
    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            (writer.encode_header(Machine("", 4096, ())), "5145564d 00000003"),
            (writer.encode_header(Machine("none", 4096, ())), "5145564d 00000003 07 00000004 6e6f6e65"),
            (
                writer.encode_header(Machine("none", 65536, (), bytes(range(16))), ("mapped-ram",)),
                "5145564d 00000003 07 00000004 6e6f6e65"
                "05 1e" + b"configuration/target-page-bits".hex() + "00000001 00000010"
                "05 1a" + b"configuration/capabilities".hex() + "00000001 00000001 0a" + b"mapped-ram".hex()
                + "05 12" + b"configuration/uuid".hex() + "00000001 000102030405060708090a0b0c0d0e0f",
            ),
            (writer.encode_return_path(), "08 0001 0000  08 0002 0004 00000001"),
            (
                writer.encode_ram_start(MACHINE) + b"".join(map(writer.encode_block, BLOCKS)),
                "01 00000002 03 72616d 00000000 00000004 0000000000044004"
                "06 70632e72616d 0000000000040000 03 766761 0000000000004000",
            ),
            (writer.encode_ram_next(stream.PART, 2), "02 00000002"),
            (writer.encode_ram_next(stream.END, 2), "03 00000002"),
            (writer.encode_flush(), "0000000000000200"),
            (writer.encode_eos(MACHINE), "0000000000000010 7e 00000002"),
            (writer.encode_eos(Machine("", 4096, BLOCKS)), "0000000000000010"),
            (
                writer.encode_zero_pages("ram", np.array([0x1000, 0, 0x2200005000], np.int64)),
                "0000000000001002 03 72616d 00  0000000000000022 00  0000002200005022 00",
            ),
            (writer.encode_zero_pages("a", np.array([0], np.int64)), "0000000000000002 01 61 00"),
            (return_path.encode_answer(return_path.SHUT, 0), "0001 0004 00000000"),
            (return_path.encode_answer(return_path.PONG, 0xDEADBEEF), "0002 0004 deadbeef"),
        ],
    )  # fmt: skip
    def test_bytes(self, data, expected):
        assert data == bytes.fromhex(expected)

    def test_the_end(self):
        data = writer.encode_end(65536)
        assert data[:2] == b"\0\x06"
        assert int.from_bytes(data[2:6], "big") == len(data) - 6
        assert json.loads(data[6:]) == {"page_size": 65536, "devices": []}

    NAMES = st.text(st.characters(max_codepoint=127), min_size=1, max_size=255)

    @given(
        bits=st.integers(12, 16),
        flush=st.booleans(),
        names=st.lists(NAMES, min_size=1, max_size=4, unique=True),
        zeros=st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 9), min_size=1, max_size=9)), max_size=6),
        uuid=st.sampled_from([bytes(16), bytes(range(16))]),
        step=st.integers(1, 100),
    )
    def test_round_trip(self, bits, flush, names, zeros, uuid, step):
        page = 1 << bits
        machine = Machine("none", page, tuple(Block(name, 10 * page) for name in names), uuid, 7)
        word, sync = (writer.encode_flush(), []) if flush else (b"", [SyncPoint()])
        eos, end = word + writer.encode_eos(machine), writer.encode_end(page)
        out = writer.encode_header(machine) + writer.encode_return_path()
        out += writer.encode_ram_start(machine) + b"".join(map(writer.encode_block, machine.blocks)) + eos
        expected = [ReturnPathOpened(), Ping(1), machine, SyncPoint()]
        for which, pages in zeros:
            name, offsets = names[which % len(names)], np.array(pages, np.int64) * page
            out += writer.encode_ram_next(stream.PART, 7) + writer.encode_zero_pages(name, offsets) + eos
            expected += [(name, offsets.tolist()), SyncPoint()]
        out += writer.encode_ram_next(stream.END, 7) + writer.encode_eos(machine) + end
        assert events(out, step) == events(out) == [*expected, *sync, DeviceState(end[:1]), StreamEnd()]


class TestReturnPath:
    def test_bytes(self):
        reader = ReturnPathReader()
        data = bytes.fromhex("0002 0004 00000001  0001 0004 00000000")
        assert list(reader.feed(data)) == [(return_path.PONG, 1), (return_path.SHUT, 0)]
        assert [m for byte in data for m in reader.feed(bytes([byte]))] == [(2, 1), (1, 0)]
        assert list(reader.feed(return_path.encode_answer(return_path.SHUT, 0xFFFFFFFF))) == [(1, 0xFFFFFFFF)]

    @pytest.mark.parametrize(
        "head", ["0000 0000", "0001 0008", "0001 0000", "0002 0000", "0003 0010", "0007 0000", "0002 ffff", "5145 564d"]
    )
    def test_refused(self, head):
        data = bytes.fromhex(head)
        assert list(ReturnPathReader().feed(data[:3])) == []
        with pytest.raises(StreamError, match="return path: message"):
            list(ReturnPathReader().feed(data))

    def test_what_was_said_before_what_cannot_be_is_heard(self):
        """In whatever pieces it comes: a SHUT says where the memory is."""
        answers = ReturnPathReader().feed(return_path.encode_answer(return_path.SHUT, 0) + b"QEVM")
        assert next(answers) == (return_path.SHUT, 0)
        with pytest.raises(StreamError, match="return path: message"):
            next(answers)

    @given(st.binary(max_size=64), st.integers(1, 9))
    def test_any_bytes(self, data, step):
        def run(n: int) -> object:
            reader, messages = ReturnPathReader(), []
            try:
                for at in range(0, len(data), n):
                    messages.extend(reader.feed(data[at : at + n]))
            except StreamError as e:
                return messages, str(e)
            return messages, ""

        assert run(step) == run(64)


CONFIGURED = peer.main_stream([(b"ram", RAM)], return_path=True)
ORDINARY = peer.main_stream([(b"ram", RAM)], per_section=True)
PART_OF_OTHERS = ORDINARY["header"] + ORDINARY["setup"] + struct.pack(">BI", stream.PART, peer.RAM_ID)
OTHER_SOURCES = {
    "postcopy-ram": (CONFIGURED["header"] + CONFIGURED["commands"] + b"\x08\0\x03\0\x10" + bytes(16), "postcopy-ram"),
    "x-colo": (CONFIGURED["header"] + b"\x08\0\x08\0\0", "x-colo"),
    "another command": (CONFIGURED["header"] + b"\x08\0\x63\0\0", "command 99"),
    "no multifd": (PART_OF_OTHERS + struct.pack(">Q", 0x08) + b"\x03ram" + bytes(4096), "does not use multifd"),
    "xbzrle": (PART_OF_OTHERS + struct.pack(">Q", 0x40) + b"\x03ram", "xbzrle"),
    "compress": (PART_OF_OTHERS + struct.pack(">Q", 0x100) + b"\x03ram", "compress"),
    "rdma": (PART_OF_OTHERS + struct.pack(">Q", 0x80), "RDMA"),
}


@pytest.mark.parametrize(("data", "words"), OTHER_SOURCES.values(), ids=OTHER_SOURCES)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_a_source_of_another_kind_is_named_whatever_comes_in_which_read(data, words, step):
    def read():
        reader = MainStreamReader()
        for at in range(0, len(data), step):
            reader.feed(data[at : at + step])

    with pytest.raises(StreamError, match=words):
        read()
