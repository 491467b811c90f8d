"""The manifest of stored streams: refused with a word, or the very bytes that would be written.

An input's first byte says whether the rest is the file, or its body, which gets the digest that belongs to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from multifd.errors import RamError
from multifd.ram.manifest import MAIN, FileEntry, Manifest, channel_name

COVERS = ("multifd.ram.manifest",)
LONGEST = 900
RAW, SEALED = 0, 1


def seeds() -> Iterator[bytes]:
    """Of one and two channels, whole and as a body."""
    for channels in (1, 2):
        names = (MAIN, *map(channel_name, range(channels)))
        entries = {name: FileEntry(number + 1, "ab" * 32, number, 7) for number, name in enumerate(names)}
        whole = Manifest("multifd 0.1.0", "zstd:level=9", 4096, entries).encode()
        yield bytes([RAW]) + whole
        yield bytes([SEALED]) + json.dumps(json.loads(whole)["multifd_streams"], indent=1).encode()


def run(data: bytes) -> str:
    """Read it."""
    text = data[1:]
    if data[:1] == bytes([SEALED]):
        digest = hashlib.sha256(text).hexdigest()
        indented = text.replace(b"\n", b"\n ")
        text = b'{\n "multifd_streams": ' + indented + f',\n "sha256": "{digest}"\n}}\n'.encode()
    try:
        found = Manifest.decode(text)
    except RamError:
        return "refused"
    assert found.encode() == text
    assert list(found.files) == [MAIN, *map(channel_name, range(found.channels))]
    return f"a manifest of {min(found.channels, 2)}"
