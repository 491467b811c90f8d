"""The compiled part, where there is one. MULTIFD_PUMP=off does without it, to compare or to rule it out."""

from __future__ import annotations

import errno
import importlib
import os
import tempfile
from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np

from multifd.cffi_types import realize
from multifd.errors import RamError
from multifd.pump.extent import Extent, Kind

PATIENCE_NS = 20_000_000
"""How long a call may take before it ends behind a packet. Figures wait for it, which are told ten times a second;
limits and the abort flag are looked at in C. With 5 ms, 8 and 16 channels of `none` took about a tenth more CPU: each
return needs the interpreter (1 GiB, 9 rounds twice, on 2 cores that had other work too, 2026-11-29)."""


_SINK_BYTES = 4096
"""At most 1024 are read from it, or written, by one system call: IOV_MAX pieces of a byte."""


class Stop(IntEnum):
    """Why a call of the pump returned; multifd/pump/pump.h says what each means, the numbers are its."""

    DONE = 0
    BOUND = 1
    WAIT = 2
    HEADER = 3
    END = 4
    BROKEN = 5
    DECLINED = 6
    FAILED = 7
    STORE = 8
    CLEAR = 9


@cache
def unavailable_reason() -> str:
    """Empty if channels can run outside the interpreter, else why they run in Python."""
    if os.environ.get("MULTIFD_PUMP") == "off":
        return "MULTIFD_PUMP=off"
    try:
        _, lib = load()
    except ModuleNotFoundError:
        return "no packet pump in this installation: a pure wheel, or built without a C compiler"
    except ImportError as e:
        return f"the packet pump does not load: {e}"
    if any(getattr(lib, f"PUMP_{one.name}", None) != one for one in (*Kind, *Stop)):
        return "the packet pump was built from another release of multifd"
    return ""


def load() -> tuple[Any, Any]:
    """cffi's ffi and lib.

    Raises:
        ImportError: there is none.
    """
    module: Any = importlib.import_module("multifd._pump")
    realize(module.ffi, module.lib)
    return module.ffi, module.lib


def fill_block(block: Any, idstr: Any, used_length: int, extent: Extent) -> None:
    """Describe a block to the pump.

    Args:
        block: the ``pump_block``.
        idstr: its name as ``char[]``; the caller keeps it.
        used_length: bytes.
        extent: where it lies; the caller keeps it. The descriptor of its file is not filled in.
    """
    ffi, _ = load()
    block.kind, block.start, block.file = extent.kind, extent.start, -1
    block.base = ffi.cast("uint8_t *", extent.address)
    block.used = ffi.NULL if extent.used is None else ffi.cast("uint8_t *", address_of(extent.used))
    block.used_length, block.idstr, block.idstr_bytes = used_length, idstr, len(idstr) - 1


def open_sink() -> int:
    """A file for ``pump_first_unreadable``, a channel's own; opened where it is needed, not before: a call that gives
    the GIL away makes threads that start together wait for one another.

    Raises:
        RamError: there can be none.
    """
    try:
        try:
            fd = os.memfd_create("multifd", os.MFD_CLOEXEC)
        except OSError as e:
            if e.errno == errno.EMFILE:
                raise
            with tempfile.TemporaryFile() as file:  # a container's seccomp profile may deny the other
                fd = os.dup(file.fileno())
        os.ftruncate(fd, _SINK_BYTES)
    except OSError as e:
        raise RamError(f"no file by which the kernel can be asked whether memory is there: {e.strerror or e}") from e
    return fd


def close_sink(pump: Any) -> None:
    """Close it, if it was opened; twice is harmless.

    Args:
        pump: the ``pump_sender`` or ``pump_receiver`` whose it is.
    """
    sink, pump.sink = pump.sink, -1
    if sink >= 0:
        os.close(sink)


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Where an array's bytes lie; the caller keeps it. An integer, so that no view of it leaves with an exception."""
    return int(array.ctypes.data)
