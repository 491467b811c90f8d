"""A mapped-ram file: refused, or read; and what was read gives the same once more, as written from the format.

An input is two bytes of length, so much of the stream's start, a byte that says at which 4 KiB of the file pages begin,
a count of them, one byte that fills each, and what comes behind the last.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import mapped_files
from plain_files import save_header

from multifd.errors import StreamError
from multifd.ram import libvirt
from multifd.ram.file_stream import _InFile
from multifd.ram.mapped_ram import HEADER
from multifd.wire.grammar import Grammar, Skip
from tests.fuzz import recorded
from tests.fuzz.memfd import file_of
from tests.fuzz.stored import look

COVERS = ("multifd.ram.file_stream", "multifd.ram.mapped_source", "multifd.ram.stored", "multifd.ram.image")

PAGE, MOST_PAGES = 4096, 24
LONGEST = 2500


def _pack(file: bytes, pages_at: int, count: int) -> bytes:
    """The input that stands for a file whose pages are each of one byte."""
    start = file[:pages_at].rstrip(b"\0")
    fills = bytes(file[pages_at + i * PAGE] for i in range(count))
    return (
        struct.pack(">H", len(start))
        + start
        + bytes([pages_at // PAGE, count])
        + fills
        + file[pages_at + count * PAGE :]
    )


def seeds() -> Iterator[bytes]:
    """One block and several, small and large pages, of machines with and without a configuration, and libvirt's."""
    ram = [(b"pc.ram", bytes(PAGE) + b"a" * PAGE + bytes(PAGE) + b"b" * PAGE)]
    for machine in (b"pc-q35-9.0", b""):
        yield _pack(mapped_files.build(ram, machine=machine, align=PAGE), PAGE, 4)
    large = [(b"ram", b"a" * (2 << 14) + bytes(1 << 14))]
    yield _pack(mapped_files.build(large, page=1 << 14, align=1 << 14, uuid=bytes(range(16))), 1 << 14, 12)
    header = save_header(libvirt.SPARSE, room=9)
    shifted = _shifted(mapped_files.build(ram, align=PAGE, room=PAGE), len(header))
    yield _pack(header + shifted, 2 * PAGE, 4)
    yield _pack(recorded.connections(recorded.MAPPED)[0][:400], PAGE, 0)  # a QEMU's, but for its pages


def _shifted(file: bytes, nbytes: int) -> bytes:
    """A file with one block behind so many bytes of somebody else's: places count from the file's start."""
    at = file.index(struct.pack(">IQ", 1, PAGE))
    version, page, bitmap_at, pages_at = HEADER.unpack_from(file, at)
    moved = file[:at] + HEADER.pack(version, page, bitmap_at + nbytes, pages_at) + file[at + HEADER.size :]
    return moved[: pages_at - nbytes] + moved[pages_at:]


def _parts(data: bytes) -> tuple[bytes, int, bytes, bytes]:
    """The start, where pages begin, what fills them, and what comes behind."""
    (length,) = struct.unpack(">H", data[:2].ljust(2, b"\0"))
    start, rest = data[2 : 2 + length], data[2 + length :]
    first, count = (*rest[:2], 0, 0)[:2]
    end = 2 + min(count, MOST_PAGES)
    return start, first * PAGE, rest[2:end], rest[end:]


def fields(data: bytes) -> Iterator[tuple[int, int]]:
    """What the grammar asks for before it skips, and the count of pages."""
    start = _parts(data)[0]
    grammar, at = Grammar(_InFile(1 << 40)), 0
    try:
        while not grammar.is_over and not isinstance(need := grammar.request, Skip) and at + need <= len(start):
            yield from _split(2 + at, need)
            grammar.feed(start[at : at + need])
            at += need
    except StreamError:
        pass
    yield from ((2 + len(start), 1), (3 + len(start), 1))


def _split(at: int, nbytes: int) -> Iterator[tuple[int, int]]:
    if nbytes == HEADER.size:
        yield from ((at, 4), (at + 4, 8), (at + 12, 8), (at + 20, 8))
    else:
        yield at, nbytes


def run(data: bytes) -> str:
    """Open, read, write anew, and read that."""
    start, pages_at, fills, rest = _parts(data)
    pages = [(pages_at + i * PAGE, bytes([fill]) * PAGE) for i, fill in enumerate(fills) if fill]
    with file_of((0, start), *pages, (pages_at + len(fills) * PAGE, rest)) as path:
        seen = look(path)
    if seen is None:
        return "refused"
    info, blocks, state = seen
    if info.format != "mapped-ram":
        return info.format
    again = mapped_files.build(
        [(idstr.encode(), content) for idstr, content in blocks.items()], machine=info.machine.encode(),
        page=info.page_size, align=info.page_size, devices=state,
    )  # fmt: skip
    with file_of((0, again)) as path:
        other = look(path)
    assert other is not None
    assert other[1:] == (blocks, state)
    return "mapped-ram"
