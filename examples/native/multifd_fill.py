"""A method with hooks in native code, beside the same hooks in Python: see docs/write-a-method.md.

``cc -shared -fPIC -O2 -I DIR fill.c -o fill.so`` makes the native ones, where DIR is that of multifd/pump/native.h.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import cffi

from multifd.method import Capabilities, CodecError, Geometry, MultifdMethods, NativeHook, RecvParams, SendParams

_WORDS = {-2: "cut short", -3: "unknown kind of page", -4: "longer than its pages"}


class FillMethod(MultifdMethods):
    """A page that is one byte over and over becomes that byte."""

    name = "fill"
    api = 1
    capabilities = Capabilities(streaming=False, page_independent=True, deterministic=True)

    def max_payload(self, geometry: Geometry) -> int:
        return geometry.page_count * (1 + geometry.page_size)

    def send_setup(self, p: SendParams) -> None:
        p.counters["filled"] = 0

    def send_prepare(self, p: SendParams) -> None:
        for page in p.pages:
            copy = bytes(page)
            is_filled = copy == copy[:1] * len(copy)
            p.iov.append(b"\1" + copy[:1] if is_filled else b"\0" + copy)
            p.counters["filled"] += is_filled

    def recv(self, p: RecvParams) -> None:
        at, size = 0, p.geometry.page_size
        for page in p.pages:
            if at == len(p.payload):
                raise CodecError(_WORDS[-2])
            kind = p.payload[at]
            if kind > 1:
                raise CodecError(_WORDS[-3])
            part = p.payload[at + 1 : at + 1 + (1 if kind else size)]
            if len(part) < (1 if kind else size):
                raise CodecError(_WORDS[-2])
            page[:] = bytes(part) * size if kind else part
            at += 1 + len(part)
        if at != len(p.payload):
            raise CodecError(_WORDS[-4])

    # [native]
    def native_send(self, p: SendParams) -> NativeHook | None:
        if (native := _native()) is None:
            return None
        ffi, lib = native
        state = ffi.new("fill_state *", {"page_size": p.geometry.page_size})

        def settle() -> None:
            p.counters["filled"] += state.filled
            state.filled = 0

        return NativeHook(_address(lib.fill_send), _address(state), _explain, settle, keep=(lib, state))

    def native_recv(self, p: RecvParams) -> NativeHook | None:
        if (native := _native()) is None:
            return None
        ffi, lib = native
        state = ffi.new("fill_state *", {"page_size": p.geometry.page_size})
        return NativeHook(_address(lib.fill_recv), _address(state), _explain, keep=(lib, state))


def _explain(result: int) -> Exception:
    return CodecError(_WORDS[result])


@cache
def _native() -> tuple[Any, Any] | None:
    """cffi's ffi and lib; None without the compiled part."""
    ffi = cffi.FFI()
    ffi.cdef("""
        typedef struct { uint32_t page_size; uint64_t filled; } fill_state;
        int64_t fill_send(void *, const uint8_t *const *, uint32_t, uint8_t *, uint64_t);
        int64_t fill_recv(void *, const uint8_t *, uint64_t, uint8_t *const *, uint32_t);
    """)
    try:
        return ffi, ffi.dlopen(str(Path(__file__).with_name("fill.so")))
    except OSError:
        return None


def _address(pointer: Any) -> int:
    return int(cffi.FFI().cast("uintptr_t", pointer))
    # [end]
