"""Owns the jobs of one channel and direction, and hands whole packets to ``_batch.c``.

Rules of this file: a `Job` is made at setup, used by the channel's thread alone, and finished exactly
once, in every outcome. A job whose init failed is never run: libqpl switches it to a path that its
memory is too small for. A job that the device never answered is neither finished nor freed, nor are
the buffers it was given (`_quarantine`): the device may still write to them.
"""

from __future__ import annotations

import mmap
from typing import Any

from multifd.errors import MethodError
from multifd.method import CodecError, MethodUnavailable, RecvParams, SendParams
from multifd.pages import Geometry
from multifd_qpl._batch import ffi, lib
from multifd_qpl.library import Library, describe_status

COUNTERS = ("submitted", "completed", "busy", "retried", "waited", "failed", "corrupt", "fell_back", "software", "raw")
"""The names in ``method_stats``, in ``_batch.c``'s order. Two sums hold in every outcome:

* completed + software + raw: the pages (done by the device, by the software job, sent as they are);
* busy - retried + failed = fell_back: pages that a device refused for good, or failed, and software took.

``submitted`` counts pages that a queue accepted, ``busy`` refusals, ``retried`` the submissions that
followed one, ``waited`` how often room in a queue was waited for (``busy=wait``), ``corrupt`` those of
``failed`` that the device called good with the CRC of other bytes.
"""

SILENCE_S = 5.0
"""How long the device may neither end a job nor accept one before it counts as dead. Its slowest
published page fault takes 0.56 ms; a page that must come from a busy disk takes tenths of seconds;
multifd itself gives up after 60 s of silence."""

_BYTES = ffi.typeof("uint8_t[]")
_new_memory = ffi.new_allocator(should_clear_after_alloc=False)  # init clears it

_quarantine: list[object] = []
"""What a device that stopped answering may still write to: kept until the process ends."""


class JobError(Exception):
    """libqpl would not make a job; ``status`` is its answer."""

    def __init__(self, status: int) -> None:
        super().__init__(describe_status(status))
        self.status = status


class DeviceSilent(MethodError):
    """The device stopped answering while it held pages of the destination: they cannot be trusted."""


class Job:
    """A job and its memory; finish it once.

    Args:
        library: whose job.
        path: ``lib.MQ_HARDWARE`` or ``lib.MQ_SOFTWARE``.

    Raises:
        JobError: no such job can be made. That is normal for hardware.
    """

    def __init__(self, library: Library, path: int) -> None:
        self._table = library.table
        size = ffi.new("uint32_t *")
        status = self._table.get_job_size(path, size)
        if status:
            raise JobError(status)
        self._memory = _new_memory(_BYTES, size[0])
        self.pointer = ffi.cast("qpl_job *", self._memory)
        status = self._table.init_job(path, self.pointer)
        if status:
            raise JobError(status)

    def finish(self) -> None:
        """Give the job back; it must not be used afterwards."""
        self._table.fini_job(self.pointer)


def probe(library: Library) -> int:
    """The status of making a hardware job, which is finished at once: 0 if there is a device for us."""
    try:
        job = Job(library, lib.MQ_HARDWARE)
    except JobError as e:
        return e.status
    job.finish()
    return 0


