"""A plain stream in a file: refused, or read; and what was read gives the same once more, as written from the format.

A page stands in an input as one byte, which fills it: the grammar says where.
"""

from __future__ import annotations

from collections.abc import Iterator

import plain_files
from plain_files import page_record, save_header, section, start, zero_record

from multifd.errors import StreamError
from multifd.ram import libvirt
from multifd.ram.file_stream import _InFile
from multifd.wire import vmdesc
from multifd.wire.grammar import Grammar, Skip
from tests.fuzz.memfd import file_of
from tests.fuzz.stored import look

COVERS = ("multifd.wire.grammar", "multifd.ram.file_stream", "multifd.ram.plain_source", "multifd.ram.stored")
LONGEST = 900
_MOST = 1 << 20  # bytes of a file
_PAGE = 4096


def seeds() -> Iterator[bytes]:
    """Of several releases: one block and two, pages that come again, zero pages, libvirt's header before it."""
    end = vmdesc.encode(_PAGE)
    for machine in (b"pc-i440fx-7.2", b""):
        first = start([(b"ram", bytes(4 * _PAGE)), (b"vga", bytes(_PAGE))], machine)
        body = page_record(0, b"a", b"ram") + page_record(_PAGE, b"b") + zero_record(2 * _PAGE)
        body += page_record(3 * _PAGE, b"c") + zero_record(0, b"vga")
        again = page_record(_PAGE, b"d", b"ram") + zero_record(3 * _PAGE)
        has_footer = bool(machine)
        sections = section(2, body, has_footer=has_footer) + section(3, again, has_footer=has_footer)
        yield first + sections + b"\0" + end
    large = start([(b"ram", bytes(1 << 16))], page=1 << 16)
    yield large + section(2, page_record(0, b"a", b"ram")) + section(3, b"") + plain_files.DEVICES
    small = start([(b"ram", bytes(_PAGE))]) + section(3, page_record(0, b"a", b"ram")) + b"\0" + end
    yield save_header(libvirt.RAW, room=5) + small


def _expand(data: bytes) -> tuple[bytes, list[tuple[int, int]]]:
    """The file that an input stands for, and where in the input its fields are."""
    asked: list[tuple[int, int]] = []
    at = 0
    if data.startswith(libvirt.MAGIC):
        at = min(92 + int.from_bytes(data[20:24], "little"), len(data))
        asked += [(16 + 4 * i, 4) for i in range(5)]
    out = bytearray(data[:at])
    place = _InFile(_MOST)
    grammar = Grammar(place, position=at)
    try:
        while not grammar.is_over and at < len(data) and len(out) < _MOST:
            need = grammar.request
            if isinstance(need, Skip) and need.to == grammar.position + grammar.page_size:
                out += data[at : at + 1] * grammar.page_size
                asked.append((at, 1))
                at += 1
            elif isinstance(need, Skip):  # back to the place where a mapped-ram header would be
                at -= grammar.position - need.to
                del out[need.to :]
            elif at + need > len(data):
                break
            else:
                out += data[at : at + need]
                asked.append((at, need))
                grammar.feed(data[at : at + need])
                at += need
                continue
            grammar.skip(need)
    except StreamError:
        pass
    return bytes(out) + data[at:], asked


def fields(data: bytes) -> Iterator[tuple[int, int]]:
    """What the grammar asks for, and what the pages are."""
    yield from _expand(data)[1]


def run(data: bytes) -> str:
    """Open, read, write anew, and read that."""
    with file_of((0, _expand(data)[0])) as path:
        seen = look(path)
    if seen is None:
        return "refused"
    info, blocks, state = seen
    if info.format != "stream":
        return info.format
    again = plain_files.build_plain(
        [(idstr.encode(), content) for idstr, content in blocks.items()], machine=info.machine.encode(),
        page=info.page_size, devices=state,
    )  # fmt: skip
    if not any(map(any, blocks.values())):
        return "only zeros"  # a stream without a page is refused
    with file_of((0, again)) as path:
        other = look(path)
    assert other is not None
    assert other[1:] == (blocks, state)
    return "stream"
