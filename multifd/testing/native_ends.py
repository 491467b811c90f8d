"""Both ends of a channel whose packets go by hooks in native code.

An end calls its hook as the packet pump does: by its address, with addresses, and without the interpreter lock; what it
declines goes by the hook in Python. No compiler and no pump is needed.
"""

from __future__ import annotations

from typing import Any

import cffi
import numpy as np

from multifd.method import MultifdMethods, NativeHook, RecvParams, SendParams, native_hook
from multifd.pages import Pages
from multifd.testing.fence import Fence
from multifd.testing.harness import Broken, RecvEnd, Section, SendEnd

DECLINED = -1
"""MULTIFD_NATIVE_DECLINED of multifd/pump/native.h."""
MOST_HEADS = 64
"""MULTIFD_NATIVE_HEADS of it."""

_FFI = cffi.FFI()
_FFI.cdef("""
typedef int64_t (*multifd_native_send)(void *, const uint8_t *const *, uint32_t, uint8_t *, uint64_t);
typedef int64_t (*multifd_native_recv)(void *, const uint8_t *, uint64_t, uint8_t *const *, uint32_t);
typedef struct { void *base; size_t length; } piece;
typedef int64_t (*multifd_native_gather)(void *, const uint8_t *const *, uint32_t, uint8_t *, uint64_t, piece *,
                                         uint32_t);
typedef int64_t (*multifd_native_scatter)(void *, uint64_t, uint8_t *const *, uint32_t, uint8_t *, piece *, uint32_t);
""")


class _Native:
    """What both ends have in common."""

    hook: NativeHook | None = None
    is_native = True
    """Whether the next packets go by the hook in native code."""
    taken = 0
    """Packets that it did not decline."""

    def settle(self) -> None:
        """Let the hook count."""
        if self.hook is not None:
            self.hook.settle()


class NativeSendEnd(_Native, SendEnd):
    """A source's end whose packets go by the hook in native code."""

    def __init__(self, method: MultifdMethods, page_size: int = 4096, channel: int = 0) -> None:
        super().__init__(method, page_size, channel)
        self.out = Fence(self.bound)

    def setup(self) -> None:
        """Run send_setup and ask for the hook."""
        super().setup()
        self.hook = native_hook(self.method, "native_send", self.p)

    def cleanup(self) -> None:
        """Run send_cleanup; the hook is not called any more."""
        self.hook = None
        super().cleanup()

    def _send_prepare(self, p: SendParams) -> None:
        if self.hook is None or not self.is_native:
            super()._send_prepare(p)
            return
        if self._gather(p):
            self.taken += 1
            return
        pages, p.pages = p.pages, self.no_pages  # it has to do without
        pointers = _pointers(pages)
        function = _FFI.cast("multifd_native_send", self.hook.function)
        out = _FFI.cast("uint8_t *", _address(self.out.view))
        result = function(_FFI.cast("void *", self.hook.state), pointers, len(pages), out, self.bound)
        p.pages = pages
        if result == DECLINED:
            super()._send_prepare(p)
        elif result < 0:
            error = self.hook.explain(result)
            raise Broken(
                "a sender's hook takes every packet, or declines it",
                Section.NATIVE,
                f"{self.where}: {result}, {error!r}",
            ) from error
        elif not 0 < result <= self.bound:
            raise Broken(
                "a sender's hook gives the payload's bytes, from 1 to capacity",
                Section.NATIVE,
                f"{self.where}: {result} for {len(pages)} pages, capacity {self.bound}",
            )
        else:
            self.taken += 1
            p.iov.append(self.out.view[:result])

    def _gather(self, p: SendParams) -> bool:
        """Whether the hook that copies no page took the packet."""
        if self.hook is None or not self.hook.gather:
            return False
        room = 2 * len(p.pages) + 1
        pieces, pointers = _FFI.new("piece[]", room), _pointers(p.pages)
        function = _FFI.cast("multifd_native_gather", self.hook.gather)
        out = _FFI.cast("uint8_t *", _address(self.out.view))
        result = function(_FFI.cast("void *", self.hook.state), pointers, len(p.pages), out, self.bound, pieces, room)
        if result == DECLINED:
            return False
        p.iov.extend(_parts(pieces[0 : max(result, 0)], [self.out.view, *p.pages.runs()], self.where))
        if not 0 < result <= room:
            raise Broken(
                "a sender's hook gives from 1 piece to as many as there is room for, or declines",
                Section.NATIVE,
                f"{self.where}: {result} for {len(p.pages)} pages, room for {room}",
            )
        return True


