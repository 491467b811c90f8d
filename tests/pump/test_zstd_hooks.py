"""zstd's hooks in native code beside those in Python: the same payloads, pages and words, in any mixture."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from one_channel import IMAGE, PACKETS, PAGE, Receiver, Sender, expected

from multifd.errors import CodecError
from multifd.method import Memory, MultifdMethods, NativeHook
from multifd.methods import zstd
from multifd.pump import library
from multifd.registry import load_method
from multifd.testing.fence import Fence, fenced_pages

NOT_BUILT = library.unavailable_reason()
pytestmark = pytest.mark.skipif(bool(NOT_BUILT), reason=f"no pump: {NOT_BUILT}")
SPEC = "zstd:engine=libzstd"
OUT_BYTES = 1 << 20
INDEXES = st.lists(st.integers(0, 255), min_size=1, max_size=40, unique=True)
PATHS = st.lists(st.booleans(), min_size=16, max_size=16)


def pointers(memory: Memory, indexes: Any) -> np.ndarray[Any, Any]:
    """Of the pages of a memory, as the pump gives them."""
    return (memory.array.ctypes.data + np.array(indexes, np.int64) * PAGE).astype(np.uintp)


def call(hook: NativeHook, kind: str, *arguments: Any) -> int:
    """A hook, with addresses and numbers in place of its arguments."""
    ffi, _ = library.load()
    function = ffi.cast(kind, hook.function)
    types = ffi.typeof(kind).args[1:]
    given = [
        ffi.cast(t, a.ctypes.data if isinstance(a, np.ndarray) else a) for t, a in zip(types, arguments, strict=True)
    ]
    return int(function(ffi.cast("void *", hook.state), *given))


class NativeSender(Sender):
    """One whose packets may go through the native hook."""

    def __init__(self, method: MultifdMethods, memory: bytes | bytearray = IMAGE) -> None:
        super().__init__(method, memory)
        hook = method.native_send(self.params)
        assert hook is not None
        self.hook, self.out = hook, np.empty(OUT_BYTES, np.uint8)

    def native(self, indexes: Any) -> bytes:
        places = pointers(self.memory, indexes)
        made = call(self.hook, "multifd_native_send", places, len(places), self.out, OUT_BYTES)
        if made < 0:
            raise self.hook.explain(made)
        return self.out[:made].tobytes()

    def by(self, is_native: bool, indexes: Any) -> bytes:
        return self.native(indexes) if is_native else self.packet(indexes)


class NativeReceiver(Receiver):
    """One whose payloads may go through the native hook."""

    def __init__(self, method: MultifdMethods) -> None:
        super().__init__(method)
        hook = method.native_recv(self.params)
        assert hook is not None
        self.hook = hook

    def native_from(self, indexes: Any, data: np.ndarray[Any, Any], memory: Memory) -> None:
        places = pointers(memory, indexes)
        result = call(self.hook, "multifd_native_recv", data, len(data), places, len(places))
        if result < 0:
            raise self.hook.explain(result)
        assert result == 0

    def by(self, is_native: bool, indexes: Any, payload: bytes) -> bytes:
        if not is_native:
            return self.packet(indexes, payload)
        self.native_from(indexes, np.frombuffer(payload, np.uint8), self._memory)
        return b"".join(self.pages(indexes))


@pytest.mark.parametrize("level", [-7, -1, 1, 3, 9, 19, 22])
def test_same_payloads_and_pages(level: int) -> None:
    method = load_method(f"{SPEC},level={level}")
    python, native, receiver = Sender(method), NativeSender(method), NativeReceiver(method)
    for indexes in PACKETS:
        payload = native.native(indexes)
        assert payload == python.packet(indexes)
        assert receiver.by(True, indexes, payload) == expected(indexes)


@settings(max_examples=50, deadline=None)
@given(st.lists(INDEXES, max_size=16), PATHS, PATHS)
def test_mixtures(packets: list[list[int]], senders: list[bool], receivers: list[bool]) -> None:
    """Both kinds of hooks work on one state: whichever does a packet, the bytes are the same."""
    method = load_method(SPEC)
    mixed, python, receiver = NativeSender(method), Sender(method), NativeReceiver(method)
    for indexes, by_sender, by_receiver in zip(packets, senders, receivers, strict=False):
        payload = mixed.by(by_sender, indexes)
        assert payload == python.packet(indexes)
        assert receiver.by(by_receiver, indexes, payload) == expected(indexes)


def test_ring_goes_round() -> None:
    """Far more than the ring holds, in packets that do not divide it, by either kind in turn."""
    method = load_method(SPEC)
    sender, plain, rng = NativeSender(method), zstandard.ZstdDecompressor().decompressobj(), np.random.default_rng(1)
    for number in range(60):
        first = int(rng.integers(0, 128))
        indexes = range(first, first + int(rng.integers(60, 129)))
        assert plain.decompress(sender.by(number % 2 == 0, indexes)) == expected(indexes)


def refusals(indexes: list[int], payload: bytes) -> tuple[str | None, str | None]:
    """What a Python and a native receiver say to a payload, None: they take it; also where both go on after it."""
    words: list[str | None] = []
    pages: list[bytes] = []
    for is_native in (False, True):
        receiver = NativeReceiver(load_method(SPEC))
        try:
            pages.append(receiver.by(is_native, indexes, payload))
            words.append(None)
        except CodecError as e:
            words.append(str(e))
    if words == [None, None]:
        assert pages[0] == pages[1]
    return words[0], words[1]


def cases() -> dict[str, tuple[list[int], bytes]]:
    """Payloads with something wrong, and the pages they are for."""
    whole = Sender(load_method(SPEC)).packet([8, 9])
    wide = zstandard.ZstdCompressionParameters(window_log=zstd.WINDOW_LOG + 2, write_content_size=0)
    frame = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    codec = zstandard.ZstdCompressor()
    return {
        "empty": ([8, 9], b""),
        "cut": ([8, 9], whole[:-1]),
        "too few pages": ([8], whole),
        "too many pages": ([8, 9, 10], whole),
        "pages apart": ([8, 10, 12], whole),
        "no frame": ([8], b"no frame at all"),
        "window": ([8], frame.compress(expected([8])) + frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)),
        "rest": ([8], codec.compress(expected([8])) + b"\0"),
        "bomb": (list(range(128)), codec.compress(bytes(64 << 20))),
    }


@pytest.mark.parametrize("case", cases() if not NOT_BUILT else ())
def test_same_words(case: str) -> None:
    python, native = refusals(*cases()[case])
    assert python is not None
    assert python == native


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_same_words_for_anything(data: st.DataObject) -> None:
    indexes = data.draw(INDEXES)
    payload = bytearray(Sender(load_method(SPEC)).packet(indexes))
    for _ in range(data.draw(st.integers(0, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    python, native = refusals(indexes, bytes(payload[:cut]))
    assert python == native


def test_complete_frames() -> None:
    """As QEMU takes them: one frame for each page."""
    codec = zstandard.ZstdCompressor(write_checksum=True)
    receiver = NativeReceiver(load_method(SPEC))
    for indexes in PACKETS:
        payload = b"".join(codec.compress(expected([i])) for i in indexes)
        assert receiver.by(True, indexes, payload) == expected(indexes)


def test_no_byte_beside_pages_and_payload() -> None:
    """Nothing may be touched beside each page and behind the payload: a byte beyond would be a signal."""
    method, numbers = load_method(SPEC), [20, 3, 100]
    source, offsets, _ = fenced_pages(expected(numbers), PAGE)
    target, _, _ = fenced_pages(bytes(len(numbers) * PAGE), PAGE)
    sender, indexes = NativeSender(method), offsets // PAGE
    sender.memory = source
    payload = sender.native(indexes)
    for cut in (0, 1, len(payload) // 2, len(payload) - 1, len(payload)):
        wire = Fence(cut)
        wire.view[:] = payload[:cut]
        receiver = NativeReceiver(method)
        with contextlib.nullcontext() if cut == len(payload) else pytest.raises(CodecError):
            receiver.native_from(indexes, np.frombuffer(wire.view, np.uint8), target)
    assert b"".join(bytes(target.view[i : i + PAGE]) for i in offsets.tolist()) == expected(numbers)


def test_no_room() -> None:
    """Output that does not fit is an error of libzstd's, no write beside it."""
    sender = NativeSender(load_method(SPEC))
    places = pointers(sender.memory, range(8))
    made = call(sender.hook, "multifd_native_send", places, len(places), sender.out, 100)
    assert made < -1
    assert "too small" in str(sender.hook.explain(made))


def test_public_api_has_none() -> None:
    method = load_method("zstd:engine=zstandard")
    assert method.native_send(Sender(method).params) is None
    assert method.native_recv(Receiver(method).params) is None
