"""Whether an ISA-L is as ``_isal.h`` says: pages there and back, with guards behind its structures and its output."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from typing import Any

from multifd_qpl._batch import ffi, lib
from multifd_qpl.abi import Library, LibraryUnavailable
from multifd_qpl.jobs import Job, JobError

__all__ = ["check"]

_PAGE_SIZES = (4096, 65536)
_WINDOW_BITS, _ANY_WINDOW_BITS = 12, 15
_GUARD = bytes([0x5A]) * 64
_DAMAGES = 8
"""Damaged streams of each page; what becomes of them is theirs, what lies beside their output is not."""


def check(library: Library) -> None:
    """Compress and decompress pages of several kinds, and streams that zlib made.

    Raises:
        LibraryUnavailable: something is not as expected, and what.
    """
    try:
        job = Job(library, lib.MQ_SOFTWARE)
    except JobError as e:
        raise LibraryUnavailable(f"{library.path} {library.version} makes no software job: {e}") from e
    try:
        _Test(library, job.pointer).run()
    finally:
        job.finish()


def _pages(page_size: int) -> Iterator[tuple[str, bytes, bool]]:
    """Kind, page, and whether it shrinks."""
    rng = random.Random(page_size)
    words = [rng.randbytes(rng.randint(2, 9)) for _ in range(50)]
    yield "text", b" ".join(rng.choice(words) for _ in range(page_size // 3))[:page_size], True
    yield "one byte", b"\x07" * page_size, True
    yield "zeros", bytes(page_size), True
    yield "few bytes", bytes(rng.choices(b"\0\0\0\1\2", k=page_size)), True
    yield "repeats too far away", (rng.randbytes(5000) * (page_size // 5000 + 1))[:page_size], False


class _Test:
    """A job and what is expected of it."""

    def __init__(self, library: Library, job: Any) -> None:
        self._library, self._job = library, job

    def run(self) -> None:
        """All of it."""
        lib.mq_isal_set_guards(self._job)
        for page_size in _PAGE_SIZES:
            for kind, page, shrinks in _pages(page_size):
                self._compress(f"a page of {page_size} bytes ({kind})", page, shrinks=shrinks)
                self._decompress(f"a page of {page_size} bytes ({kind})", page)
        self._expect("bytes written behind its structures", lib.mq_isal_count_damage(self._job), 0)

    def _expect(self, what: str, got: object, expected: object) -> None:
        if got != expected:
            raise LibraryUnavailable(
                f"{self._library.path} (ISA-L {self._library.version}) failed its self-test: {what}: {got}, "
                f"expected {expected}"
            )

    def _compress(self, what: str, page: bytes, *, shrinks: bool) -> None:
        status, stream = self._do(lib.MQ_COMPRESS, page, len(page) - 1)
        self._expect(f"{what} is compressed", status == 0, shrinks)
        if not shrinks:
            return
        inflater = zlib.decompressobj(-_WINDOW_BITS)
        try:
            inflated = inflater.decompress(stream)
        except zlib.error as e:
            raise LibraryUnavailable(f"{self._library.path} failed its self-test: {what} does not inflate: {e}") from e
        self._expect(f"{what} inflates", (inflated == page, inflater.eof, inflater.unused_data), (True, True, b""))
        self._expect(f"{what} comes back", self._do(lib.MQ_DECOMPRESS, stream, len(page)) == (0, page), True)

    def _decompress(self, what: str, page: bytes) -> None:
        rng = random.Random(len(page))
        for level, strategy in ((1, zlib.Z_FIXED), (6, zlib.Z_DEFAULT_STRATEGY), (0, zlib.Z_DEFAULT_STRATEGY)):
            stream = _deflate(page, level, strategy)
            self._expect(f"{what} by zlib", self._do(lib.MQ_DECOMPRESS, stream, len(page)) == (0, page), True)
            for _ in range(_DAMAGES):
                damaged = bytearray(stream)
                damaged[rng.randrange(len(damaged))] ^= rng.randrange(1, 256)
                self._do(lib.MQ_DECOMPRESS, bytes(damaged), len(page))
            status, _ = self._do(lib.MQ_DECOMPRESS, _deflate(page + b"\1", level, strategy), len(page))
            self._expect(f"{what} and a byte more is refused", status != 0, True)

    def _do(self, op: int, source: bytes, room: int) -> tuple[int, bytes]:
        """A job's status and output; nothing beside the output is written to."""
        output = ffi.new("uint8_t[]", _GUARD + bytes(room) + _GUARD)
        data = ffi.from_buffer("uint8_t[]", source)
        job = self._job
        job.op, job.next_in_ptr, job.available_in = op, data, len(source)
        job.next_out_ptr, job.available_out, job.total_out = output + len(_GUARD), room, 0
        status = self._library.table.execute_job(job)
        whole = bytes(ffi.buffer(output, room + 2 * len(_GUARD)))
        self._expect("it keeps to its room", (whole.startswith(_GUARD), whole.endswith(_GUARD)), (True, True))
        return status, whole[len(_GUARD) :][: min(job.total_out, room)]


def _deflate(page: bytes, level: int, strategy: int) -> bytes:
    deflater = zlib.compressobj(level, zlib.DEFLATED, -_ANY_WINDOW_BITS, 8, strategy)
    return deflater.compress(page) + deflater.flush()
