"""libzstd into the caller's buffers, through ``zstandard._cffi``: private to that package, so this file
alone touches it and checks that it is what it was written for (zstandard 0.22 to 0.25).

cffi calls release the GIL. The public API has no way to give an endless frame an output buffer.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from multifd.method import CodecError
from multifd.pages import Buffer

_CONTINUE, _FLUSH = 0, 1  # ZSTD_e_continue, ZSTD_e_flush: zstd.h 1.4
_COMPRESSION_LEVEL, _C_WINDOW_LOG, _D_WINDOW_LOG_MAX = 100, 101, 100  # ZSTD_cParameter, ZSTD_dParameter


@cache
def unavailable_reason() -> str:
    """Empty if libzstd can be reached, else the reason in words."""
    try:
        import zstandard
        from zstandard import _cffi  # type: ignore[attr-defined]
    except ImportError as e:
        return f"zstandard's cffi module cannot be imported: {e}"
    compress = ("createCCtx", "freeCCtx", "CCtx_setParameter", "compressStream2")
    decompress = ("createDCtx", "freeDCtx", "DCtx_setParameter", "decompressStream")
    missing = [name for name in compress + decompress if not hasattr(_cffi.lib, f"ZSTD_{name}")]
    version = tuple(int(part) for part in zstandard.__version__.split(".")[:2])
    if missing or not (0, 22) <= version < (0, 26):
        return f"zstandard {zstandard.__version__} is not known to have the cffi module this was written for"
    return ""


def _bindings() -> tuple[Any, Any]:
    from zstandard import _cffi  # type: ignore[attr-defined]

    return _cffi.ffi, _cffi.lib


class _Stream:
    """What both directions have in common: the context, and the two buffer descriptors."""

    def __init__(self, create: str, free: str) -> None:
        self.ffi, self.lib = _bindings()
        free_context = getattr(self.lib, free)
        self.context = getattr(self.lib, create)()
        if self.context == self.ffi.NULL:
            raise MemoryError("libzstd could not make a context")
        weakref.finalize(self, free_context, self.context)
        self.source = self.ffi.new("ZSTD_inBuffer *")
        self.target = self.ffi.new("ZSTD_outBuffer *")

    def error(self, code: int) -> str:
        """The message of a return code, empty if it is none."""
        if not self.lib.ZSTD_isError(code):
            return ""
        return bytes(self.ffi.string(self.lib.ZSTD_getErrorName(code))).decode()

    @contextmanager
    def reading(self, buffer: Buffer) -> Iterator[None]:
        """Point the input at `buffer`, which is let go at the end, whatever happens.

        An exception must not carry the cffi view of a memoryview away in its traceback: when the garbage collector
        frees both, CPython 3.11 crashes (test_methods.py::test_error_survives_collection).
        """
        with self.ffi.from_buffer(buffer) as view:
            self.source.src, self.source.size, self.source.pos = view, len(view), 0
            yield

    @contextmanager
    def writing(self, buffer: Buffer) -> Iterator[None]:
        """Point the output at `buffer`, as `reading` does the input."""
        with self.ffi.from_buffer(buffer) as view:
            self.target.dst, self.target.size, self.target.pos = view, len(view), 0
            yield


class Compressor:
    """An endless frame.

    Args:
        level: zstd's.
        window_log: the most history, as a power of two.
        packet_bytes: the most input of one `compress`.
    """

    def __init__(self, level: int, window_log: int, packet_bytes: int) -> None:
        self._stream = s = _Stream("ZSTD_createCCtx", "ZSTD_freeCCtx")
        self._check(s.lib.ZSTD_CCtx_setParameter(s.context, _COMPRESSION_LEVEL, level))
        if level >= 20:
            self._check(s.lib.ZSTD_CCtx_setParameter(s.context, _C_WINDOW_LOG, window_log))
        # ZSTD_compressBound, zstd.h: input + input / 256, and 64 bytes for small inputs and the flush
        self._out = bytearray(packet_bytes + packet_bytes // 256 + 1024)

    def _check(self, code: int) -> int:
        if message := self._stream.error(code):
            raise ValueError(f"libzstd: {message}")
        return code

    def compress(self, runs: Sequence[memoryview]) -> memoryview:
        """The pages' bytes and a block flush; the result is valid until the next call."""
        s, last = self._stream, len(runs) - 1
        with s.writing(self._out):
            for i, run in enumerate(runs):
                with s.reading(run):
                    self._feed(_FLUSH if i == last else _CONTINUE)
        return memoryview(self._out)[: s.target.pos]

    def _feed(self, mode: int) -> None:
        """Take all of the input; with _FLUSH also give out all of it."""
        s = self._stream
        while True:
            left = self._check(s.lib.ZSTD_compressStream2(s.context, s.target, s.source, mode))
            if s.source.pos == s.source.size and (mode == _CONTINUE or not left):
                return
            if s.target.pos == s.target.size:
                raise ValueError("libzstd: output larger than its bound")


class Decompressor:
    """The other end of it.

    Args:
        window_log_max: frames that ask for more history are refused.
    """

    def __init__(self, window_log_max: int) -> None:
        self._stream = s = _Stream("ZSTD_createDCtx", "ZSTD_freeDCtx")
        if message := s.error(s.lib.ZSTD_DCtx_setParameter(s.context, _D_WINDOW_LOG_MAX, window_log_max)):
            raise ValueError(f"libzstd: {message}")
        self._spare = bytearray(1)

    def decompress(self, payload: memoryview, runs: Sequence[memoryview]) -> None:
        """Fill `runs` from `payload`, which must hold exactly that.

        Raises:
            CodecError: it does not.
        """
        s = self._stream
        with s.reading(payload):
            for run in runs:
                with s.writing(run):
                    self._fill()
            with s.writing(self._spare):
                self._finish()

    def _fill(self) -> None:
        """Decode until the output is full."""
        s = self._stream
        while s.target.pos < s.target.size:
            before = s.target.pos, s.source.pos
            self._step()
            if before == (s.target.pos, s.source.pos):
                raise CodecError(f"zstd payload of {s.source.size} bytes ends before its pages do")

    def _finish(self) -> None:
        """What is left may be a block's or a frame's end, which gives no bytes."""
        s = self._stream
        while True:
            before = s.source.pos
            self._step()
            if s.target.pos:
                raise CodecError(f"zstd payload of {s.source.size} bytes holds more than its pages")
            if s.source.pos in (before, s.source.size):
                return

    def _step(self) -> None:
        s = self._stream
        if message := s.error(s.lib.ZSTD_decompressStream(s.context, s.target, s.source)):
            raise CodecError(f"zstd payload: {message}")
