"""Native hooks called as the packet pump calls them, without it (multifd/pump/native.h)."""

from __future__ import annotations

import ctypes

from qpl_ends import Ends

from multifd.method import NativeHook

DECLINED = -1

_SEND = ctypes.CFUNCTYPE(
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_uint32,
    ctypes.c_void_p,
    ctypes.c_uint64,
)
_RECV = ctypes.CFUNCTYPE(
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_uint64,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_uint32,
)
_GUARD = b"\xa5" * 64


class NativeEnds(Ends):
    """Both ends of one channel, with their native hooks beside those in Python."""

    def hook(self, name: str) -> NativeHook:
        """``native_send`` or ``native_recv``; asked for once, as the engine does."""
        if name not in self._hooks:
            hook = getattr(self.method, name)(self.sender if name == "native_send" else self.receiver)
            assert isinstance(hook, NativeHook)
            self._hooks[name] = hook
        return self._hooks[name]

    def __enter__(self) -> NativeEnds:
        self._hooks: dict[str, NativeHook] = {}
        super().__enter__()
        return self

    def _pointers(self, memory: bytearray, offsets: list[int] | None) -> ctypes.Array[ctypes.c_void_p]:
        page_size = self.geometry.page_size
        places = range(0, len(memory), page_size) if offsets is None else offsets
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory)) if memory else 0
        return (ctypes.c_void_p * len(places))(*(start + place for place in places))

    def native_send(
        self, memory: bytearray, offsets: list[int] | None = None, capacity: int | None = None
    ) -> bytes | int:
        """A packet's payload, or a negative result; nothing behind the capacity is written to."""
        if capacity is None:
            capacity = self.method.max_payload(self.geometry)
        hook, out = self.hook("native_send"), bytearray(capacity) + _GUARD
        pages = self._pointers(memory, offsets)
        result: int = _SEND(hook.function)(
            hook.state, pages, len(pages), ctypes.addressof(ctypes.c_char.from_buffer(out)), capacity
        )
        assert out[capacity:] == _GUARD
        hook.settle()
        return bytes(out[:result]) if result > 0 else result

    def native_receive(self, payload: bytes, memory: bytearray, offsets: list[int] | None = None) -> int:
        """A packet's payload into `memory`; the hook's result."""
        hook, pages = self.hook("native_recv"), self._pointers(memory, offsets)
        data = ctypes.create_string_buffer(payload, max(1, len(payload)))
        result: int = _RECV(hook.function)(hook.state, data, len(payload), pages, len(pages))
        hook.settle()
        return result
