"""libzstd into the caller's buffers, through ``zstandard._cffi``: private to that package, so this file
alone touches it and checks that it is what it was written for (zstandard 0.22 to 0.25).

cffi calls release the GIL. The public API has no way to give an endless frame an output buffer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from multifd.cffi_types import realize
from multifd.method import NativeHook
from multifd.methods import _native_zstd
from multifd.pages import Buffer

_UNKNOWN_SIZE = (1 << 64) - 1  # ZSTD_CONTENTSIZE_UNKNOWN
_D_WINDOW_LOG_MAX = 100  # ZSTD_dParameter, zstd.h 1.4
_FUNCTIONS = (
    "createCCtx", "freeCCtx", "getCParams", "adjustCParams", "compressBegin_advanced", "compressContinue",
    "createDCtx", "freeDCtx", "DCtx_setParameter", "decompressStream", "isError", "getErrorName",
)  # fmt: skip


@cache
def unavailable_reason() -> str:
    """Empty if libzstd can be reached, else the reason in words."""
    try:
        import zstandard
        from zstandard import _cffi  # type: ignore[attr-defined]
    except ImportError as e:
        return f"zstandard's cffi module cannot be imported: {e}"
    missing = [name for name in _FUNCTIONS if not hasattr(_cffi.lib, f"ZSTD_{name}")]
    version = tuple(int(part) for part in zstandard.__version__.split(".")[:2])
    if missing or not (0, 22) <= version < (0, 26):
        return f"zstandard {zstandard.__version__} is not known to have the cffi module this was written for"
    return ""


def _bindings() -> tuple[Any, Any]:
    from zstandard import _cffi  # type: ignore[attr-defined]

    realize(_cffi.ffi, _cffi.lib)
    return _cffi.ffi, _cffi.lib


class _Context:
    """What both directions have in common: a context, freed with this object."""

    def __init__(self, create: str, free: str) -> None:
        self.ffi, self.lib = _bindings()
        free_context = getattr(self.lib, free)
        self.pointer = getattr(self.lib, create)()
        if self.pointer == self.ffi.NULL:
            raise MemoryError("libzstd could not make a context")
        weakref.finalize(self, free_context, self.pointer)

    def error(self, code: int) -> str:
        """The message of a return code, empty if it is none."""
        if not self.lib.ZSTD_isError(code):
            return ""
        return bytes(self.ffi.string(self.lib.ZSTD_getErrorName(code))).decode()

    def address(self, pointer: Any) -> int:
        """Of what a pointer of cffi's points at."""
        return int(self.ffi.cast("uintptr_t", pointer))

    def function(self, name: str) -> int:
        """The address of one of libzstd's functions."""
        return self.address(self.ffi.addressof(self.lib, name))


