"""What a simulated libqpl does with a page's bytes: real deflate for tests, sizes alone for figures."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from multifd_qpl._batch import ffi, lib
from multifd_qpl.faults import Fault
from multifd_qpl.machine import Machine

_OK, _NO_ROOM, _INVALID_BLOCK, _BAD_END = 0, 2, 213, 215  # qpl_status, libqpl 1.6.0


class Codec(Protocol):
    """What the simulated library does with a page's bytes."""

    def run(self, job: Any, fault: Fault | None, *, on_device: bool) -> int:
        """Do the job's operation, set its totals, return its status."""
        ...


class Deflate:
    """Real bytes, by zlib: fixed Huffman codes and 4 KiB of history, as the device.

    A job's CRC is that of the right bytes: damage happens on the way to memory.
    """

    def run(self, job: Any, fault: Fault | None, *, on_device: bool) -> int:
        """See `Codec`."""
        source = bytes(ffi.buffer(job.next_in_ptr, job.available_in))
        if job.op == lib.MQ_COMPRESS:
            data, complete, page = _deflate(source), True, source
            damaged = bytes([data[0] | 6]) + data[1:]  # block type 3, which does not exist
        else:
            inflater = zlib.decompressobj(-15)
            try:
                data = inflater.decompress(source, job.available_out + 1)
            except zlib.error:
                return _INVALID_BLOCK
            complete, page = inflater.eof or not on_device, data
            damaged = bytes([data[0] ^ 1]) + data[1:] if data else data
        if fault is Fault.CORRUPT:
            data = damaged
        elif fault is Fault.WRONG:
            other = bytes([page[0] ^ 1]) + page[1:] if page else page
            data = _deflate(other) if job.op == lib.MQ_COMPRESS else other[::-1]
        if len(data) > job.available_out:
            return _NO_ROOM
        if not complete:
            return _BAD_END
        if fault is Fault.SHORT:
            data = data[: len(data) // 2] if job.op == lib.MQ_DECOMPRESS else b""
        ffi.memmove(job.next_out_ptr, data, len(data))
        job.total_in, job.total_out, job.crc = len(source), len(data), zlib.crc32(page)
        return _OK


def _deflate(page: bytes) -> bytes:
    deflater = zlib.compressobj(1, zlib.DEFLATED, -12, 8, zlib.Z_FIXED)
    return deflater.compress(page) + deflater.flush()


@dataclass(frozen=True)
class Sizes:
    """No bytes at all, only the sizes of a machine's streams: for figures. Every page is zeros of 4 KiB."""

    machine: Machine
    _CRC: ClassVar[int] = zlib.crc32(bytes(4096))

    def run(self, job: Any, fault: Fault | None, *, on_device: bool) -> int:
        """See `Codec`; faults do not change sizes."""
        if job.op == lib.MQ_DECOMPRESS:
            job.total_out, job.crc = job.available_out, self._CRC
        else:
            job.total_out = self.machine.hardware_bytes if on_device else self.machine.software_bytes
        return _OK
