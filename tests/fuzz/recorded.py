"""Bytes of real QEMUs for seeds: the recordings, see recorded/README.md."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import zstandard

FOLDER = Path(__file__).parents[1] / "recorded"
STREAMS = ("7.2-pc-zlib", "10.0-q35-zstd", "10.0-old-type-zlib", "10.0-bare-none")
MAPPED = "10.0-mapped-ram"


@cache
def connections(name: str) -> list[bytes]:
    """The bytes of each connection of a recording, or of its one file."""
    line, _, rest = zstandard.decompress((FOLDER / f"{name}.zst").read_bytes()).partition(b"\n")
    out = []
    for length in json.loads(line)["connections"]:
        out.append(rest[:length])
        rest = rest[length:]
    return out


def main(name: str) -> bytes:
    """The main stream of a recorded migration."""
    return next(c for c in connections(name) if c.startswith(b"QEVM"))


def channel(name: str) -> bytes:
    """The first channel of a recorded migration, its init packet included."""
    return next(c for c in connections(name) if not c.startswith(b"QEVM"))
