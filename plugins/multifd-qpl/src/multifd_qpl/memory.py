"""Memory for jobs and for what they read and write.

Each piece is a mapping of its own, private to the process, outside the heap. One that a device may still write
to is abandoned: never unmapped, so nothing else can come to lie there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from multifd.pages import Buffer
from multifd_qpl._batch import ffi, lib

BYTES = ffi.typeof("uint8_t[]")


class Mapping:
    """Zeroed memory, given back when nothing refers to it any more.

    Args:
        nbytes: how much, at least 1.

    Raises:
        MemoryError: there is not that much.
    """

    def __init__(self, nbytes: int) -> None:
        found = lib.mq_map(nbytes)
        if found == ffi.NULL:
            raise MemoryError(f"no mapping of {nbytes} bytes")
        self.start: Any = ffi.gc(ffi.cast("uint8_t *", found), _unmapper(nbytes), nbytes)
        """``uint8_t *``."""
        self.nbytes = nbytes

    def view(self) -> memoryview:
        """The memory as bytes; it stays mapped as long as any slice of this."""
        return memoryview(ffi.buffer(self.start, self.nbytes))

    def abandon(self) -> None:
        """Keep it mapped until the process ends."""
        ffi.gc(self.start, None)


def _unmapper(nbytes: int) -> Any:
    unmap = lib.mq_unmap  # module globals are gone when the interpreter ends
    return lambda start: unmap(start, nbytes)


@contextmanager
def borrowed(buffers: Sequence[Buffer]) -> Iterator[list[Any]]:
    """``uint8_t[]`` of each buffer, let go at the end, whatever happens.

    An exception must not carry the cffi view of a memoryview away in its traceback: when the garbage collector
    frees both, CPython 3.11 and 3.12 crash (test_collection.py).
    """
    starts: list[Any] = []
    try:
        for buffer in buffers:
            starts.append(ffi.from_buffer(BYTES, buffer))
        yield starts
    finally:
        for start in starts:
            ffi.release(start)


def address_of(flag: bytearray) -> int:
    """Where a bytearray's bytes are; valid as long as it lives and keeps its length. No view of it is kept."""
    return ctypes.addressof(ctypes.c_char.from_buffer(flag))
