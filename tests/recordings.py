"""The recorded streams of real QEMUs: see recorded/README.md."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

FOLDER = Path(__file__).parent / "recorded"


class Recording(NamedTuple):
    head: dict[str, Any]
    connections: list[bytes]

    @property
    def main(self) -> bytes:
        return next(c for c in self.connections if c.startswith(b"QEVM"))

    @property
    def channels(self) -> list[bytes]:
        return [c for c in self.connections if not c.startswith(b"QEVM")]


@functools.cache
def load(name: str) -> Recording:
    line, _, rest = zstandard.decompress((FOLDER / f"{name}.zst").read_bytes()).partition(b"\n")
    head, connections = json.loads(line), []
    for length in head["connections"]:
        connections.append(rest[:length])
        rest = rest[length:]
    assert not rest
    return Recording(head, connections)
