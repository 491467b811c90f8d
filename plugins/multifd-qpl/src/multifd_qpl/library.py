"""Finds libqpl, checks that it is the library this was written for, and fills the table for the C code.

The shared object is opened once and stays open. Whether there is a device is libqpl's to say, once
for each process; see `multifd_qpl.jobs.probe`.
"""

from __future__ import annotations

import ctypes
import os
import zlib
from dataclasses import replace
from functools import cache
from typing import Any

from multifd.cffi_types import realize
from multifd_qpl.abi import DAMAGED_ACCEL_CONFIG, Library, LibraryUnavailable, describe_status
from multifd_qpl.elf import NotLoadable, is_cut_short, is_privileged, open_shared

__all__ = [
    "ACCEL_CONFIG",
    "ENVIRONMENT",
    "SONAMES",
    "Library",
    "LibraryUnavailable",
    "describe_status",
    "load",
    "named_library",
    "open_shared_object",
    "self_test",
]

ENVIRONMENT = "MULTIFD_QPL_LIBRARY"
"""Names the shared object to use instead of `SONAMES`: a path, or a name for the dynamic linker. Not looked at in
a process with privileges of its file, as the linker does not look at LD_LIBRARY_PATH there."""

SONAMES = ("libqpl.so.1", "libqpl.so")
"""Shared builds exist from libqpl 1.5.0 on, with this SONAME."""

ACCEL_CONFIG = "libaccel-config.so.1"
"""What libqpl opens to find devices, with its first hardware job."""

_FUNCTIONS = ("get_job_size", "init_job", "fini_job", "execute_job", "submit_job", "check_job")
_HEAD_BYTES = 240  # sizeof(qpl_job), libqpl 0.2.0 to 1.6.0: the least a job can need
_MOST_BYTES = 1 << 20
"""The most memory for a job. libqpl 1.6.0 asks for 740864 bytes in software and 188736 on hardware, of which a
channel makes one for each page of a packet, 128 at most: 24 MB."""


def named_library() -> str | None:
    """What `ENVIRONMENT` names, if that may be used."""
    return None if is_privileged() else os.environ.get(ENVIRONMENT) or None


def open_shared_object() -> tuple[ctypes.CDLL, str, str]:
    """The shared object, its path and its version.

    Raises:
        LibraryUnavailable: not found, or not of a version with the ABI this was written for.
    """
    named = named_library()
    reasons = []
    for name in (named,) if named else SONAMES:
        try:
            opened, path = open_shared(name)
        except NotLoadable as e:
            reasons.append(str(e))
            continue
        try:
            get_version = opened.qpl_get_library_version
        except AttributeError:
            raise LibraryUnavailable(f"{path} is not libqpl: it has no qpl_get_library_version") from None
        get_version.restype = ctypes.c_char_p
        version = (get_version() or b"").decode("ascii", "replace")
        if version.split(".")[0] != "1":
            raise LibraryUnavailable(f"{path} is libqpl {version!r}; 1.x is needed (shared builds begin with 1.5)")
        return opened, path, version
    raise LibraryUnavailable("libqpl not found: " + "; ".join(reasons))


def load() -> Library:
    """libqpl, tested.

    Raises:
        LibraryUnavailable: it cannot be used, or the extension for it was not built.
    """
    return _load(named_library())


@cache
def _outcome(_named: str | None) -> Library | str:
    try:
        return _open_and_test()
    except LibraryUnavailable as e:
        return str(e)


def _load(named: str | None) -> Library:
    outcome = _outcome(named)
    if isinstance(outcome, str):
        raise LibraryUnavailable(outcome)
    return outcome


