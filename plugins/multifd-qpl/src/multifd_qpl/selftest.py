"""A real page through a real device, both ways, before a migration relies on it.

Rules of this file: every wait ends at one deadline; a job that the device never answered is neither
finished nor unmapped, nor are its buffers; after that the device is not asked again in this process.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import asdict, dataclass
from typing import Any

from multifd_qpl._batch import ffi, lib
from multifd_qpl.jobs import Job, JobError
from multifd_qpl.library import Library, describe_status
from multifd_qpl.memory import Mapping

DEADLINE_S = 1.0
"""For both directions together. A page takes the device tens of microseconds, a page fault 0.56 ms at most by
what was published, a full queue drains in 0.2 ms."""

_RUNNING, _BUSY = 1, 5  # qpl_status
_PAGE = (bytes(range(64)) * 32 + bytes(1000) + b"multifd " * 131)[:4096]

_silent: list[tuple[int, Any]] = []
"""Process and table of each device that stopped answering."""


@dataclass(frozen=True)
class HardwareTest:
    """What became of the page."""

    status: str
    """passed, failed, silent, or none: no hardware job can be made."""
    reason: str = ""
    """Why it did not pass."""
    code: int = 0
    """libqpl's status, if that is the reason."""
    has_crc: bool = False
    """The device's jobs report the CRC-32 of a page's bytes, both ways."""
    compress_us: float | None = None
    """From the first submission to the answer, with whatever waiting for room there was."""
    decompress_us: float | None = None

    @property
    def ok(self) -> bool:
        """The device may be used."""
        return self.status == "passed"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, in the order of the fields."""
        return asdict(self)


class _Failed(Exception):
    def __init__(self, reason: str, code: int = 0, status: str = "failed") -> None:
        super().__init__(reason)
        self.test = HardwareTest(status, reason, code)


def check_hardware(library: Library, deadline_s: float = DEADLINE_S) -> HardwareTest:
    """Compress a page on a device and decompress it there again; compare bytes and CRCs.

    Which device, and whether there is any, depends on the calling thread: libqpl uses those of its socket.

    Args:
        library: whose devices.
        deadline_s: seconds of the library's clock for everything.
    """
    if any(pid == os.getpid() and table is library.table for pid, table in _silent):
        return HardwareTest("silent", "the device has not answered in this process before; it is not asked again")
    try:
        job = Job(library, lib.MQ_HARDWARE)
    except JobError as e:
        return HardwareTest("none", str(e), e.status)
    trial = _Trial(library, job, deadline_s)
    try:
        return trial.run()
    except _Failed as e:
        return e.test
    finally:
        if trial.is_in_flight:
            trial.abandon()
            _silent.append((os.getpid(), library.table))
        else:
            job.finish()


class _Trial:
    """One job, its buffers, and the time it may take."""

    def __init__(self, library: Library, job: Job, deadline_s: float) -> None:
        self._table, self._job = library.table, job
        slot = lib.mq_slot_bytes(4096)
        self._memory = Mapping(3 * slot)
        self._page, self._packed, self._unpacked = (self._memory.start + i * slot for i in range(3))
        # Written to, so that the device meets no page that is not there yet.
        ffi.memmove(self._page, _PAGE.ljust(3 * slot, b"\xa5"), 3 * slot)
        self._start = self._table.now_ns()
        self._deadline = self._start + int(deadline_s * 1e9)
        self._deadline_s = deadline_s
        self.is_in_flight = False

    def abandon(self) -> None:
        """Leave the job and its buffers to a device that may still write to them."""
        self._job.abandon()
        self._memory.abandon()

    def run(self) -> HardwareTest:
        job = self._job.pointer
        length = self._do("compression", lib.MQ_COMPRESS, self._page, 4096, self._packed, 4095)
        compressed_at, has_crc = self._table.now_ns(), job.crc == zlib.crc32(_PAGE)
        inflater = zlib.decompressobj(-15)
        try:
            inflated = inflater.decompress(bytes(ffi.buffer(self._packed, length)), 4097)
        except zlib.error as e:
            raise _Failed(f"the device's stream of a page does not inflate: {e}") from None
        if inflated != _PAGE or not inflater.eof:
            raise _Failed("the device's stream of a page gives other bytes than the page's")
        begun_at = self._table.now_ns()
        got = self._do("decompression", lib.MQ_DECOMPRESS, self._packed, length, self._unpacked, 4096)
        if got != 4096 or bytes(ffi.buffer(self._unpacked, 4096)) != _PAGE:
            raise _Failed("the device decompresses a page to other bytes than the page's")
        ended_at = self._table.now_ns()
        has_crc = has_crc and job.crc == zlib.crc32(_PAGE)
        times = [(compressed_at - self._start) / 1e3, (ended_at - begun_at) / 1e3]
        return HardwareTest("passed", has_crc=bool(has_crc), compress_us=times[0], decompress_us=times[1])

    def _do(self, what: str, op: int, start: Any, length: int, target: Any, room: int) -> int:
        """Bytes produced."""
        table, job = self._table, self._job.pointer
        while True:
            job.op, job.level, job.flags = op, lib.MQ_LEVEL, lib.MQ_PAGE_FLAGS
            job.next_in_ptr, job.available_in, job.total_in = start, length, 0
            job.next_out_ptr, job.available_out, job.total_out = target, room, 0
            status = table.submit_job(job)
            self.is_in_flight = status == 0
            if status != _BUSY or table.now_ns() >= self._deadline:
                break
            table.relax()
        if status == _BUSY:
            raise _Failed(f"{what} of a page: every queue was busy for {self._deadline_s:g} s", status)
        if status:
            raise _Failed(f"{what} of a page is refused: {describe_status(status)}", status)
        while (status := table.check_job(job)) == _RUNNING:
            if table.now_ns() >= self._deadline:
                raise _Failed(f"{what} of a page: the device did not answer for {self._deadline_s:g} s", 0, "silent")
            table.relax()
        self.is_in_flight = False
        if status:
            raise _Failed(f"{what} of a page fails: {describe_status(status)}", status)
        produced: int = job.total_out
        if not 0 < produced <= room:
            raise _Failed(f"{what} of a page gives {produced} bytes, at most {room}")
        return produced
