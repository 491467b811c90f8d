"""zstd's hooks in native code (multifd/pump/zstd.c), if they were built; and what is said of a bad payload, the same in
Python and there."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from multifd.method import CodecError, NativeHook


def too_short(nbytes: int) -> CodecError:
    """A payload of so many bytes does not fill its pages."""
    return CodecError(f"zstd payload of {nbytes} bytes ends before its pages do")


def too_long(nbytes: int) -> CodecError:
    """A payload of so many bytes gives more than its pages."""
    return CodecError(f"zstd payload of {nbytes} bytes holds more than its pages")


def undecodable(message: str) -> CodecError:
    """libzstd's own word."""
    return CodecError(f"zstd payload: {message}")


def send_hook(
    *,
    function: int,
    is_error: int,
    context: int,
    ring: int,
    ring_bytes: int,
    at: int,
    page_size: int,
    library_message: Callable[[int], str],
    keep: object,
) -> NativeHook | None:
    """``multifd_zstd_send`` on a context that Python compresses with, too; None if it was not built.

    Args:
        function, is_error, context, ring, at: addresses, as in ``zstd_sender`` (multifd/pump/zstd.h).
        ring_bytes: of the ring.
        page_size: bytes.
        library_message: libzstd's words for its code.
        keep: what holds all of that.
    """
    module = _module()
    if module is None:
        return None
    ffi, lib = module.ffi, module.lib
    state = ffi.new("zstd_sender *")
    state.compress = ffi.cast("size_t(*)(void *, void *, size_t, const void *, size_t)", function)
    state.is_error = ffi.cast("unsigned(*)(size_t)", is_error)
    state.context, state.ring, state.ring_bytes = ffi.cast("void *", context), ffi.cast("uint8_t *", ring), ring_bytes
    state.at, state.page_size = ffi.cast("uint64_t *", at), page_size

    def explain(result: int) -> Exception:
        return ValueError(f"libzstd: {library_message(_library_code(lib, result))}")

    return _hook(ffi, ffi.addressof(lib, "multifd_zstd_send"), state, explain, keep)


def recv_hook(
    *,
    function: int,
    is_error: int,
    context: int,
    page_size: int,
    library_message: Callable[[int], str],
    keep: object,
) -> NativeHook | None:
    """``multifd_zstd_recv`` on a context that Python decompresses with, too; arguments as `send_hook`."""
    module = _module()
    if module is None:
        return None
    ffi, lib = module.ffi, module.lib
    state = ffi.new("zstd_receiver *")
    state.decompress = ffi.cast("size_t(*)(void *, zstd_out *, zstd_in *)", function)
    state.is_error = ffi.cast("unsigned(*)(size_t)", is_error)
    state.context, state.page_size = ffi.cast("void *", context), page_size

    def explain(result: int) -> Exception:
        if result == lib.ZSTD_TOO_SHORT:
            return too_short(state.length)
        if result == lib.ZSTD_TOO_LONG:
            return too_long(state.length)
        return undecodable(library_message(_library_code(lib, result)))

    return _hook(ffi, ffi.addressof(lib, "multifd_zstd_recv"), state, explain, keep)


def _module() -> Any:
    """The compiled part, None if there is none or one of another release."""
    try:
        module: Any = importlib.import_module("multifd._pump")
    except ImportError:
        return None
    return module if hasattr(module.lib, "multifd_zstd_recv") else None


def _library_code(lib: Any, result: int) -> int:
    """libzstd's ``size_t``, of which the hook gave a negative number."""
    return int(result - lib.ZSTD_LIBRARY) % (1 << 64)


def _hook(ffi: Any, function: Any, state: Any, explain: Callable[[int], Exception], keep: object) -> NativeHook:
    return NativeHook(_address(ffi, function), _address(ffi, state), explain, keep=(state, keep))


def _address(ffi: Any, pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))
