"""Which streams are a page (see `multifd_qpl.inflate`): every engine gives the same answer, at every page size, and
writes to the pages alone."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from multifd_qpl.method import QplMethod, QplOptions
from multifd_qpl.simulator import SimulatedIaa
from qpl_ends import PAGE_SIZES, Ends

from multifd.errors import CodecError


@pytest.fixture(params=["isal", "libqpl", "iaa on libqpl", "iaa simulated"])
def method(request: pytest.FixtureRequest) -> Iterator[QplMethod]:
    """The method on every engine; the library's hardware path is the stand-in's."""
    if request.param == "iaa simulated":
        with SimulatedIaa() as iaa:
            yield QplMethod(library=iaa.library)
        return
    if request.param == "iaa on libqpl":
        request.getfixturevalue("standin_library").standin_set_hardware(0)
        yield QplMethod(QplOptions(hardware="required"))
        return
    if request.param == "libqpl":
        request.getfixturevalue("libqpl")
    yield QplMethod(QplOptions(software=request.param, hardware="off"))


@cache
def deflate(page: bytes, window: int = -12, flush: int = zlib.Z_FINISH) -> bytes:
    deflater = zlib.compressobj(6, zlib.DEFLATED, window)
    return deflater.compress(page) + deflater.flush(flush)


@cache
def text(nbytes: int) -> bytes:
    rng = random.Random(nbytes)
    return b" ".join(rng.choice([b"page", b"block", b"packet", b"sync"]) for _ in range(nbytes))[:nbytes]


def far_repeats(page_size: int) -> bytes:
    """Repeats at distances of 5000, beyond QPL's history of 4096."""
    return (random.Random(page_size).randbytes(5000) * (page_size // 5000 + 1))[:page_size]


def stored(data: bytes) -> bytes:
    """A final block that holds bytes as they are: RFC 1951, 3.2.4."""
    return b"\x01" + struct.pack("<HH", len(data), len(data) ^ 0xFFFF) + data


ACCEPTED: dict[str, Callable[[int], tuple[bytes, bytes]]] = {
    "intact": lambda n: (text(n), deflate(text(n))),
    "distances above 4096": lambda n: (far_repeats(n), deflate(far_repeats(n), -15)),
    "no end mark": lambda n: (text(n), deflate(text(n), flush=zlib.Z_FULL_FLUSH)),
    "end mark in a block of its own": lambda n: (text(n), deflate(text(n), flush=zlib.Z_FULL_FLUSH) + stored(b"")),
    **{
        f"{count} bytes behind the end": lambda n, count=count: (text(n), deflate(text(n)) + b"\xaa" * count)
        for count in (1, 2, 6, 7, 8, 9, 16, 100, 700)
    },
}

REFUSED: dict[str, Callable[[int], bytes]] = {
    "one byte short": lambda n: deflate(text(n - 1)),
    "one byte short, no end mark": lambda n: deflate(text(n - 1), flush=zlib.Z_FULL_FLUSH),
    "one byte short, bytes behind": lambda n: deflate(text(n - 1)) + b"\xaa" * 100,
    "cut in half": lambda n: deflate(text(n))[: len(deflate(text(n))) // 2],
    "block type 3": lambda _n: b"\x07\x00\x00",
    "reference before the start": lambda _n: bytes.fromhex("4b040200"),
    **{
        f"{count} bytes too many": lambda n, count=count: deflate(text(n) + b"x" * count)
        for count in (1, 2, 63, 64, 65, 127, 128, 200)
    },
    **{
        # libqpl 1.6.0 calls these good at 64 KiB, and writes 1 to 3 of them behind the room it was given.
        f"{count} stored bytes too many": lambda n, count=count: (
            deflate(text(n), flush=zlib.Z_FULL_FLUSH) + stored((b"EVIL" * 250)[:count])
        )
        for count in (1, 2, 3, 4, 5, 8, 64, 65, 128, 1000)
    },
}


def receive(ends: Ends, stream: bytes) -> bytes | CodecError:
    """The page that a stream gives, or the error, between two pages that must stay as they are."""
    page_size = ends.geometry.page_size
    memory = bytearray(b"\xa5" * (3 * page_size))
    error = None
    try:
        ends.receive(struct.pack(">I", len(stream)) + stream, memory, [page_size])
    except CodecError as e:
        error = e
    assert memory[:page_size] == memory[2 * page_size :] == b"\xa5" * page_size
    return error or bytes(memory[page_size : 2 * page_size])


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_accepted(method: QplMethod, page_size: int) -> None:
    with Ends(method, page_size) as ends:
        for case, make in ACCEPTED.items():
            if (case, page_size) == ("distances above 4096", 4096):
                continue  # no room for any
            page, stream = make(page_size)
            assert (case, receive(ends, stream)) == (case, page)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_refused(method: QplMethod, page_size: int) -> None:
    with Ends(method, page_size) as ends:
        for case, make in REFUSED.items():
            answer = receive(ends, make(page_size))
            assert isinstance(answer, CodecError), case
            assert "page 0" in str(answer), case


@pytest.mark.parametrize("page_size", [8192, 65536])
def test_only_what_is_in_doubt_is_done_again(method: QplMethod, page_size: int) -> None:
    """Far repeats, a raw page and an ordinary one in a packet: all are right, and counted once."""
    pages = [text(page_size), far_repeats(page_size), random.Random(1).randbytes(page_size), text(page_size)]
    streams = [deflate(pages[0]), deflate(pages[1], -15), pages[2], deflate(pages[3])]
    memory = bytearray(4 * page_size)
    with Ends(method, page_size) as ends:
        ends.receive(struct.pack(">4I", *map(len, streams)) + b"".join(streams), memory)
        counters = ends.receiver.counters
        assert memory == b"".join(pages)
        assert counters["software"] + counters["raw"] + counters.get("completed", 0) == 4
        assert counters["raw"] == 1


def test_the_first_bad_page_is_named(method: QplMethod) -> None:
    good, bad = deflate(text(4096)), b"\x07\x00\x00"
    streams = [good, good, bad, good, bad]
    payload = struct.pack(">5I", *map(len, streams)) + b"".join(streams)
    with Ends(method) as ends, pytest.raises(CodecError, match="page 2"):
        ends.receive(payload, bytearray(5 * 4096))