def _open_and_test() -> Library:
    try:
        from multifd_qpl._batch import ffi, lib
    except ImportError as e:
        raise LibraryUnavailable(
            f"the extension multifd_qpl._batch, without which neither libqpl nor a device is used, is not there: {e} "
            "(a pure wheel, or no C compiler when multifd-qpl was installed: "
            "pip install --force-reinstall --no-cache-dir --no-deps --no-binary multifd-qpl multifd-qpl builds it)"
        ) from e
    realize(ffi, lib)
    opened, path, version = open_shared_object()
    table = ffi.new("mq_table *")
    for function in _FUNCTIONS:
        try:
            address = ctypes.cast(getattr(opened, f"qpl_{function}"), ctypes.c_void_p).value
        except AttributeError:
            raise LibraryUnavailable(f"{path} {version} has no qpl_{function}") from None
        setattr(table, function, ffi.cast(ffi.typeof(getattr(table, function)), address))
    lib.mq_real_time(table)
    no_hardware = DAMAGED_ACCEL_CONFIG if is_cut_short(ACCEL_CONFIG) else 0
    library = Library(table, version, path, no_hardware=no_hardware)
    return replace(library, has_crc=self_test(library))


def self_test(library: Library) -> bool:
    """Run a page both ways on the software path and look at every field that is relied on.

    Returns:
        Whether both jobs reported the page's CRC-32, without which only the device's results cannot be checked.

    Raises:
        LibraryUnavailable: something is not as this was written for.
    """
    from multifd_qpl._batch import ffi, lib
    from multifd_qpl.jobs import Job, JobError

    def expect(what: str, got: object, expected: object) -> None:
        if got != expected:
            raise LibraryUnavailable(
                f"{library.path} {library.version} failed its self-test: {what} is {got}, expected {expected}"
            )

    table, size = library.table, ffi.new("uint32_t *")
    for path in (lib.MQ_HARDWARE, lib.MQ_SOFTWARE):
        expect(f"status of the job size of path {path}", table.get_job_size(path, size), 0)
        expect(f"sane job size of path {path}", _HEAD_BYTES <= size[0] <= _MOST_BYTES, True)
    page = bytes(range(64)) * 64
    source, packed, unpacked = ffi.new("uint8_t[]", page), ffi.new("uint8_t[4096]"), ffi.new("uint8_t[4096]")
    try:
        software = Job(library, lib.MQ_SOFTWARE)
    except JobError as e:
        raise LibraryUnavailable(f"{library.path} {library.version} makes no software job: {e}") from e
    try:
        job = software.pointer

        def run(what: str, op: int, start: Any, length: int, target: Any, room: int) -> int:
            job.op, job.level, job.flags = op, lib.MQ_LEVEL, lib.MQ_PAGE_FLAGS
            job.next_in_ptr, job.available_in = ffi.cast("uint8_t *", start), length
            job.next_out_ptr, job.available_out = target, room
            expect(f"status of {what}", table.execute_job(job), 0)
            produced: int = job.total_out
            expect(f"total_in of {what}", job.total_in, length)
            expect(f"next_in of {what}", job.next_in_ptr - ffi.cast("uint8_t *", start), length)
            expect(f"next_out of {what}", job.next_out_ptr - ffi.cast("uint8_t *", target), produced)
            expect(f"available_out of {what}", job.available_out, room - produced)
            return produced

        length = run("compression", lib.MQ_COMPRESS, source, 4096, packed, 4095)
        try:
            inflated = zlib.decompress(bytes(ffi.buffer(packed, length)), -15)
        except zlib.error as e:
            raise LibraryUnavailable(f"{library.path} failed its self-test: its stream does not inflate: {e}") from e
        expect("the compressed page, inflated by zlib,", inflated == page, True)
        has_crc = job.crc == zlib.crc32(page)
        expect("total_out", run("decompression", lib.MQ_DECOMPRESS, packed, length, unpacked, 4096), 4096)
        expect("the decompressed page", bytes(ffi.buffer(unpacked)) == page, True)
        return bool(has_crc and job.crc == zlib.crc32(page))
    finally:
        software.finish()
