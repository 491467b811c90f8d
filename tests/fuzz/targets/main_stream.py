"""The main stream of a multifd migration: the same events in any pieces, and once more from the writer."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import peer

from multifd.errors import StreamError
from multifd.wire import stream, vmdesc, writer
from multifd.wire.grammar import Grammar
from multifd.wire.reader import MainStreamReader, OnChannels
from tests.fuzz import recorded
from tests.fuzz.pieces import pieces

COVERS = ("multifd.wire.grammar", "multifd.wire.reader")
LONGEST = 800


def seeds() -> Iterator[bytes]:
    """The streams of real QEMUs, without most of the devices' state, one of old words, and one of the writer's."""
    for name in recorded.STREAMS:
        data = recorded.main(name)
        if (end := _feed(Grammar(OnChannels()), data)) < LONGEST // 2:
            yield data[:end] + b"\0" + vmdesc.encode(4096)
    pieces_of = peer.main_stream([(b"ram", 4 * peer.PAGE)], per_section=True)
    yield pieces_of["header"] + pieces_of["setup"] + pieces_of["end"] + pieces_of["eof"]
    blocks = (stream.Block("pc.ram", 4 << 16), stream.Block("vga", 1 << 16))
    machine = stream.Machine("pc-q35-10.0", 1 << 16, blocks, bytes(range(16)), 7)
    zero = writer.encode_zero_pages("vga", np.array([0], np.int64)) + writer.encode_zero_pages(
        "pc.ram", np.array([0, 2 << 16, 1 << 16], np.int64)
    )
    yield (
        writer.encode_header(machine) + writer.encode_return_path() + writer.encode_ram_start(machine)
        + b"".join(map(writer.encode_block, blocks)) + writer.encode_flush() + writer.encode_eos(machine)
        + writer.encode_ram_next(stream.PART, 7) + zero + writer.encode_flush() + writer.encode_eos(machine)
        + writer.encode_ping(2) + writer.encode_ram_next(stream.END, 7) + writer.encode_eos(machine)
        + b"\4\0\0\0\5\5timer\0\0\0\0\0\0\0\2........\x7e\0\0\0\5" + writer.encode_end(1 << 16)
    )  # fmt: skip


def fields(data: bytes) -> Iterator[tuple[int, int]]:
    """What the grammar asks for, one after the other."""
    asked: list[tuple[int, int]] = []
    end = _feed(Grammar(OnChannels()), data, asked)
    yield from asked
    if end < len(data):
        yield end, 1


def _feed(grammar: Grammar, data: bytes, asked: list[tuple[int, int]] | None = None) -> int:
    """How many bytes the grammar takes."""
    at = 0
    try:
        while not grammar.is_over and isinstance(need := grammar.request, int) and at + need <= len(data):
            if asked is not None:
                asked.append((at, need))
            grammar.feed(data[at : at + need])
            at += need
    except StreamError:
        pass
    return at


def _read(parts: list[bytes]) -> tuple[list[Any], str]:
    """What a reader says; neighbouring zero pages, and state, joined."""
    reader, events, error = MainStreamReader(), list[stream.Event](), ""
    try:
        for part in parts:
            events += reader.feed(part)
        reader.end()
    except StreamError as e:
        error = str(e)
        events += reader.taken()
    return _joined(events), error


def _joined(events: list[stream.Event]) -> list[Any]:
    out: list[Any] = []
    for event in events:
        match event:
            case stream.ZeroPages() if out and out[-1][0] == event.idstr:
                out[-1][1].extend(event.offsets.tolist())
            case stream.ZeroPages():
                out.append((event.idstr, event.offsets.tolist()))
            case stream.DeviceState() if out and out[-1][0] == "":
                out[-1][1].extend(event.data)
            case stream.DeviceState():
                out.append(("", bytearray(event.data)))
            case _:
                out.append((None, event))
    return out


def run(data: bytes) -> str:
    """Read it at once and in pieces; write what was read, and read that."""
    whole, error = _read([data])
    assert _read(pieces(data)) == (whole, error)
    if error:
        return "refused"
    again = _write(whole)
    if again is not None:
        assert _read([again]) == (whole, ""), again
    return "stream"


def _write(events: list[Any]) -> bytes | None:
    """A stream of the same events in the words of new releases: all of RAM in few sections."""
    machine = next(event for _, event in events if isinstance(event, stream.Machine))
    out, body, kind = writer.encode_header(machine), b"", stream.START
    for name, event in events:
        if name == "":
            last = stream.START if kind == stream.START else stream.END
            out += _section(machine, last, body) + (_section(machine, stream.END, b"") if last != stream.END else b"")
            out += event
        elif name is not None:
            for offset in event:
                body += writer.encode_zero_pages(name, np.array([offset], np.int64))
        elif isinstance(event, stream.SyncPoint):
            body += writer.encode_flush()
        elif isinstance(event, stream.ReturnPathOpened | stream.Ping):
            if body:
                out, body, kind = out + _section(machine, kind, body), b"", stream.PART
            is_ping = isinstance(event, stream.Ping)
            out += writer.encode_ping(event.value) if is_ping else struct.pack(">BHH", stream.COMMAND, 1, 0)
    return out


def _section(machine: stream.Machine, kind: int, body: bytes) -> bytes:
    """A section with these words."""
    if kind == stream.START:
        start = writer.encode_ram_start(machine) + b"".join(map(writer.encode_block, machine.blocks))
    else:
        start = writer.encode_ram_next(kind, machine.ram_section_id)
    return start + body + writer.encode_eos(machine)
