"""A document of `multifd bench` that somebody else made: refused with a word, or as its schema says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multifd.bench import schema
from multifd.errors import UsageError
from tests.fuzz.memfd import file_of

COVERS = ("multifd.bench.schema",)
LONGEST = 6000


def seeds() -> Iterator[bytes]:
    """A whole one, one of another kind, and what is none."""
    sample = json.loads((Path(__file__).parents[2] / "bench" / "sample.json").read_text())
    yield json.dumps(_smaller(sample)).encode()
    yield b'{"schema": "multifd-advice", "version": 1}'
    yield b'{"schema": "multifd-bench", "version": 1, "jobs": ' + b"[" * 3000
    yield b"\xff"


def _smaller(value: Any) -> Any:
    """The same with one of each list of objects."""
    if isinstance(value, dict):
        return {key: _smaller(one) for key, one in value.items()}
    return [_smaller(value[0])] if isinstance(value, list) and value and isinstance(value[0], dict) else value


def run(data: bytes) -> str:
    """Read it."""
    with file_of((0, data)) as path:
        try:
            document = schema.read(path)
        except UsageError:
            return "refused"
    json.dumps(document)
    return "result"