class Compressor:
    """An endless frame, block after block from a ring of what was sent last.

    The ring is the copy that a codec may look back into, and larger than libzstd's own, which is the window and a
    block: in that one, nearly all of a block's history lies on the other side of the end, and the match finder for
    such history is slower (level 1: 7 % of the time to encode; two cores of an EPYC, zstd 1.5.7, real bytes).

    Args:
        highest: zstd's level that asks for the most history of those that will be asked for.
        window_log: the most history, as a power of two.
        packet_bytes: the most input of one `compress`.
    """

    def __init__(self, highest: int, window_log: int, packet_bytes: int) -> None:
        self._context = c = _Context("ZSTD_createCCtx", "ZSTD_freeCCtx")
        self._window_log, self._packet_bytes = window_log, packet_bytes
        # Not cleared: that would touch MiB, which a channel that sends pages as they are never does.
        uncleared = c.ffi.new_allocator(should_clear_after_alloc=False)
        self._ring = uncleared("uint8_t[]", self._room(self._parameters(highest)))
        self._ring_view = memoryview(c.ffi.buffer(self._ring))
        self._ring_array = np.frombuffer(self._ring_view, np.uint8)
        self._ring_bytes, self._at = c.ffi.new("uint64_t *"), c.ffi.new("uint64_t *")
        # ZSTD_compressBound, zstd.h: input + input / 256, and 64 bytes for small inputs
        self._out = uncleared("uint8_t[]", packet_bytes + packet_bytes // 256 + 1024)
        self._out_view = memoryview(c.ffi.buffer(self._out))

    def open(self, level: int) -> None:
        """Begin a frame at a level; one that is open is forgotten."""
        c, parameters = self._context, self._parameters(level)
        self._check(c.lib.ZSTD_compressBegin_advanced(c.pointer, c.ffi.NULL, 0, parameters[0], _UNKNOWN_SIZE))
        self._ring_bytes[0], self._at[0] = self._room(parameters), 0

    def _parameters(self, level: int) -> Any:
        c = self._context
        parameters = c.ffi.new("ZSTD_parameters *")  # no size, no checksum
        parameters.cParams = c.lib.ZSTD_getCParams(level, 0, 0)  # size and dictionary: unknown, none
        if parameters.cParams.windowLog > self._window_log:
            parameters.cParams.windowLog = self._window_log
            parameters.cParams = c.lib.ZSTD_adjustCParams(parameters.cParams, 0, 0)
        parameters.fParams.noDictIDFlag = 1
        return parameters

    def _room(self, parameters: Any) -> int:
        # Three packets beside the window: with fewer the slow match finder has more to do, with more than that the
        # processor's cache has (measured: 1, 2, 4, 8 MiB at level 1, of which 2 to 4 are best).
        return int(1 << parameters.cParams.windowLog) + 3 * self._packet_bytes

    def _check(self, code: int) -> int:
        if message := self._context.error(code):
            raise ValueError(f"libzstd: {message}")
        return code

    def compress(self, runs: Sequence[memoryview]) -> list[Buffer]:
        """The pages' bytes in whole blocks, in buffers that are valid until the next call."""
        c, at, ring = self._context, self._at, self._ring_array
        nbytes = sum(map(len, runs))
        if nbytes > self._ring_bytes[0] - at[0]:
            at[0] = 0
        start = end = at[0]
        for run in runs:
            end += len(run)
            np.copyto(ring[end - len(run) : end], np.frombuffer(run, np.uint8))  # without the GIL
        at[0] = end
        made = c.lib.ZSTD_compressContinue(c.pointer, self._out, len(self._out), self._ring + start, nbytes)
        return [self._out_view[: self._check(made)]]

    def native_hook(self, page_size: int) -> NativeHook | None:
        """`compress` in native code, on the same frame; None if that was not built."""
        return _native_zstd.send_hook(self._native_frame(page_size), library_message=self._context.error)

    def adaptive_hook(self, page_size: int, settle: Callable[[], None]) -> tuple[NativeHook, Any] | None:
        """``multifd_zstd_adapt`` on the same frames and its state; None if that was not built.

        Args:
            page_size: bytes.
            settle: called after each call of the pump.
        """
        return _native_zstd.adaptive_hook(
            self._native_frame(page_size), library_message=self._context.error, settle=settle
        )

    def _native_frame(self, page_size: int) -> _native_zstd.Frame:
        c = self._context
        return _native_zstd.Frame(
            function=c.function("ZSTD_compressContinue"), is_error=c.function("ZSTD_isError"),
            context=c.address(c.pointer), ring=c.address(self._ring), ring_bytes=c.address(self._ring_bytes),
            at=c.address(self._at), page_size=page_size, keep=self,
        )  # fmt: skip


class Decompressor:
    """The other end of it.

    Args:
        window_log_max: frames that ask for more history are refused.
    """

    def __init__(self, window_log_max: int) -> None:
        self._context = c = _Context("ZSTD_createDCtx", "ZSTD_freeDCtx")
        if message := c.error(c.lib.ZSTD_DCtx_setParameter(c.pointer, _D_WINDOW_LOG_MAX, window_log_max)):
            raise ValueError(f"libzstd: {message}")
        self._source = c.ffi.new("ZSTD_inBuffer *")
        self._target = c.ffi.new("ZSTD_outBuffer *")
        self._spare = bytearray(1)
        self._is_inside = c.ffi.new("uint8_t *")  # a frame that has not ended

    @contextmanager
    def _reading(self, buffer: Buffer) -> Iterator[None]:
        """Point the input at `buffer`, which is let go at the end, whatever happens.

        An exception must not carry the cffi view of a memoryview away in its traceback: when the garbage collector
        frees both, CPython 3.11 crashes (test_methods.py::test_error_survives_collection).
        """
        with self._context.ffi.from_buffer(buffer) as view:
            self._source.src, self._source.size, self._source.pos = view, len(view), 0
            yield

    @contextmanager
    def _writing(self, buffer: Buffer) -> Iterator[None]:
        """Point the output at `buffer`, as `_reading` does the input."""
        with self._context.ffi.from_buffer(buffer) as view:
            self._target.dst, self._target.size, self._target.pos = view, len(view), 0
            yield

    def decompress(self, payload: memoryview, runs: Sequence[memoryview]) -> None:
        """Fill `runs` from `payload`, which must hold exactly that.

        Raises:
            CodecError: it does not.
        """
        with self._reading(payload):
            for run in runs:
                with self._writing(run):
                    self._fill()
            with self._writing(self._spare):
                self._finish()

    def _fill(self) -> None:
        """Decode until the output is full."""
        source, target = self._source, self._target
        while target.pos < target.size:
            before = target.pos, source.pos
            self._step()
            if before == (target.pos, source.pos):
                raise _native_zstd.too_short(source.size)

    def _finish(self) -> None:
        """What is left may be a block's or a frame's end, which gives no bytes."""
        source, target = self._source, self._target
        while True:
            before = source.pos
            self._step()
            if target.pos:
                raise _native_zstd.too_long(source.size)
            if source.pos in (before, source.size):
                return

    def _step(self) -> None:
        c, before = self._context, self._source.pos
        code = c.lib.ZSTD_decompressStream(c.pointer, self._target, self._source)
        if message := c.error(code):
            raise _native_zstd.undecodable(message)
        if self._source.pos != before:  # without input, libzstd asks for the next frame
            self._is_inside[0] = code != 0

    def native_hook(self, page_size: int) -> NativeHook | None:
        """`decompress` in native code, on the same frame; None if that was not built."""
        c = self._context
        return _native_zstd.recv_hook(
            function=c.function("ZSTD_decompressStream"), is_error=c.function("ZSTD_isError"),
            context=c.address(c.pointer), is_inside=c.address(self._is_inside), page_size=page_size,
            library_message=c.error, keep=self,
        )  # fmt: skip
