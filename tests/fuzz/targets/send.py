"""Memory and files of others that are sent: the pump and Python send the same, or fail with the same words.

An input's first byte chooses the source, the second the method and the destination's release, the third by how many
pages a file is cut short once it is open; each of the rest says what one page holds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mapped_files

from multifd.live.tracker import LiveBlock
from multifd.ram.block import bare_machine
from multifd.ram.mapped_source import MappedRamSource
from multifd.ram.memory import MemorySource
from multifd.ram.raw import RawImageSource
from multifd.registry import load_method
from tests.fuzz.memfd import file_of
from tests.pump.both_paths import PATHS, memory, offsets_of_zero, send

COVERS = ("multifd.engine.send_channel", "multifd.pump.sending")

PAGE = 4096
LONGEST = 200
KINDS = ("memory", "live", "raw", "mapped-ram")
METHODS = [load_method(spec) for spec in ("none", "zstd", "zlib:engine=zlib")]
DIALECTS = ("9.0", "7.2")


def _page(kind: int) -> bytes | None:
    """What a byte of an input says of a page; None: nothing was ever written there."""
    match kind:
        case 0:
            return None
        case 1:
            return bytes(PAGE)
        case 2:
            return bytes(PAGE - 1) + b"\1"
        case 3:
            return b"\1" + bytes(PAGE - 1)
        case 4:
            return bytes(8) + b"\1" * (PAGE - 8)
    return (bytes([kind]) * 7 + b" of a page ").ljust(64, b".") * (PAGE // 64)


def seeds() -> Iterator[bytes]:
    """Every source by every method, with holes, zeros and text; more than a packet; a file that is cut short."""
    pages = bytes([5, 0, 0, 1, 2, 3, 4, 9, 9, 0, 6])
    for kind in range(len(KINDS)):
        for method in range(len(METHODS)):
            yield bytes([kind, method + len(METHODS) * (kind % 2), 0]) + pages
    for kind in (2, 3):
        yield bytes([kind, 0, 0]) + b"\7\1" * 80
        yield bytes([kind, 0, 3]) + pages


@contextlib.contextmanager
def _source(kind: str, pages: list[bytes | None], cut: int) -> Iterator[Any]:
    content = b"".join(page or bytes(PAGE) for page in pages)
    if kind == "memory":
        yield MemorySource(memory(len(content), content))
        return
    if kind == "live":
        buffer = memory(len(content), content)
        yield SimpleNamespace(
            machine=bare_machine(len(content), PAGE), blocks=(LiveBlock("ram", memoryview(buffer), PAGE),)
        )
        return
    written = [(i * PAGE, page) for i, page in enumerate(pages) if page is not None]
    if kind == "mapped-ram":
        absent = frozenset(i for i, page in enumerate(pages) if i % 16 == 7)
        written = [(0, mapped_files.build([(b"ram", content), (b"rom", content[:PAGE])], align=PAGE, absent=absent))]
    with file_of(*written, nbytes=len(content)) as path:
        source = MappedRamSource(path) if kind == "mapped-ram" else RawImageSource(path)
        _cut(path, cut)
        with contextlib.closing(source):
            yield source


def _cut(path: Path, pages: int) -> None:
    if pages:
        os.truncate(path, max(os.stat(path).st_size - pages * PAGE, 0))


def run(data: bytes) -> str:
    """Send by both paths."""
    where, how, cut, *kinds = (*data, 0, 0, 0, 0)[: max(len(data), 4)]
    kind, dialect = KINDS[where % len(KINDS)], DIALECTS[how // len(METHODS) % len(DIALECTS)]
    seen = []
    for path in PATHS:
        with _source(kind, [_page(one) for one in kinds], cut % 16) as source:
            seen.append(send(path, source, METHODS[how % len(METHODS)], dialect=dialect))
    if seen[0].error:
        assert seen[0].error == seen[1].error
        return f"{seen[0].error[0].__name__}"
    # ZERO words of several packets are written together: the same pages, in other pieces.
    assert sorted(offsets_of_zero(seen[0].main)) == sorted(offsets_of_zero(seen[1].main))
    seen[0].main = seen[1].main = b""
    assert seen[0] == seen[1]
    return f"sent, {'some' if seen[0].zero_pages else 'no'} zero pages"
