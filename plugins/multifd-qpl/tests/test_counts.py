"""The C code trusts no count of its caller."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from multifd_qpl._batch import ffi, lib
from multifd_qpl.jobs import BatchEngine
from multifd_qpl.library import load
from qpl_ends import Ends, make_pages

from multifd.method import MultifdMethods
from multifd.pages import Geometry

COUNT = 8
PAGE = 65536


@pytest.fixture
def engine(libqpl: str) -> Iterator[BatchEngine]:
    """A channel for packets of eight pages."""
    made = BatchEngine(load(), Geometry.of(PAGE), bytearray(1), hardware=False, wait=False, retries=0, verify=False)
    yield made
    made.close()


def compress(engine: BatchEngine, counts: list[int]) -> int:
    """A batch of runs of so many pages, all in the same memory."""
    memory = ffi.new("uint8_t[]", PAGE * COUNT)
    runs = ffi.new("mq_run[]", len(counts))
    for run, count in zip(runs, counts, strict=True):
        run.start, run.page_count = memory, count
    lengths, pieces = ffi.new("uint8_t[]", 4 * COUNT), ffi.new("mq_piece[]", COUNT)
    result: int = lib.mq_compress(engine._channel, runs, len(counts), lengths, pieces, ffi.new("uint32_t *"))
    return result


@pytest.mark.parametrize("counts", [[8], [1] * 8, [3, 5], [1]])
def test_compress(engine: BatchEngine, counts: list[int]) -> None:
    assert compress(engine, counts) == lib.MQ_OK


@pytest.mark.parametrize(
    "counts", [[], [9], [0], [1] * 9, [4, 5], [8, 1], [1, 0, 1], [2**32 - 1], [1, 2**32 - 1], [2**31, 2**31], [7, 2]]
)
def test_compress_refuses(engine: BatchEngine, counts: list[int]) -> None:
    assert compress(engine, counts) == lib.MQ_MISUSE


def decompress(engine: BatchEngine, counts: list[int], payload: bytes, given: int | None = None) -> int:
    memory = ffi.new("uint8_t[]", PAGE * COUNT)
    runs = ffi.new("mq_run[]", len(counts))
    for run, count in zip(runs, counts, strict=True):
        run.start, run.page_count = memory, count
    data: Any = ffi.new("uint8_t[]", payload)
    length = len(payload) if given is None else given
    result: int = lib.mq_decompress(engine._channel, runs, len(counts), data, length)
    return result


def table(*lengths: int) -> bytes:
    return b"".join(length.to_bytes(4, "big") for length in lengths)


@pytest.mark.parametrize(
    ("counts", "payload", "given"),
    [
        ([9], table(*[1] * 9) + bytes(9), None),
        ([], b"", None),
        ([2], table(1, 1), None),  # the pages' bytes are missing
        ([2], table(1, 1) + b"\0", None),
        ([2], table(1, 1) + bytes(3), None),
        ([2], table(1, 1) + bytes(2), 7),  # shorter than its table
        ([2], table(1, 1) + bytes(2), 0),
        ([1], table(PAGE + 1) + bytes(PAGE + 1), None),
        ([2], table(2**32 - 1, 3) + bytes(2), None),
        ([2], table(2**31, 2**31), None),
    ],
)
def test_decompress_refuses(engine: BatchEngine, counts: list[int], payload: bytes, given: int | None) -> None:
    assert decompress(engine, counts, payload, given) == lib.MQ_MISUSE


def test_hooks_say_so(libqpl: str) -> None:
    """More pages than the geometry has is the engine's mistake, not the peer's: no CodecError."""
    from multifd_qpl.method import QplMethod, QplOptions

    method: MultifdMethods = QplMethod(QplOptions(software="libqpl", hardware="off"))
    with Ends(method) as ends:
        for offsets in (None, [2 * 4096 * i for i in range(129)]):  # one run, and as many runs as pages
            memory = make_pages(4096, 129 if offsets is None else 258)
            with pytest.raises(ValueError, match=r"(at most|packets of) 128 pages"):
                ends.send(memory, offsets)
            payload = table(*[4096] * 129) + bytes(129 * 4096)
            with pytest.raises(ValueError, match=r"(at most|packets of) 128 pages"):
                ends.receive(payload, memory, offsets)
        source, target = make_pages(4096, 128), bytearray(4096 * 128)
        ends.receive(ends.send(source), target)
        assert target == source
