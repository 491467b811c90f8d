"""A real libqpl's software path as the codec of a simulated device."""

from __future__ import annotations

import threading

from multifd_qpl._batch import ffi, lib
from multifd_qpl.jobs import Job
from multifd_qpl.library import Library
from multifd_qpl.page_codec import Deflate


def by_library(library: Library) -> type[Deflate]:
    """A `Deflate` whose bytes are `library`'s. Its jobs, one for each thread, live as long as the threads."""
    jobs = threading.local()

    def execute(op: int, source: bytes, room: int) -> tuple[int, bytes]:
        if not hasattr(jobs, "job"):
            jobs.job = Job(library, lib.MQ_SOFTWARE)
        job = jobs.job.pointer
        given, out = ffi.new("uint8_t[]", source), ffi.new("uint8_t[]", room + 8)
        job.op, job.level, job.flags = op, lib.MQ_LEVEL, lib.MQ_PAGE_FLAGS
        job.next_in_ptr, job.available_in, job.total_in = given, len(source), 0
        job.next_out_ptr, job.available_out, job.total_out = out, room, 0
        status = library.table.execute_job(job)
        return status, bytes(ffi.buffer(out, job.total_out)) if status == 0 else b""

    class ByLibrary(Deflate):
        def compress(self, page: bytes, room: int) -> tuple[int, bytes]:
            return execute(lib.MQ_COMPRESS, page, room)

        def decompress(self, stream: bytes, room: int) -> tuple[int, bytes]:
            return execute(lib.MQ_DECOMPRESS, stream, room)

    return ByLibrary
