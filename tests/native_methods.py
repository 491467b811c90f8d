"""Methods with hooks in native code, whose code is a callback of cffi's: no compiler is needed.

The hooks call Python, which real ones may not: the interpreter lock is taken by the callback.
"""

from __future__ import annotations

import os
import signal
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import cffi
from wrong_methods import Good, GoodStream, caught_by, decode, encode

from multifd.method import CodecError, NativeHook, RecvParams, SendParams

DECLINED = -1
"""MULTIFD_NATIVE_DECLINED of multifd/pump/native.h."""
REFUSED = -2
BROKEN = -3

FFI = cffi.FFI()
FFI.cdef("""
typedef int64_t native_send(void *, const uint8_t *const *, uint32_t, uint8_t *, uint64_t);
typedef int64_t native_recv(void *, const uint8_t *, uint64_t, uint8_t *const *, uint32_t);
typedef struct { void *base; size_t length; } piece;
typedef int64_t native_gather(void *, const uint8_t *const *, uint32_t, uint8_t *, uint64_t, piece *, uint32_t);
typedef int64_t native_scatter(void *, uint64_t, uint8_t *const *, uint32_t, uint8_t *, piece *, uint32_t);
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


def address_of(kind: str, function: Callable[..., int]) -> tuple[int, Any]:
    """Of a Python function as a callback of that kind, and what keeps it."""
    callback = FFI.callback(kind, function, error=BROKEN)
    return int(FFI.cast("uintptr_t", callback)), callback


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


@caught_by("test_native_payloads", "makes the payload that the hook in Python makes")
class NativeAtAnotherLevel(GoodNative):
    """Decodes all the same."""

    def pack(self, p: SendParams, pages: Sequence[memoryview]) -> bytes:
        bodies = [zlib.compress(page, 9) for page in pages]
        return b"".join(struct.pack("<I", len(body)) + body for body in bodies)


@caught_by("test_native_payloads", "decodes to exactly")
class NativeForgetsOrder(GoodNative):
    """Decodes into its pages as they lie."""

    def unpack(self, p: RecvParams, payload: memoryview, pages: Sequence[memoryview]) -> None:
        decode(payload, sorted(pages, key=lambda page: int(FFI.cast("uintptr_t", FFI.from_buffer(page)))))


@caught_by("test_native_payloads", "takes packets")
class NativeDeclinesAll(GoodNative):
    def native_recv(self, p: RecvParams) -> NativeHook | None:
        return recv_hook(lambda *_: DECLINED)


@caught_by("test_native_payloads", "from 1 to capacity")
class NativeMakesNothing(GoodNative):
    def pack(self, p: SendParams, pages: Sequence[memoryview]) -> bytes:
        return b""


@caught_by("test_native_payloads", "0 or a negative number")
class NativeGivesLength(GoodNative):
    """As many decoders do."""

    def native_recv(self, p: RecvParams) -> NativeHook | None:
        return recv_hook(lambda _state, _payload, length, *_: length)


@caught_by("test_native_payloads", "takes every packet, or declines it")
class NativeNeedsPython(GoodNative):
    """Looks at p.pages, which are no packet's when a hook in native code runs."""

    def pack(self, p: SendParams, pages: Sequence[memoryview]) -> bytes:
        if not len(p.pages):
            raise IndexError("no page")
        return super().pack(p, pages)


@caught_by("test_native_mixtures", "decode")
class NativeOwnStream(GoodNativeStream):
    """A stream of its own beside that of the hooks in Python."""

    def native_send(self, p: SendParams) -> NativeHook | None:
        self._own = zlib.compressobj(1)
        return super().native_send(p)

    def pack(self, p: SendParams, pages: Sequence[memoryview]) -> bytes:
        return bytes(self._own.compress(b"".join(pages)) + self._own.flush(zlib.Z_SYNC_FLUSH))


@caught_by("test_native_mixtures", "settle leaves in p.counters")
class NativeCountsNothing(GoodNative):
    def native_send(self, p: SendParams) -> NativeHook | None:
        hook = super().native_send(p)
        assert hook is not None
        return NativeHook(hook.function, 0, hook.explain, keep=hook.keep)


@caught_by("test_native_refusals", "refuses and decodes exactly what recv does")
class NativeIgnoresRest(GoodNative):
    """Looks at no more than its pages need."""

    def unpack(self, p: RecvParams, payload: memoryview, pages: Sequence[memoryview]) -> None:
        at = 0
        for page in pages:
            if at + 4 > len(payload):
                raise CodecError("cut before a length")
            (size,) = struct.unpack_from("<I", payload, at)
            decode(payload[at : at + 4 + size], [page])
            at += 4 + size


@caught_by("test_native_refusals", "explains it by the same exception")
class NativeOtherWords(GoodNative):
    def unpack(self, p: RecvParams, payload: memoryview, pages: Sequence[memoryview]) -> None:
        try:
            super().unpack(p, payload, pages)
        except CodecError:
            raise CodecError("payload does not decode") from None


@caught_by("test_native_refusals", "survives")
class NativeCrashes(GoodNative):
    """Writes through a length that it was given."""

    def unpack(self, p: RecvParams, payload: memoryview, pages: Sequence[memoryview]) -> None:
        if bytes(payload[1:4]) == b"\xff\xff\xff":
            os.kill(os.getpid(), signal.SIGSEGV)
        super().unpack(p, payload, pages)


@caught_by("test_native_guards", "no memory but its own")
class NativeReadsPastPage(GoodNative):
    """A match finder that looks eight bytes ahead."""

    def native_send(self, p: SendParams) -> NativeHook | None:
        size, good = p.geometry.page_size, super().native_send(p)
        assert good is not None
        function = FFI.cast("native_send *", good.function)

        def call(state: Any, pages: Any, count: int, out: Any, capacity: int) -> int:
            bytes(FFI.buffer(pages[0], size + 8))
            return int(function(state, pages, count, out, capacity))

        return send_hook(call, keep=good, settle=good.settle)


@caught_by("test_native_guards", "no memory but its own")
class NativeReadsPastPayload(GoodNative):
    """A decoder that reads eight bytes at a time."""

    def unpack(self, p: RecvParams, payload: memoryview, pages: Sequence[memoryview]) -> None:
        bytes(FFI.buffer(FFI.from_buffer(payload) + len(payload), 8))
        super().unpack(p, payload, pages)


@caught_by("test_native_guards", "no memory but its own")
class NativeFillsCapacity(GoodNative):
    """Clears what it takes for its buffer."""

    def native_send(self, p: SendParams) -> NativeHook | None:
        good = super().native_send(p)
        assert good is not None
        function = FFI.cast("native_send *", good.function)

        def call(state: Any, pages: Any, count: int, out: Any, capacity: int) -> int:
            FFI.memmove(out, bytes(capacity + 8), capacity + 8)
            return int(function(state, pages, count, out, capacity))

        return send_hook(call, keep=good, settle=good.settle)


@caught_by("test_native_guards", "no memory but its own")
class NativeKeepsPages(GoodNative):
    """Looks at the packet before where it was."""

    def pack(self, p: SendParams, pages: Sequence[memoryview]) -> bytes:
        if p.state is not None:
            bytes(p.state)
        p.state = pages[0]
        return super().pack(p, pages)


@caught_by("test_native_guards", "never writes to the source")
class NativeWritesToSource(GoodNative):
    def pack(self, p: SendParams, pages: Sequence[memoryview]) -> bytes:
        data = super().pack(p, pages)
        pages[0][0] ^= 1
        return data


@caught_by("test_native_live_pages", "not written during send_prepare")
class NativeReadsTwice(GoodNative):
    """Measures each page, then compresses it again."""

    def pack(self, p: SendParams, pages: Sequence[memoryview]) -> bytes:
        sizes = [len(zlib.compress(page, 1)) for page in pages]
        bodies = [zlib.compress(page, 1) for page in pages]
        return b"".join(struct.pack("<I", s) + b for s, b in zip(sizes, bodies, strict=True))


@caught_by("test_native_channels_in_threads", "")
class NativeSharesScratch(GoodNative):
    """One buffer for all channels."""

    def pack(self, p: SendParams, pages: Sequence[memoryview]) -> bytes:
        scratch = self.__dict__.setdefault("scratch", bytearray(1 << 20))
        data = b"".join(pages)
        scratch[: len(data)] = data
        threading.Event().wait(0.001)  # another channel's turn
        return encode(bytes(scratch[i : i + len(pages[0])]) for i in range(0, len(data), len(pages[0])))


@caught_by("test_native_abort", "explained by an error of multifd.errors")
class NativeAbortsWithWrongError(GoodNative):
    def pack(self, p: SendParams, pages: Sequence[memoryview]) -> bytes:
        if p.abort[0]:
            raise TimeoutError("device")
        return super().pack(p, pages)


class GoodPlain(NativeHooks, Good):
    """Right: a payload is its pages, which neither end copies."""

    name = "goodplain"

    def pack(self, p: SendParams, pages: Sequence[memoryview]) -> bytes:
        return b"".join(pages)

    def unpack(self, p: RecvParams, payload: memoryview, pages: Sequence[memoryview]) -> None:
        if len(payload) != sum(map(len, pages)):
            raise CodecError("not its pages")
        for i, page in enumerate(pages):
            page[:] = payload[i * len(page) : (i + 1) * len(page)]

    def send_prepare(self, p: SendParams) -> None:
        p.iov.extend(p.pages.runs())

    def recv(self, p: RecvParams) -> None:
        self.unpack(p, p.payload, list(p.pages))

    def pieces(self, pages: Any, count: int, size: int, pieces: Any) -> int:
        """What goes where."""
        for i in range(count):
            pieces[i].base, pieces[i].length = FFI.cast("void *", pages[i]), size
        return count

    def native_send(self, p: SendParams) -> NativeHook | None:
        def gather(_state: Any, pages: Any, count: int, _out: Any, _capacity: int, pieces: Any, _room: int) -> int:
            return self.pieces(pages, count, p.geometry.page_size, pieces)

        hook = super().native_send(p)
        assert hook is not None
        address, kept = address_of("native_gather", gather)
        return replace(hook, gather=address, settle=lambda: None, keep=(hook.keep, kept))

    def native_recv(self, p: RecvParams) -> NativeHook | None:
        def scatter(_state: Any, length: int, pages: Any, count: int, _payload: Any, pieces: Any, _room: int) -> int:
            size = p.geometry.page_size
            return DECLINED if length != count * size else self.pieces(pages, count, size, pieces)

        hook = super().native_recv(p)
        assert hook is not None
        address, kept = address_of("native_scatter", scatter)
        return replace(hook, scatter=address, keep=(hook.keep, kept))


@caught_by("test_native_payloads", "parts of the packet's pages")
class NativeGathersItsOwn(GoodPlain):
    """A buffer that the engine was never given."""

    def pieces(self, pages: Any, count: int, size: int, pieces: Any) -> int:
        self._own = FFI.new("uint8_t[]", size)
        found = super().pieces(pages, count, size, pieces)
        pieces[0].base = self._own
        return found


@caught_by("test_native_payloads", "as many bytes as the payload has")
class NativeScattersTooLittle(GoodPlain):
    """All pages but the last byte."""

    def native_send(self, p: SendParams) -> NativeHook | None:
        return None

    def pieces(self, pages: Any, count: int, size: int, pieces: Any) -> int:
        found = super().pieces(pages, count, size, pieces)
        pieces[count - 1].length -= 1
        return found
