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

    def compress(self, page: bytes, room: int) -> tuple[int, bytes]:
        """libqpl's status and the stream, for `room` bytes of output."""
        deflater = zlib.compressobj(1, zlib.DEFLATED, -12, 8, zlib.Z_FIXED)
        stream = deflater.compress(page) + deflater.flush()
        return (_NO_ROOM, b"") if len(stream) > room else (_OK, stream)

    def decompress(self, stream: bytes, room: int) -> tuple[int, bytes]:
        """libqpl's status and the page, for `room` bytes of output; a stream without its end is not looked at."""
        try:
            page = zlib.decompressobj(-15).decompress(stream, room + 1)
        except zlib.error:
            return _INVALID_BLOCK, b""
        return (_NO_ROOM, b"") if len(page) > room else (_OK, page)

    def run(self, job: Any, fault: Fault | None, *, on_device: bool) -> int:
        """See `Codec`."""
        source = bytes(ffi.buffer(job.next_in_ptr, job.available_in))
        used = len(source)
        if job.op == lib.MQ_COMPRESS:
            status, data = self.compress(source, job.available_out)
            page = source
        else:
            status, data = self.decompress(source, job.available_out)
            page = data
            if status == _OK:
                used, has_end = _look_at_end(source)
                if on_device and not has_end:
                    return _BAD_END
        if status != _OK:
            return status
        data = self._damaged(job, fault, data, page)
        if len(data) > job.available_out:
            return _NO_ROOM
        ffi.memmove(job.next_out_ptr, data, len(data))
        job.total_in, job.total_out, job.crc = used, len(data), zlib.crc32(page)
        return _OK

    def _damaged(self, job: Any, fault: Fault | None, data: bytes, page: bytes) -> bytes:
        """What arrives in memory instead of `data`."""
        is_stream = job.op == lib.MQ_COMPRESS
        if fault is Fault.CORRUPT:
            first = data[0] | 6 if is_stream else data[0] ^ 1  # block type 3, which does not exist
            return bytes([first]) + data[1:]
        if fault is Fault.WRONG:
            other = bytes([page[0] ^ 1]) + page[1:]
            return self.compress(other, len(other))[1] if is_stream else other[::-1]
        if fault is Fault.SHORT:
            return b"" if is_stream else data[: len(data) // 2]
        return data


def _look_at_end(stream: bytes) -> tuple[int, bool]:
    """How many bytes a stream takes, and whether it ends properly."""
    inflater = zlib.decompressobj(-15)
    try:
        inflater.decompress(stream)
    except zlib.error:
        return len(stream), False
    return len(stream) - len(inflater.unused_data), inflater.eof


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
