"""The fuzzer's seeds, and what is one step away from them, without the fuzzer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from multifd.errors import CodecError, MethodNotFound, RemoteWireError
from multifd.pump import library
from tests.fuzz.packet import KINDS, SPECS, quick_folder, run, seeds

pytestmark = pytest.mark.skipif(bool(library.unavailable_reason()), reason=f"no pump: {library.unavailable_reason()}")

STEPS = 25


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield Path(made)


@pytest.mark.parametrize("number", range(len(KINDS) * len(SPECS)))
def test_seeds_and_their_neighbours(number: int, folder: Path) -> None:
    seed, rng = list(seeds())[number], random.Random(number)
    seen = run(seed, folder)
    assert seen.error is None
    assert (seen.normal_pages, seen.zero_pages) == (6, 5)
    kinds = set()
    for _ in range(STEPS):
        data = bytearray(seed)
        for _ in range(rng.choice((1, 1, 2))):
            data[rng.randrange(1, min(len(data), 260))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        if rng.random() < 0.1:
            del data[rng.randrange(1, len(data)) :]
        error = run(bytes(data), folder).error
        kinds.add(error and error[0])
    assert kinds & {RemoteWireError, CodecError, MethodNotFound}
