"""The manifest of stored streams: refused with a word, or byte for byte what is written of it.

An input's first byte says whether the rest is the file, or its body, to which its digest is added as it is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from multifd.errors import RamError
from multifd.ram.manifest import MOST_BYTES, FileEntry, Manifest

COVERS = ("multifd.ram.manifest",)
LONGEST = 1500
RAW, SEALED = 0, 1


def seeds() -> Iterator[bytes]:
    """Of one channel and of two, of either version, with digests of RAM and without; and what is none."""
    old = FileEntry(4096, "ab" * 32, 3, 5)
    for channels, entry in product((1, 2), (old, replace(old, xxh3="1" * 32))):
        files = {"main": entry, **{f"channel-{i}": entry for i in range(channels)}}
        for ram in (None, {"pc.ram": "cd" * 32}):
            whole = Manifest("multifd 1", "zstd:level=1", 4096, files, ram).encode()
            yield bytes([RAW]) + whole
            yield bytes([SEALED]) + json.dumps(json.loads(whole)["multifd_streams"]).encode()
    yield bytes([RAW]) + b"[" * 1400
    yield bytes([SEALED]) + b'{"version": true}'


def run(data: bytes) -> str:
    """Read it."""
    text = data[1:]
    if data[:1] == bytes([SEALED]):
        try:
            body = json.loads(text)
            sealed = json.dumps(body, indent=1).encode()
        except (ValueError, RecursionError):
            return "no document"
        document = {"multifd_streams": body, "sha256": hashlib.sha256(sealed).hexdigest()}
        text = json.dumps(document, indent=1).encode() + b"\n"
    try:
        found = Manifest.decode(text)
    except RamError:
        return "refused"
    assert found.encode() == text
    assert len(text) <= MOST_BYTES
    assert 1 <= found.channels <= 255
    assert list(found.files) == ["main", *(f"channel-{i}" for i in range(found.channels))]
    assert all(entry.nbytes >= 0 for entry in found.files.values())
    if found.ram is None:
        return "manifest"
    assert all(name.isascii() and 1 <= len(name) <= 255 for name in found.ram)
    assert all(len(bytes.fromhex(digest)) == 32 for digest in found.ram.values())
    return "manifest with RAM"
