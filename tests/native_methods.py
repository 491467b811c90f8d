"""Methods with hooks in native code, whose code is a callback of cffi's: no compiler is needed.

The hooks call Python, which real ones may not: the interpreter lock is taken by the callback.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import cffi
from wrong_methods import Good, GoodStream, decode, encode

from multifd.method import CodecError, NativeHook, RecvParams, SendParams

DECLINED = -1
"""MULTIFD_NATIVE_DECLINED of multifd/pump/native.h."""
REFUSED = -2
BROKEN = -3

FFI = cffi.FFI()
FFI.cdef("""
typedef int64_t native_send(void *, const uint8_t *const *, uint32_t, uint8_t *, uint64_t);
typedef int64_t native_recv(void *, const uint8_t *, uint64_t, uint8_t *const *, uint32_t);
""")


def unexplained(result: int) -> Exception:
    """For hooks whose only negative result is DECLINED."""
    return RuntimeError(f"result {result}")


def send_hook(function: Callable[..., int], **more: Any) -> NativeHook:
    """Of a Python function with a ``multifd_native_send``'s arguments."""
    callback = FFI.callback("native_send", function, error=BROKEN)
    return NativeHook(int(FFI.cast("uintptr_t", callback)), 0, **{"explain": unexplained, "keep": callback, **more})


def recv_hook(function: Callable[..., int], **more: Any) -> NativeHook:
    """Of a Python function with a ``multifd_native_recv``'s arguments."""
    callback = FFI.callback("native_recv", function, error=BROKEN)
    return NativeHook(int(FFI.cast("uintptr_t", callback)), 0, **{"explain": unexplained, "keep": callback, **more})


class NativeHooks:
    """Both hooks, each around a function of bytes, which a method has; what they count is seen when they settle."""

    def pack(self, p: SendParams, pages: Sequence[memoryview]) -> bytes:
        """The payload; p.iov and p.pages are not its."""
        raise NotImplementedError

    def unpack(self, p: RecvParams, payload: memoryview, pages: Sequence[memoryview]) -> None:
        """The inverse, or CodecError."""
        raise NotImplementedError

    def native_send(self, p: SendParams) -> NativeHook | None:
        size, counted = p.geometry.page_size, [0]

        def call(_state: Any, pages: Any, count: int, out: Any, capacity: int) -> int:
            data = self.pack(p, [memoryview(FFI.buffer(pages[i], size)) for i in range(count)])
            if len(data) > capacity:
                return BROKEN
            FFI.memmove(out, data, len(data))
            counted[0] += count
            return len(data)

        def settle() -> None:
            p.counters["pages"] = p.counters.get("pages", 0) + counted[0]
            counted[0] = 0

        return send_hook(call, settle=settle)

    def native_recv(self, p: RecvParams) -> NativeHook | None:
        size, errors = p.geometry.page_size, list[CodecError]()

        def call(_state: Any, payload: Any, length: int, pages: Any, count: int) -> int:
            views = [memoryview(FFI.buffer(pages[i], size)) for i in range(count)]
            try:
                self.unpack(p, memoryview(FFI.buffer(payload, length)), views)
            except CodecError as e:
                errors[:] = [CodecError(str(e))]  # without its frames
                return REFUSED
            return 0

        return recv_hook(call, explain=lambda result: errors[0] if result == REFUSED else unexplained(result))


class GoodNative(NativeHooks, Good):
    """Right in every way."""

    name = "goodnative"

    def pack(self, p: SendParams, pages: Sequence[memoryview]) -> bytes:
        return encode(bytes(page) for page in pages)

    def unpack(self, p: RecvParams, payload: memoryview, pages: Sequence[memoryview]) -> None:
        decode(payload, pages)

    def send_prepare(self, p: SendParams) -> None:
        p.counters["pages"] = p.counters.get("pages", 0) + len(p.pages)
        super().send_prepare(p)


class GoodNativeStream(NativeHooks, GoodStream):
    """Right too, with a stream for each channel that both kinds of hooks go on with."""

    name = "goodnativestream"

    def pack(self, p: SendParams, pages: Sequence[memoryview]) -> bytes:
        return bytes(p.state.compress(b"".join(pages)) + p.state.flush(zlib.Z_SYNC_FLUSH))

    def unpack(self, p: RecvParams, payload: memoryview, pages: Sequence[memoryview]) -> None:
        nbytes = sum(map(len, pages))
        try:
            data = p.state.decompress(payload, nbytes + 1)
        except zlib.error as e:
            raise CodecError(str(e)) from e
        if len(data) != nbytes:
            raise CodecError("not its pages")
        for i, page in enumerate(pages):
            page[:] = data[i * len(page) : (i + 1) * len(page)]

    def send_prepare(self, p: SendParams) -> None:
        p.counters["pages"] = p.counters.get("pages", 0) + len(p.pages)
        super().send_prepare(p)
