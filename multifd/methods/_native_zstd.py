"""zstd's hooks in native code (multifd/pump/zstd.c), if they were built; and what is said of a bad payload, the same in
Python and there."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from multifd.cffi_types import realize
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


@dataclass(frozen=True, slots=True)
class Frame:
    """A context that Python compresses with, too, and its ring; addresses, as in ``zstd_sender`` (multifd/pump/zstd.h).

    Args:
        function, is_error, context, ring, ring_bytes, at: addresses.
        page_size: bytes.
        keep: what holds all of that.
    """

    function: int
    is_error: int
    context: int
    ring: int
    ring_bytes: int
    at: int
    page_size: int
    keep: object


def send_hook(frame: Frame, *, library_message: Callable[[int], str]) -> NativeHook | None:
    """``multifd_zstd_send``; None if it was not built.

    Args:
        frame: kept.
        library_message: libzstd's words for its code.
    """
    module = _module()
    if module is None:
        return None
    ffi, lib = module.ffi, module.lib
    state = ffi.new("zstd_sender *")
    _fill(ffi, state, frame)
    return _hook(ffi, ffi.addressof(lib, "multifd_zstd_send"), state, _compressing_error(lib, library_message), frame)


def adaptive_hook(
    frame: Frame, *, library_message: Callable[[int], str], settle: Callable[[], None]
) -> tuple[NativeHook, Any] | None:
    """``multifd_zstd_adapt`` and ``multifd_zstd_gather`` with their ``zstd_adaptive``; None if they were not built.
    Arguments as `send_hook`."""
    module = _module()
    if module is None:
        return None
    ffi, lib = module.ffi, module.lib
    state = ffi.new("zstd_adaptive *")
    _fill(ffi, state.frame, frame)
    explain = _compressing_error(lib, library_message)
    hook = _hook(ffi, ffi.addressof(lib, "multifd_zstd_adapt"), state, explain, frame)
    gather = _address(ffi, ffi.addressof(lib, "multifd_zstd_gather"))
    return replace(hook, settle=settle, gather=gather), state


def _fill(ffi: Any, state: Any, frame: Frame) -> None:
    state.compress = ffi.cast("size_t(*)(void *, void *, size_t, const void *, size_t)", frame.function)
    state.is_error = ffi.cast("unsigned(*)(size_t)", frame.is_error)
    state.context, state.ring = ffi.cast("void *", frame.context), ffi.cast("uint8_t *", frame.ring)
    state.ring_bytes, state.at = ffi.cast("uint64_t *", frame.ring_bytes), ffi.cast("uint64_t *", frame.at)
    state.page_size = frame.page_size


def _compressing_error(lib: Any, library_message: Callable[[int], str]) -> Callable[[int], Exception]:
    return lambda result: ValueError(f"libzstd: {library_message(_library_code(lib, result))}")


def recv_hook(
    *,
    function: int,
    is_error: int,
    context: int,
    is_inside: int,
    page_size: int,
    library_message: Callable[[int], str],
    keep: object,
) -> NativeHook | None:
    """``multifd_zstd_recv`` on a context that Python decompresses with, too; None if it was not built.

    Args:
        function, is_error, context, is_inside: addresses, as in ``zstd_receiver`` (multifd/pump/zstd.h).
        page_size: bytes.
        library_message: libzstd's words for its code.
        keep: what holds all of that.
    """
    module = _module()
    if module is None:
        return None
    ffi, lib = module.ffi, module.lib
    state = ffi.new("zstd_receiver *")
    state.decompress = ffi.cast("size_t(*)(void *, zstd_out *, zstd_in *)", function)
    state.is_error = ffi.cast("unsigned(*)(size_t)", is_error)
    state.context, state.page_size = ffi.cast("void *", context), page_size
    state.is_inside = ffi.cast("uint8_t *", is_inside)

    def explain(result: int) -> Exception:
        if result == lib.ZSTD_TOO_SHORT:
            return too_short(state.length)
        if result == lib.ZSTD_TOO_LONG:
            return too_long(state.length)
        return undecodable(library_message(_library_code(lib, result)))

    hook = _hook(ffi, ffi.addressof(lib, "multifd_zstd_recv"), state, explain, keep)
    return replace(hook, scatter=_address(ffi, ffi.addressof(lib, "multifd_zstd_scatter")))


def _module() -> Any:
    """The compiled part, None if there is none or one of another release."""
    try:
        module: Any = importlib.import_module("multifd._pump")
    except ImportError:
        return None
    realize(module.ffi, module.lib)
    return module if hasattr(module.lib, "multifd_zstd_scatter") else None


def _library_code(lib: Any, result: int) -> int:
    """libzstd's ``size_t``, of which the hook gave a negative number."""
    return int(result - lib.ZSTD_LIBRARY) % (1 << 64)


def _hook(ffi: Any, function: Any, state: Any, explain: Callable[[int], Exception], keep: object) -> NativeHook:
    return NativeHook(_address(ffi, function), _address(ffi, state), explain, keep=(state, keep))


def _address(ffi: Any, pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))
