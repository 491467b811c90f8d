"""Owns the jobs of one channel and direction, and hands whole packets to the C code (``_batch.h``).

Rules of this file: a `Job` is made at setup, used by the channel's thread alone, and finished exactly
once, in every outcome. A job whose init failed is never run: libqpl switches it to a path that its
memory is too small for. A job that the device never answered is neither finished nor unmapped, nor are
the slots that it was given: the device may still write to them. A device is given nothing else.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

from multifd.method import HookError, MethodUnavailable, NativeHook, RecvParams, SendParams
from multifd.pages import Geometry
from multifd_qpl._batch import ffi, lib
from multifd_qpl.abi import Library, describe_status
from multifd_qpl.errors import OtherProcess, TornDown
from multifd_qpl.inflate import inflate_page
from multifd_qpl.memory import Mapping, address_of, borrowed

__all__ = ["COUNTERS", "SILENCE_S", "BatchEngine", "Job", "JobError", "probe"]

COUNTERS = ("submitted", "completed", "busy", "retried", "waited", "failed", "corrupt", "fell_back", "software", "raw")
"""The names in ``method_stats``, in ``_batch.h``'s order. Two sums hold in every outcome:

* completed + software + raw: the pages (done by the device, in software, sent as they are);
* busy - retried + failed = fell_back: pages that a device refused for good, or failed, and software took.

``submitted`` counts pages that a queue accepted, ``busy`` refusals, ``retried`` the submissions that
followed one, ``waited`` how often room in a queue was waited for (``busy=wait``), ``corrupt`` those of
``failed`` that the device called good with the CRC of other bytes.
"""

SILENCE_S = 5.0
"""How long the device may neither end a job nor accept one before it counts as dead. Its slowest
published page fault takes 0.56 ms; a page that must come from a busy disk takes tenths of seconds;
multifd itself gives up after 60 s of silence."""


class JobError(Exception):
    """libqpl would not make a job; ``status`` is its answer."""

    def __init__(self, status: int) -> None:
        super().__init__(describe_status(status))
        self.status = status


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
        status = library.hardware_status() if path == lib.MQ_HARDWARE else 0
        if status:
            raise JobError(status)
        size = ffi.new("uint32_t *")
        status = self._table.get_job_size(path, size)
        if status:
            raise JobError(status)
        self._memory = Mapping(size[0])
        self.pointer = ffi.cast("qpl_job *", self._memory.start)
        # Who fails half way through a set-up may not get to finish it: then it is finished with this object.
        statuses: list[int] = []
        self._finish = weakref.finalize(self, _finish, self._table, self.pointer, self._memory, statuses, os.getpid())
        statuses.append(self._table.init_job(path, self.pointer))
        if statuses[0]:
            raise JobError(statuses[0])

    def finish(self) -> None:
        """Give the job back; it must not be used afterwards. Twice is harmless."""
        self._finish()

    def forget(self) -> None:
        """It was finished already, by the C code that could not make it anew."""
        self._finish.detach()

    def abandon(self) -> None:
        """Leave it, instead of finishing it, to a device that may still write to it."""
        self._finish.detach()
        self._memory.abandon()


def _finish(table: Any, pointer: Any, memory: Mapping, statuses: list[int], owner: int) -> None:
    """Give a job back that was made, in the process that made it; its memory lasts until then."""
    if statuses == [0] and os.getpid() == owner:
        table.fini_job(pointer)


def probe(library: Library) -> int:
    """The status of making a hardware job, which is finished at once: 0 if there is a device for us."""
    try:
        job = Job(library, lib.MQ_HARDWARE)
    except JobError as e:
        return e.status
    job.finish()
    return 0


def _explain(result: int) -> Exception:
    """What a native hook's result means."""
    return TornDown() if result == lib.MQ_TORN_DOWN else HookError(f"qpl's native hook gave {result}")


