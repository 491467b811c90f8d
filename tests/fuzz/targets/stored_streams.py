"""Stored streams of which only the digests are right: refused with a word, or what is said of them adds up.

An input is two bytes of length, so much of main, and a channel's packets as `packet`'s.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import peer

from multifd.engine import streams_info
from multifd.errors import RamError
from multifd.pages import Geometry
from multifd.ram.manifest import NAME, FileEntry, Manifest
from multifd.registry import load_method
from multifd.wire.packet import InitPacket
from tests.fuzz.targets import main_stream, packet

COVERS = ("multifd.engine.streams_info", "multifd.engine.checking", "multifd.ram.folder", "multifd.wire.walker")
LONGEST = 1500
_FOLDER = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
_PATH = Path(_FOLDER.name)


def seeds() -> Iterator[bytes]:
    """A main stream of each way to say sync points, and packets of several methods."""
    for per_section in (False, True):
        parts = peer.main_stream([(b"ram", packet.PAGES * packet.PAGE)], per_section=per_section)
        main = parts["header"] + parts["setup"] + parts["end"] + parts["eof"]
        for method in ("none", "zstd"):
            channel = packet.sound(load_method(method))
            yield struct.pack(">H", len(main)) + main + channel + packet.sound(load_method(method), ())


def fields(data: bytes) -> Iterator[tuple[int, int]]:
    """Of main, and of the packets."""
    length = int.from_bytes(data[:2], "big")
    yield from ((2 + at, nbytes) for at, nbytes in main_stream.fields(data[2 : 2 + length]))
    yield from ((1 + length + at, nbytes) for at, nbytes in packet.fields(data[1 + length :]) if at)


def run(data: bytes) -> str:
    """Store them, and look."""
    length = int.from_bytes(data[:2], "big")
    files = {
        "main": data[2 : 2 + length],
        "channel-0": InitPacket(0).encode() + packet.expand(data[2 + length :]),
    }
    entries = {}
    for name, content in files.items():
        (_PATH / name).write_bytes(content)
        entries[name] = FileEntry(len(content), hashlib.sha256(content).hexdigest())
    (_PATH / NAME).write_bytes(Manifest("multifd 1", "", packet.PAGE, entries).encode())
    try:
        info = streams_info.info(_PATH)
    except RamError:
        return "refused"
    assert streams_info.verify(_PATH) == info
    json.dumps(info.as_dict())
    assert info.stored_bytes == sum(map(len, files.values()))
    pages = sum(info.blocks.values()) // Geometry.of(info.page_size).page_size
    assert 0 <= info.repeated_pages <= max(0, sum(one.normal_pages for one in info.streams))
    assert sum(one.normal_pages for one in info.streams) - info.repeated_pages <= pages
    return "streams"
