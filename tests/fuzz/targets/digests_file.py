"""The digests beside a capture: refused with a word, or the same once more as they are written.

An input's first byte says whether the rest is the file, or lines to which the seal, the digest of all lines, is added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from multifd.ram import sidecar
from multifd.ram.checksum import HEX_DIGITS
from multifd.ram.span import Span

COVERS = ("multifd.ram.sidecar",)
LONGEST = 800
RAW, SEALED = 0, 1
_DIGEST = "ab" * 32


def seeds() -> Iterator[bytes]:
    """multifd's own, and sha256sum's, with a name that is escaped."""
    spans = [
        Span(0, 4096, "structure"),
        Span(4096, 1 << 20, "block pc.ram at 0x0"),
        Span((1 << 20) + 4096, 9, "devices"),
    ]
    whole = sidecar.encode("vm.ram", _DIGEST, spans, {kind: ["a" * digits] * 3 for kind, digits in HEX_DIGITS.items()})
    yield bytes([RAW]) + whole
    yield bytes([SEALED]) + whole.rpartition(b"# ")[0]
    yield bytes([RAW]) + b"\\" + _DIGEST.encode() + b"  a\\nb\\\\\n"
    yield bytes([RAW]) + b"".join(_DIGEST.encode() + b" *" + name + b"\n" for name in (b"vm.ram", b"other"))


def run(data: bytes) -> str:
    """Read it."""
    text = data[1:]
    if data[:1] == bytes([SEALED]):
        text += b"# " + hashlib.sha256(text).hexdigest().encode() + b" of the lines above\n"
    try:
        found = sidecar._parse(text, "vm.ram", Path("vm.ram.sha256"), 0)
    except ValueError:
        return "refused"
    assert len(found.digest) == 64
    assert all(len(found.spans) == len(digests) for digests in found.digests.values())
    end = 0
    for span in found.spans:
        assert span.first == end
        assert span.nbytes > 0
        end += span.nbytes
    if set(found.digests) != set(HEX_DIGITS):
        return "SHA-256 alone"
    again = sidecar.encode(found.name, found.digest, found.spans, found.digests)
    other = sidecar._parse(again, found.name, found.path, 0)
    assert (other.name, other.digest, other.spans, other.digests) == (
        found.name, found.digest, found.spans, found.digests
    )  # fmt: skip
    return "digests"