class BatchEngine:
    """One channel and direction on libqpl or ISA-L: one software job, and hardware jobs if there is a device.

    Memory, for packets of 128 pages: 27 MB with a device, of which libqpl 1.6.0's hardware jobs are 24 (189 kB
    each), its software job 0.74 and the slots 1.6; 2.4 MB without, of which two thirds of the slots are never touched.
    ISA-L takes 0.3 MB.

    Args:
        library: libqpl, a simulated one, or ISA-L.
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
        self._owner = os.getpid()
        self._jobs: list[Job] = []
        count = geometry.page_count
        # Whatever C holds a pointer to.
        self._kept = {
            "table": library.table,
            "abort": ffi.cast("uint8_t *", address_of(abort)),
            "flag": abort,
            "pages": ffi.new("uint8_t *[]", count),
            "lengths": ffi.new("uint32_t[]", count),
            "hardware": ffi.new("qpl_job *[]", count),
        }
        self._slots = ffi.new("uint8_t[]", count)
        self._doubts = ffi.new("mq_doubt[]", count)
        self._channel = c = ffi.new("mq_channel *")
        c.table, c.abort = self._kept["table"], self._kept["abort"]
        c.pages, c.lengths, c.slots = self._kept["pages"], self._kept["lengths"], self._slots
        c.page_size, c.page_count, c.retries = geometry.page_size, count, retries
        c.wait_for_queue, c.silence_ns = wait, int(silence_s * 1e9)
        c.verify, c.doubts = verify and library.has_crc, self._doubts
        c.owner = self._owner
        self._runs = ffi.new("mq_run[]", count)
        self._pieces = ffi.new("mq_piece[]", count)
        self._piece_count = ffi.new("uint32_t *")
        self._table = Mapping(4 * count)
        self._table_view = self._table.view()
        self._new_slots()
        try:
            self._software: Job | None = Job(library, lib.MQ_SOFTWARE)
        except JobError as e:
            raise MethodUnavailable(f"{library.path} makes no software job: {e}") from e
        c.software = self._software.pointer
        try:
            self.has_hardware = hardware and probe(library) == 0 and self._make_hardware_jobs(library)
        except BaseException:
            self.close()
            raise

    def _new_slots(self) -> None:
        """Slots to read, to write, and to verify into; what is not touched takes no memory."""
        part = self._page_count * lib.mq_slot_bytes(self._page_size)
        self._memory = Mapping(3 * part)
        self._output = self._memory.view()[:part]
        c, start = self._channel, self._memory.start
        c.out, c.source, c.proof = start, start + part, start + 2 * part

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
        """Append the payload of ``p.pages`` to ``p.iov``: the table, the streams, and the raw pages themselves.

        Raises:
            TornDown: the migration was aborted.
            OtherProcess: in a fork of the process that made this.
        """
        self._check_process()
        views = p.pages.runs()
        with borrowed(views) as starts:
            self._set_runs(starts)
            result = self._compress(len(views))
            if result == lib.MQ_SILENT:
                self._abandon_hardware()
                result = self._compress(len(views))
        self._end_batch(result, p.counters)
        p.iov.append(self._table_view[: 4 * len(p.pages)])
        for piece in self._pieces[0 : self._piece_count[0]]:
            source = self._output if piece.run < 0 else views[piece.run]
            p.iov.append(source[piece.start : piece.start + piece.length])

    def native_send(self, p: SendParams) -> NativeHook:
        """`compress` in C; what it does not do itself it declines, and `compress` does (``_native.c``)."""
        return self._native("mq_native_send", p)

    def native_recv(self, p: RecvParams) -> NativeHook:
        """`decompress` in C; payloads that are wrong or in doubt are declined, so that one place refuses them."""
        return self._native("mq_native_recv", p)

    def _native(self, name: str, p: SendParams | RecvParams) -> NativeHook:
        return NativeHook(
            function=int(ffi.cast("uintptr_t", ffi.addressof(lib, name))),
            state=int(ffi.cast("uintptr_t", self._channel)),
            explain=_explain,
            settle=partial(self._publish, p.counters),
            keep=self,
        )

    def settle(self, p: SendParams | RecvParams) -> tuple[int, int]:
        """Count what native hooks did since the last time.

        Returns:
            Packets that went as they should, and the pages of the one after them if a device did not do it whole, or
            0. After such a packet they decline, until `forgive`.
        """
        self._publish(p.counters)
        c = self._channel
        clean_packets, troubled_pages = c.clean_packets, c.troubled_pages
        c.clean_packets = c.troubled_pages = 0
        return clean_packets, troubled_pages

    def forgive(self) -> None:
        """Let native hooks go on after a packet that a device did not do whole."""
        self._channel.is_troubled = 0

    def _compress(self, run_count: int) -> int:
        result: int = lib.mq_compress(
            self._channel, self._runs, run_count, self._table.start, self._pieces, self._piece_count
        )
        return result

    def decompress(self, lengths: Sequence[int], p: RecvParams) -> None:
        """Fill ``p.pages`` from ``p.payload``.

        Args:
            lengths: the payload's table, checked.
            p: the channel's.

        Raises:
            CodecError: a page's stream does not give exactly a page (see `multifd_qpl.inflate`).
            TornDown: the migration was aborted.
            OtherProcess: in a fork of the process that made this.
        """
        self._check_process()
        views = p.pages.runs()
        with borrowed(views) as starts, borrowed([p.payload]) as (payload,):
            self._set_runs(starts)
            result = self._decompress(len(views), payload)
            if result == lib.MQ_SILENT:
                self._abandon_hardware()
                result = self._decompress(len(views), payload)
        self._end_batch(result, p.counters)
        if self._channel.doubt_count:
            self._settle_doubts(lengths, p)

    def _decompress(self, run_count: int, payload: Any) -> int:
        result: int = lib.mq_decompress(self._channel, self._runs, run_count, payload, len(payload))
        return result

    def _settle_doubts(self, lengths: Sequence[int], p: RecvParams) -> None:
        """Decode what libqpl did not, in the packet's order."""
        pages = list(p.pages)
        doubts = {d.page: d.status for d in self._doubts[0 : self._channel.doubt_count]}
        for i in sorted(doubts):
            if p.abort[0]:
                raise TornDown
            start = 4 * len(lengths) + sum(lengths[:i])
            answer = describe_status(doubts[i]) if doubts[i] else ""
            pages[i][:] = inflate_page(i, p.payload[start : start + lengths[i]], self._page_size, answer)
            self._channel.counters[lib.SOFTWARE] += 1
        self._publish(p.counters)

    def _set_runs(self, starts: list[Any]) -> None:
        """Tell C where the pages are; it checks the counts."""
        if len(starts) > self._page_count:
            raise ValueError(f"{len(starts)} runs of pages in a packet of at most {self._page_count} pages")
        for run, start in zip(self._runs, starts, strict=False):
            run.start, run.page_count = start, len(start) // self._page_size

    def _check_process(self) -> None:
        if os.getpid() != self._owner:
            raise OtherProcess(self._owner)

    def _end_batch(self, result: int, counters: dict[str, int]) -> None:
        """What a batch came to: its counters, and an error unless it was done."""
        if self._channel.has_stuck:
            self._abandon_hardware()
        self._publish(counters)
        if result == lib.MQ_ABORTED:
            raise TornDown
        if result != lib.MQ_OK:
            raise ValueError(f"a packet whose pages or length table do not fit packets of {self._page_count} pages")

    def _publish(self, counters: dict[str, int]) -> None:
        counters.update(zip(COUNTERS, ffi.unpack(self._channel.counters, len(COUNTERS)), strict=True))

    def _abandon_hardware(self) -> None:
        """Leave what the device may still write to, and go on without it."""
        self._memory.abandon()
        self._finish_hardware()
        self._new_slots()

    def _finish_hardware(self) -> None:
        self._channel.hardware = ffi.NULL
        for slot, job in zip(self._slots, self._jobs, strict=False):
            if slot == lib.MQ_STUCK:
                job.abandon()
            elif slot == lib.MQ_FINISHED:
                job.forget()
            else:
                job.finish()
        self._jobs.clear()
        self._channel.has_stuck = 0

    def close(self) -> None:
        """Finish every job; a second call does nothing. In a fork of the owner the jobs are the owner's."""
        software, self._software = self._software, None
        if os.getpid() != self._owner:
            self._jobs.clear()  # which finishes none of them here
            return
        if self._channel.has_stuck:
            self._memory.abandon()
        self._finish_hardware()
        if software is not None:
            software.finish()
