"""The main stream: bytes written by hand from its grammar, both modes of sync points, damage at every byte."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multifd.errors import StreamError
from multifd.mainstream import (
    END,
    PART,
    PONG,
    SHUT,
    Block,
    BlockList,
    Configuration,
    MainStreamReader,
    Ping,
    RamEnd,
    ReturnPathOpened,
    ReturnPathReader,
    StreamEnd,
    SyncPoint,
    ZeroPages,
    encode_answer,
    encode_end,
    encode_eos,
    encode_flush,
    encode_header,
    encode_ram_next,
    encode_ram_start,
    encode_return_path,
    encode_zero_pages,
)

BLOCKS = (Block("pc.ram", 0x10000), Block("pc.bios", 0x2000))


def words(*values: int) -> bytes:
    return b"".join(v.to_bytes(8, "big") for v in values)


HEAD = b"QEVM\0\0\0\3" + b"\x07\0\0\0\x04none"
LIST = words(0x12000 | 0x04) + b"\x06pc.ram" + words(0x10000) + b"\x07pc.bios" + words(0x2000)
START = b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04"
EOS = words(0x10) + b"\x7e\0\0\0\x02"
FLUSH = words(0x200)
PART_ = b"\x02\0\0\0\x02"
END_ = b"\x03\0\0\0\x02"
ZEROES = words(0x3000 | 0x02) + b"\x06pc.ram\0" + words(0x22) + b"\0" + words(0xF022) + b"\0"
VMDESC = b'{"page_size": 4096, "devices": [{"name": "x"}]}'
DEVICES = b"\x04\0\0\0\x09\x03cpu" + bytes(8) + b"\x01\x02\0\x06}\x7e\0\0\0\x09"
TAIL = DEVICES + b"\0\x06" + len(VMDESC).to_bytes(4, "big") + VMDESC

OLD = HEAD + START + LIST + EOS + PART_ + ZEROES + EOS + END_ + EOS + b"\0"
NEW = HEAD + START + LIST + FLUSH + EOS + PART_ + EOS + END_ + FLUSH + EOS + TAIL
RETURN_PATH = b"\x08\0\x01\0\0" + b"\x08\0\x02\0\x04\0\0\0\x01"


def flat(events: Any) -> list[Any]:
    """Events that can be compared; runs of zero pages taken apart, since their division is free."""
    out: list[Any] = []
    for event in events:
        if isinstance(event, ZeroPages):
            out += [(event.idstr, offset) for offset in event.offsets.tolist()]
        else:
            out.append(event)
    return out


def read(data: bytes, *, end: bool = True, step: int = 0) -> list[Any]:
    reader = MainStreamReader()
    pieces = [data[i : i + step] for i in range(0, len(data), step)] if step else [data]
    events = [event for piece in pieces for event in reader.feed(piece)]
    if end:
        reader.end()
    return flat(events)


SETUP: list[Any] = [Configuration("none", 4096), BlockList(BLOCKS)]
ZERO_EVENTS: list[Any] = [("pc.ram", 0x3000), ("pc.ram", 0), ("pc.ram", 0xF000)]
OLD_EVENTS = [*SETUP, SyncPoint(), *ZERO_EVENTS, SyncPoint(), SyncPoint(), RamEnd(), StreamEnd()]
NEW_EVENTS = [*SETUP, SyncPoint(), SyncPoint(), RamEnd(), StreamEnd()]


def test_sync_points_at_each_section() -> None:
    assert read(OLD) == OLD_EVENTS


def test_sync_points_are_words() -> None:
    assert read(NEW) == NEW_EVENTS


def test_return_path() -> None:
    assert read(HEAD + RETURN_PATH + OLD[len(HEAD) :])[1:3] == [ReturnPathOpened(), Ping(1)]


@pytest.mark.parametrize("data", [OLD, NEW])
@pytest.mark.parametrize("step", [1, 2, 7, 9, 64])
def test_pieces_change_nothing(data: bytes, step: int) -> None:
    assert read(data, step=step) == read(data)


def test_without_configuration() -> None:
    """Machines older than 2.4 have none."""
    assert read(HEAD[:8] + OLD[len(HEAD) :]) == OLD_EVENTS[1:]


def test_page_size_in_the_configuration() -> None:
    subsection = b"\x05\x1econfiguration/target-page-bits" + struct.pack(">II", 1, 16)
    reader = MainStreamReader()
    assert reader.feed(HEAD + subsection + START) == [Configuration("none", 65536)]
    assert reader.page_size == 65536


def test_block_reference_survives_sections() -> None:
    more = PART_ + words(0x1022) + b"\0" + EOS
    data = OLD.replace(END_ + EOS, more + END_ + EOS)
    assert ("pc.ram", 0x1000) in read(data)


def test_long_runs_of_zero_words() -> None:
    blocks = (Block("ram", 5000 * 4096),)
    offsets = np.arange(5000, dtype=np.int64) * 4096
    data = encode_header("none", 4096) + encode_ram_start(2, blocks) + encode_flush() + encode_eos(2)
    data += encode_ram_next(PART, 2) + encode_zero_pages("ram", offsets) + encode_eos(2)
    reader = MainStreamReader()
    events = reader.feed(data)
    assert [o for e in events if isinstance(e, ZeroPages) for o in e.offsets.tolist()] == offsets.tolist()
    assert len(events) < 30  # taken in runs, not one by one
    assert flat(events) == read(data, end=False, step=1000)


# -- what must not be ------------------------------------------------------------------------------


def setup(body: bytes) -> bytes:
    return HEAD + START + LIST + EOS + PART_ + body


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"QEVX" + HEAD[4:], "magic"),
        (b"QEVM\0\0\0\2", "version 2"),
        (HEAD[:8] + b"\x07\0\0\1\1", "257 bytes"),
        (HEAD[:8] + b"\x07\0\0\0\0", "0 bytes"),
        (HEAD + b"\x05\x03abc\0\0\0\1", "'abc'"),
        (HEAD + b"\x05\x1econfiguration/target-page-bits" + struct.pack(">II", 1, 11), "target-page-bits 11"),
        (HEAD + b"\x05\x1econfiguration/target-page-bits" + struct.pack(">II", 1, 1 << 31), "target-page-bits"),
        (HEAD + b"\x05\x1aconfiguration/capabilities" + struct.pack(">II", 1, 65), "65 capabilities"),
        (HEAD + b"\x05\x1aconfiguration/capabilities" + struct.pack(">II", 1, 1) + b"\x01x", "capability 'x'"),
        (HEAD + b"\x09", "unknown type"),
        (HEAD + b"\0", "without the end of the ram section"),
        (HEAD + b"\x08\0\x05\0\0", "command 5"),
        (HEAD + b"\x08\0\x02\0\x05", "5 bytes"),
        (HEAD + b"\x08\0\x02\0\x04\0\0\0\x01", "PING without"),
        (HEAD + b"\x01\0\0\0\x02\0", "empty name"),
        (HEAD + b"\x01\0\0\0\x02\x03rom" + bytes(8), "'rom'"),
        (HEAD + b"\x04\0\0\0\x02\x03ram" + bytes(8), "'ram'"),
        (HEAD + b"\x01\0\0\0\x02\x03ram\0\0\0\1\0\0\0\x04", "instance 1"),
        (HEAD + b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x05", "version 5"),
        (HEAD + PART_, "section id 2"),
        (HEAD + START + EOS, "no blocks"),
        (HEAD + START + words(0x1004) + b"\x01a" + words(0), "0 bytes"),
        (HEAD + START + words(0x1004) + b"\x01a" + words(0x2000), "8192 bytes"),
        (HEAD + START + words(0x1004) + b"\x01a" + words(0x800), "2048 bytes"),
        (HEAD + START + words(0x2004) + (b"\x01a" + words(0x1000)) * 2, "listed twice"),
        (HEAD + START + LIST + LIST, "flags 0x4"),
        (HEAD + START + LIST + words(0x10) + b"\x7e\0\0\0\x03", "footer"),
        (HEAD + START + LIST + words(0x10) + b"\x7f\0\0\0\x02", "footer"),
        (HEAD + START + LIST + EOS + b"\x02\0\0\0\x03", "section id 3"),
        (HEAD + START + LIST + EOS + START, "'ram'"),
        (setup(FLUSH), "SETUP had none"),
        (setup(words(0x08)), "does not use multifd"),
        (setup(words(0x100)), "flags 0x100"),
        (setup(words(0x12)), "flags 0x12"),
        (setup(words(0x02) + b"\x06pc.ram\x01"), "fill byte"),
        (setup(words(0x02) + b"\x06pc.rom\0"), "'pc.rom'"),
        (setup(words(0x22) + b"\0"), "unknown block"),
        (setup(words(0x10002) + b"\x06pc.ram\0"), "outside"),
        (setup(words(0x02) + b"\x06pc.ram\0" + words(0x10022) + b"\0"), "outside"),
        (setup(words(0x02) + b"\x06pc.ram\0" + words((1 << 63) | 0x22) + b"\0"), "outside"),
        (setup(words(0x02) + b"\x06pc.ram\0" + words(0x1022) + b"\x05"), "fill byte"),
    ],
)
def test_damaged(data: bytes, says: str) -> None:
    with pytest.raises(StreamError, match=says) as caught:
        read(data)
    assert caught.value.offset is not None
    assert 0 <= caught.value.offset <= len(data)
    with pytest.raises(StreamError, match=says):
        read(data, step=1)


@pytest.mark.parametrize("data", [OLD, NEW])
def test_truncated_anywhere(data: bytes) -> None:
    ends = [cut for cut in range(len(data)) if _ends_well(data[:cut])]
    # The stream of a machine whose vmdesc is suppressed ends at EOF; what looks so is all that passes.
    assert all(data[cut - 1] == 0 for cut in ends)
    ram_end = data.index(END_) + len(END_)
    assert all(cut > ram_end for cut in ends)


def _ends_well(data: bytes) -> bool:
    try:
        read(data)
    except StreamError:
        return False
    return True


@settings(max_examples=300)
@given(st.sampled_from([OLD, NEW, HEAD + RETURN_PATH + NEW[len(HEAD) :]]), st.data())
def test_flipped_bits(stream: bytes, data: st.DataObject) -> None:
    damaged = bytearray(stream)
    for bit in data.draw(st.lists(st.integers(0, 8 * len(stream) - 1), min_size=1, max_size=3)):
        damaged[bit // 8] ^= 1 << bit % 8
    outcomes = []
    for step in (0, 1):
        reader, events = MainStreamReader(), []
        try:
            for piece in [bytes(damaged)] if not step else [bytes([b]) for b in damaged]:
                events += reader.feed(piece)
            reader.end()
            outcomes.append((flat(events), None))
        except StreamError as e:
            outcomes.append(([], str(e)))
    assert outcomes[0] == outcomes[1]


@given(st.binary(max_size=200))
def test_garbage(data: bytes) -> None:
    with pytest.raises(StreamError):
        read(data)


# -- the remainder -----------------------------------------------------------------------------------

RAM_ONLY = NEW[: -len(TAIL)]


def test_end_of_a_machine_without_devices() -> None:
    assert read(RAM_ONLY + encode_end(4096))[-1] == StreamEnd()
    assert json.loads(encode_end(4096)[6:]) == {"page_size": 4096, "devices": []}


def test_vmdesc_whose_length_holds_nul_and_brace() -> None:
    for length in (0x007B, 0x0600, 0x0606):
        body = b'{"page_size": 4096, "devices": []'.ljust(length - 1) + b"}"
        assert len(body) == length
        data = RAM_ONLY + DEVICES + b"\0\x06" + length.to_bytes(4, "big") + body
        assert read(data)[-1] == StreamEnd()
        assert StreamEnd() not in read(data[:-1], end=False)


def test_devices_that_never_end_are_not_kept() -> None:
    reader = MainStreamReader()
    reader.feed(RAM_ONLY)
    for _ in range(40):
        reader.feed(b"\x04" * (1 << 20))
    assert StreamEnd() in reader.feed(TAIL)
    assert len(reader._tail) <= 16 << 20


# -- writing -----------------------------------------------------------------------------------------


def test_encoders_write_the_grammar() -> None:
    zeroes = encode_zero_pages("pc.ram", np.array([0x3000, 0, 0xF000], np.int64))
    assert encode_header("none", 4096) == HEAD
    assert encode_ram_start(2, BLOCKS) + encode_eos(2) == START + LIST + EOS
    assert encode_ram_next(PART, 2) + zeroes + encode_eos(2) == PART_ + ZEROES + EOS
    assert encode_ram_next(END, 2) + encode_flush() + encode_eos(2) == END_ + FLUSH + EOS
    assert encode_return_path() == RETURN_PATH


@pytest.mark.parametrize("page_size", [4096, 8192, 65536])
def test_header_round_trip(page_size: int) -> None:
    reader = MainStreamReader()
    assert reader.feed(encode_header("virt", page_size) + START) == [Configuration("virt", page_size)]


# -- return path -------------------------------------------------------------------------------------


def test_answers() -> None:
    data = encode_answer(PONG, 1) + encode_answer(SHUT, 0)
    assert data == b"\0\2\0\4\0\0\0\1" + b"\0\1\0\4\0\0\0\0"
    assert ReturnPathReader().feed(data) == [(PONG, 1), (SHUT, 0)]
    reader = ReturnPathReader()
    assert [m for b in data for m in reader.feed(bytes([b]))] == [(PONG, 1), (SHUT, 0)]


@pytest.mark.parametrize("data", [b"\0\3\0\4", b"\0\1\0\5", b"\0\2\xff\xff", b"\0\0\0\0"])
def test_answers_damaged(data: bytes) -> None:
    with pytest.raises(StreamError, match="return path"):
        ReturnPathReader().feed(data)