class NativeRecvEnd(_Native, RecvEnd):
    """A destination's end whose packets go by the hook in native code."""

    def setup(self) -> None:
        """Run recv_setup and ask for the hook."""
        super().setup()
        self.hook = native_hook(self.method, "native_recv", self.p)

    def cleanup(self) -> None:
        """Run recv_cleanup; the hook is not called any more."""
        self.hook = None
        super().cleanup()

    def _recv(self, p: RecvParams) -> None:
        if self.hook is None or not self.is_native or not len(p.payload):  # the pump leaves an empty one to Python
            super()._recv(p)
            return
        if self._scatter(p):
            self.taken += 1
            return
        pages, payload = p.pages, p.payload
        p.pages, p.payload = self.no_pages, memoryview(b"")  # it has to do without
        function = _FFI.cast("multifd_native_recv", self.hook.function)
        source = _FFI.cast("uint8_t *", _address(payload))
        state = _FFI.cast("void *", self.hook.state)
        result = function(state, source, len(payload), _pointers(pages), len(pages))
        p.pages, p.payload = pages, payload
        if result == DECLINED:
            super()._recv(p)
            return
        self.taken += 1
        if result < 0:
            raise self.hook.explain(result)
        if result:
            raise Broken("a receiver's hook gives 0 or a negative number", Section.NATIVE, f"{self.where}: {result}")

    def _scatter(self, p: RecvParams) -> bool:
        """Whether the payload went straight to the pages."""
        length, page_bytes = len(p.payload), p.pages.nbytes
        if self.hook is None or not self.hook.scatter or not 0 <= length - page_bytes <= MOST_HEADS:
            return False
        room = 2 * len(p.pages) + 1
        pieces, heads = _FFI.new("piece[]", room), Fence(length)
        function = _FFI.cast("multifd_native_scatter", self.hook.scatter)
        target = _FFI.cast("uint8_t *", _address(heads.view))
        result = function(
            _FFI.cast("void *", self.hook.state), length, _pointers(p.pages), len(p.pages), target, pieces, room
        )
        if result == DECLINED:
            return False
        places = _parts(pieces[0 : max(result, 0)], [heads.view, *p.pages.runs()], self.where)
        if not 0 < result <= room or sum(map(len, places)) != length:
            raise Broken(
                "a receiver's hook gives pieces of as many bytes as the payload has, or declines",
                Section.NATIVE,
                f"{self.where}: {result} pieces of {sum(map(len, places))} bytes, {length} wanted, room for {room}",
            )
        at = 0
        is_expected = True
        for piece, place in zip(pieces[0:result], places, strict=True):
            own = p.payload[at : at + len(place)]
            if _number(piece.base) == _address(heads.view) + at:
                is_expected = is_expected and place == own
            else:
                place[:] = own
            at += len(place)
        return is_expected


def _parts(pieces: Any, known: list[memoryview], where: str) -> list[memoryview]:
    """What pieces of a payload are: each lies in what the hook was given."""
    parts = []
    for piece in pieces:
        at, nbytes = _number(piece.base), piece.length
        found = [v[at - _address(v) :][:nbytes] for v in known if 0 <= at - _address(v) <= len(v) - nbytes]
        if not found:
            raise Broken(
                "pieces of a payload are parts of the packet's pages, or of what else the hook was given",
                Section.NATIVE,
                f"{where}: {nbytes} bytes at {at:#x}",
            )
        parts.append(found[0])
    return parts


def _number(pointer: Any) -> int:
    return int(_FFI.cast("uintptr_t", pointer))


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def _pointers(pages: Pages) -> Any:
    return _FFI.new("uint8_t *[]", [_FFI.cast("uint8_t *", _address(page)) for page in pages])