class BatchEngine:
    """One channel and direction on libqpl: one software job, and hardware jobs if there is a device.

    Args:
        library: libqpl, or a simulated one.
        geometry: the migration's; there is one hardware job for each page of a packet.
        abort: the migration's abort flag, one byte.
        hardware: whether to look for a device; none found is not an error.
        wait: wait for room in a queue instead of falling back.
        retries: submissions after a refusal before a page falls back.
        verify: check what the device writes, if the library reports CRCs.
        silence_s: see `SILENCE_S`.

    Raises:
        MethodUnavailable: the software job cannot be made.
    """

    def __init__(
        self,
        library: Library,
        geometry: Geometry,
        abort: bytearray,
        *,
        hardware: bool,
        wait: bool,
        retries: int,
        verify: bool,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._page_size, self._page_count = geometry.page_size, geometry.page_count
        self._jobs: list[Job] = []
        count = geometry.page_count
        # Whatever C holds a pointer to.
        self._kept = {
            "table": library.table,
            "abort": ffi.from_buffer(_BYTES, abort),
            "pages": ffi.new("uint8_t *[]", count),
            "lengths": ffi.new("uint32_t[]", count),
            "hardware": ffi.new("qpl_job *[]", count),
        }
        self._slots = ffi.new("uint8_t[]", count)
        self._channel = c = ffi.new("mq_channel *")
        c.table, c.abort = self._kept["table"], self._kept["abort"]
        c.pages, c.lengths, c.slots = self._kept["pages"], self._kept["lengths"], self._slots
        c.page_size, c.retries = geometry.page_size, min(retries, 2**32 - 1)
        c.wait_for_queue, c.silence_ns = wait, int(silence_s * 1e9)
        c.verify = verify and library.has_crc
        self._runs = ffi.new("mq_run[]", count)
        self._pieces = ffi.new("mq_piece[]", count)
        self._piece_count = ffi.new("uint32_t *")
        self._table = memoryview(bytearray(4 * count))
        self._table_pointer = ffi.from_buffer(_BYTES, self._table)
        self._new_output()
        try:
            self._software: Job | None = Job(library, lib.MQ_SOFTWARE)
        except JobError as e:
            raise MethodUnavailable(f"libqpl cannot make a software job: {e}") from e
        c.software = self._software.pointer
        try:
            self.has_hardware = hardware and probe(library) == 0 and self._make_hardware_jobs(library)
        except BaseException:
            self.close()
            raise

    def _new_output(self) -> None:
        # An anonymous map: page-aligned, and no memory until it is touched. Twice the pages: see mq_compress.
        self._output = memoryview(mmap.mmap(-1, 2 * self._page_size * self._page_count))
        self._output_pointer = ffi.from_buffer(_BYTES, self._output)

    def _make_hardware_jobs(self, library: Library) -> bool:
        """All of them, or none if one cannot be made although the probe could."""
        for _ in range(self._page_count):
            try:
                self._jobs.append(Job(library, lib.MQ_HARDWARE))
            except JobError:
                self._finish_hardware()
                return False
        for i, job in enumerate(self._jobs):
            self._kept["hardware"][i] = job.pointer
        self._channel.hardware = self._kept["hardware"]
        return True

    @property
    def is_hardware_lost(self) -> bool:
        """The device was given up: for `silence_s` it ended no job, or took none."""
        return bool(self._channel.hardware_off)

    def compress(self, p: SendParams) -> None:
        """Append the payload of ``p.pages`` to ``p.iov``.

        Raises:
            MethodError: the migration was aborted.
        """
        views, _owners = self._set_runs(p.pages.runs())
        result = self._compress(len(views))
        if result == lib.MQ_SILENT:
            self._abandon_hardware()
            result = self._compress(len(views))
        self._publish(p.counters)
        if result == lib.MQ_ABORTED:
            raise MethodError("the migration is being torn down")
        p.iov.append(self._table[: 4 * len(p.pages)])
        for piece in self._pieces[0 : self._piece_count[0]]:
            source = self._output if piece.run < 0 else views[piece.run]
            p.iov.append(source[piece.start : piece.start + piece.length])

    def _compress(self, run_count: int) -> int:
        result: int = lib.mq_compress(
            self._channel,
            self._runs,
            run_count,
            self._output_pointer,
            self._table_pointer,
            self._pieces,
            self._piece_count,
        )
        return result

    def decompress(self, _lengths: object, p: RecvParams) -> None:
        """Fill ``p.pages`` from ``p.payload``, whose length table the caller has checked.

        Raises:
            CodecError: a page's stream does not give exactly a page.
            DeviceSilent: the device stopped answering.
            MethodError: the migration was aborted.
        """
        views, _owners = self._set_runs(p.pages.runs())
        payload = ffi.from_buffer(_BYTES, p.payload)
        c = self._channel
        result = lib.mq_decompress(c, self._runs, len(views), payload)
        self._publish(p.counters)
        if result == lib.MQ_BAD_PAGE:
            raise CodecError(
                f"page {c.bad_page}: inflates to {c.bad_length} bytes, expected {self._page_size}"
                if c.bad_status == 0
                else f"page {c.bad_page}: does not inflate: {describe_status(c.bad_status)}"
            )
        if result == lib.MQ_SILENT:
            raise DeviceSilent(
                f"the IAA device did not answer for {c.silence_ns / 1e9:g} s; start again with qpl:hardware=off"
            )
        if result == lib.MQ_ABORTED:
            raise MethodError("the migration is being torn down")

    def _set_runs(self, views: list[memoryview]) -> tuple[list[memoryview], list[Any]]:
        owners = [ffi.from_buffer(_BYTES, view) for view in views]
        for run, owner in zip(self._runs, owners, strict=False):
            run.start, run.page_count = owner, len(owner) // self._page_size
        return views, owners

    def _publish(self, counters: dict[str, int]) -> None:
        counters.update(zip(COUNTERS, ffi.unpack(self._channel.counters, len(COUNTERS)), strict=True))

    def _abandon_hardware(self) -> None:
        """Leave what the device may still write to, and go on without it."""
        self._finish_hardware()
        self._channel.hardware = ffi.NULL
        _quarantine.append((self._output, self._output_pointer))
        self._new_output()

    def _finish_hardware(self) -> None:
        for slot, job in zip(self._slots, self._jobs, strict=False):
            if slot == lib.MQ_STUCK:
                _quarantine.append(job)
            elif slot != lib.MQ_FINISHED:
                job.finish()
        self._jobs.clear()

    def close(self) -> None:
        """Finish every job; a second call does nothing."""
        if any(slot == lib.MQ_STUCK for slot in self._slots) and self._jobs:
            _quarantine.append((self._output, self._output_pointer))
        self._finish_hardware()
        if self._software is not None:
            self._software.finish()
            self._software = None
