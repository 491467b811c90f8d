"""Streams of the real libqpl: they decode here, damaged ones answer as there, and the stand-in is faithful."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest
from multifd_qpl.method import QplMethod, QplOptions
from qpl_ends import Ends

from multifd.errors import CodecError


@pytest.fixture(params=["isal", "libqpl"])
def ends(request: pytest.FixtureRequest) -> Ends:
    """Both ends on each engine."""
    if request.param == "libqpl":
        request.getfixturevalue("libqpl")
    return Ends(QplMethod(QplOptions(software=request.param, hardware="off")))


def test_every_stream_decodes_to_its_page(ends: Ends, vectors: dict[str, Any]) -> None:
    found = [v for v in vectors["vectors"] if v["status"] == 0 and v["total_out"] < 4096]
    assert len(found) >= 30
    assert {v["variant"] for v in found} >= {"fixed-steady", "fixed-fresh-job", "dynamic", "fixed-level3"}
    with ends:
        for vector in found:
            page = bytearray(4096)
            ends.receive(struct.pack(">I", len(vector["stream"])) + vector["stream"], page)
            assert page == vectors["pages"][vector["page"]]


def test_damaged_streams_are_answered_as_by_libqpl(ends: Ends, vectors: dict[str, Any]) -> None:
    """With room for a page: its bytes where the real library gives a whole page, else an error."""
    cases = [c for c in vectors["decompress_cases"] if c["available_out"] == 4096]
    needed = {"intact", "truncated-1", "truncated-half", "bit-flip", "block-type-3", "empty"}
    assert {c["case"] for c in cases} >= needed
    with ends:
        for case in cases:
            page = bytearray(4096)
            payload = struct.pack(">I", len(case["stream"])) + case["stream"]
            if case["status"] == 0 and case["total_out"] == 4096:
                ends.receive(payload, page)
                assert zlib.crc32(page) == case["out_crc32"]
            else:
                with pytest.raises(CodecError):
                    ends.receive(payload, page)


def test_library_answers_each_case_as_recorded(libqpl: str, vectors: dict[str, Any]) -> None:
    """Statuses and totals of the library itself, so that the stand-in is faithful."""
    from multifd_qpl._batch import ffi, lib
    from multifd_qpl.jobs import Job
    from multifd_qpl.library import load

    library = load()
    job = Job(library, lib.MQ_SOFTWARE)
    try:
        p = job.pointer
        for case in vectors["decompress_cases"]:
            source, target = ffi.from_buffer(case["stream"]), ffi.new("uint8_t[]", case["available_out"])
            p.op, p.level, p.flags = lib.MQ_DECOMPRESS, lib.MQ_LEVEL, lib.MQ_PAGE_FLAGS
            p.next_in_ptr, p.available_in = ffi.cast("uint8_t *", source), len(case["stream"])
            p.next_out_ptr, p.available_out = target, case["available_out"]
            status = library.table.execute_job(p)
            assert (case["case"], status, p.total_out) == (case["case"], case["status"], case["total_out"])
            if status == 0:
                assert zlib.crc32(bytes(ffi.buffer(target, p.total_out))) == case["out_crc32"]
    finally:
        job.finish()
