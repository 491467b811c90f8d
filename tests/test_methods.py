"""The methods that come with multifd: QEMU's byte facts, damage, bombs, and memory that is written meanwhile."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from one_channel import IMAGE, PACKETS, PAGE, Receiver, Sender, expected

from multifd.errors import CodecError, MethodUnavailable, OptionError
from multifd.methods import _libzstd
from multifd.registry import load_method

SPECS = (
    "none",
    *(f"zlib:engine={engine},level={level}" for engine, level in (("isal", 1), ("isal", 3), ("zlib", 1), ("zlib", 9))),
    "zlib:level=0",
    "zlib:level=auto",
    *(f"zstd:engine={e},level={n}" for e in ("libzstd", "zstandard") for n in (-7, 1, 3)),
)
ZLIB = [s for s in SPECS if s.startswith("zlib")]
ZSTD = ["zstd:engine=libzstd", "zstd:engine=zstandard"]
CODECS = [*ZLIB[:3], *ZSTD]


# -- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
def test_round_trip(spec: str) -> None:
    sender, receiver = Sender(load_method(spec)), Receiver(load_method(spec))
    for indexes in PACKETS:
        assert receiver.packet(indexes, sender.packet(indexes)) == expected(indexes)


@pytest.mark.parametrize(("one", "other"), [(ZLIB[0], ZLIB[3]), (ZLIB[3], ZLIB[0]), tuple(ZSTD), tuple(ZSTD[::-1])])
def test_engines_understand_each_other(one: str, other: str) -> None:
    sender, receiver = Sender(load_method(one)), Receiver(load_method(other))
    for indexes in PACKETS:
        assert receiver.packet(indexes, sender.packet(indexes)) == expected(indexes)


@pytest.mark.parametrize("spec", SPECS)
def test_channels_share_no_history(spec: str) -> None:
    method, target = load_method(spec), load_method(spec)
    senders = [Sender(method, channel=c) for c in range(3)]
    receivers = [Receiver(target, channel=c) for c in range(3)]
    for indexes in PACKETS:
        payloads = [s.packet(indexes) for s in senders]
        if method.capabilities.deterministic:
            assert len(set(payloads)) == 1
        assert all(r.packet(indexes, p) == expected(indexes) for r, p in zip(receivers, payloads, strict=True))


@settings(max_examples=25)
@given(
    st.sampled_from(SPECS), st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=20, unique=True), max_size=4)
)
def test_any_pages_in_any_order(spec: str, packets: list[list[int]]) -> None:
    sender, receiver = Sender(load_method(spec)), Receiver(load_method(spec))
    for indexes in packets:
        assert receiver.packet(indexes, sender.packet(indexes)) == expected(indexes)


@pytest.mark.parametrize("spec", SPECS)
def test_cleanup_twice(spec: str) -> None:
    sender, receiver = Sender(load_method(spec)), Receiver(load_method(spec))
    for _ in range(2):
        sender.method.send_cleanup(sender.params)
        receiver.method.recv_cleanup(receiver.params)
    assert sender.params.state is None
    assert receiver.params.state is None


# -- QEMU's bytes ----------------------------------------------------------------------------------


def test_none_is_the_pages_themselves() -> None:
    sender = Sender(load_method("none"))
    assert sender.packet([5, 6, 7, 2]) == expected([5, 6, 7, 2])
    assert [len(b) for b in sender.params.iov] == [3 * PAGE, PAGE]
    assert all(b.obj is sender.memory.view.obj for b in sender.params.iov if isinstance(b, memoryview))


@pytest.mark.parametrize(
    ("spec", "header"), [("zlib:engine=zlib,level=1", b"\x78\x01"), ("zlib:engine=isal,level=1", b"\x78\x5e")]
)
def test_zlib_header_once(spec: str, header: bytes) -> None:
    """Window 15 both; ISA-L says "fast" in the two bits about the level, which no decoder reads (RFC 1950, 2.2)."""
    sender = Sender(load_method(spec))
    first, second = sender.packet([0, 1]), sender.packet([0, 1])
    assert first[:2] == header
    assert second[:2] != header


@pytest.mark.parametrize("spec", ZLIB)
def test_zlib_is_one_stream_without_end(spec: str) -> None:
    sender, plain = Sender(load_method(spec)), zlib.decompressobj()
    for indexes in PACKETS:
        payload = sender.packet(indexes)
        assert payload.endswith(b"\x00\x00\xff\xff")
        assert plain.decompress(payload) == expected(indexes)
        assert not plain.eof


@pytest.mark.parametrize("spec", ZSTD)
def test_zstd_is_one_frame_without_end(spec: str) -> None:
    sender, plain = Sender(load_method(spec)), zstandard.ZstdDecompressor().decompressobj()
    for i, indexes in enumerate(PACKETS):
        payload = sender.packet(indexes)
        assert payload.startswith(b"\x28\xb5\x2f\xfd") == (i == 0)
        if not i:
            parameters = zstandard.get_frame_parameters(payload)
            assert parameters.content_size == zstandard.CONTENTSIZE_UNKNOWN
            assert not parameters.has_checksum
        assert plain.decompress(payload) == expected(indexes)
        assert not plain.eof


@pytest.mark.parametrize("spec", [*ZLIB, *ZSTD])
def test_noise_stays_below_qemus_limit(spec: str) -> None:
    noise = random.Random(1).randbytes(128 * PAGE)
    assert 128 * PAGE < len(Sender(load_method(spec), noise).packet(range(128))) < 1 << 20


@pytest.mark.parametrize("spec", ZSTD)
@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("content_size", [False, True])
def test_zstd_takes_complete_frames(spec: str, checksum: bool, content_size: bool) -> None:
    """As QEMU does: one frame for the packet, or one for each page."""
    codec = zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=content_size)
    receiver = Receiver(load_method(spec))
    for indexes in PACKETS:
        assert receiver.packet(indexes, codec.compress(expected(indexes))) == expected(indexes)
        pages = b"".join(codec.compress(expected([i])) for i in indexes)
        assert receiver.packet(indexes, pages) == expected(indexes)


@pytest.mark.parametrize("spec", ZLIB)
def test_zlib_takes_no_end_of_stream(spec: str) -> None:
    with pytest.raises(CodecError, match="end of the stream"):
        Receiver(load_method(spec)).packet([0], zlib.compress(expected([0])))


def test_wire_codes() -> None:
    assert [load_method(n).wire_code for n in ("none", "zlib", "zstd")] == [0, 2, 4]


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("pages", [3, 5])
def test_another_number_of_pages(spec: str, pages: int) -> None:
    payload = Sender(load_method(spec)).packet([1, 2, 3, 4])
    with pytest.raises(CodecError):
        Receiver(load_method(spec)).packet(range(1, pages + 1), payload)


@pytest.mark.parametrize("spec", SPECS)
def test_truncated_anywhere(spec: str) -> None:
    payload = Sender(load_method(spec)).packet([8, 9])
    cuts = {0, 1, 2, 3, 4, 5, len(payload) // 2, *range(0, len(payload) // 2, max(1, len(payload) // 100))}
    for cut in cuts:
        with pytest.raises(CodecError):
            Receiver(load_method(spec)).packet([8, 9], payload[:cut])


@settings(max_examples=60)
@given(st.sampled_from(CODECS), st.data())
def test_flipped_bit(spec: str, data: st.DataObject) -> None:
    payload = bytearray(Sender(load_method(spec)).packet([8, 9]))
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    payload[bit // 8] ^= 1 << bit % 8
    try:
        got = Receiver(load_method(spec)).packet([8, 9], bytes(payload))
    except CodecError:
        return
    assert len(got) == 2 * PAGE  # no checksum on QEMU's wire: other bytes, never another length


@settings(max_examples=60)
@given(st.sampled_from(CODECS), st.binary(max_size=300))
def test_garbage(spec: str, payload: bytes) -> None:
    with pytest.raises(CodecError):
        Receiver(load_method(spec)).packet([0, 1], payload)


@pytest.mark.parametrize("spec", CODECS)
def test_only_its_own_pages_are_written(spec: str) -> None:
    payload, receiver = Sender(load_method(spec)).packet(range(128)), Receiver(load_method(spec))
    with pytest.raises(CodecError):
        receiver.packet([40, 41, 90], payload)
    outside = [i for i in range(256) if i not in (40, 41, 90)]
    assert not any(b"".join(receiver.pages(outside)))


def zlib_bomb(nbytes: int) -> bytes:
    codec = zlib.compressobj(1)
    return b"".join(codec.compress(bytes(1 << 20)) for _ in range(nbytes >> 20)) + codec.flush(zlib.Z_SYNC_FLUSH)


@pytest.mark.parametrize("spec", CODECS)
def test_bomb_is_refused_while_it_decodes(spec: str) -> None:
    nbytes = 64 << 20
    payload = zlib_bomb(nbytes) if "zlib" in spec else zstandard.ZstdCompressor(level=3).compress(bytes(nbytes))
    assert len(payload) < 1 << 20
    receiver = Receiver(load_method(spec))
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            receiver.packet(range(128), payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("spec", ZSTD)
def test_zstd_window_has_a_limit(spec: str) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=0)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    payload = frame.compress(expected([0])) + frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    with pytest.raises(CodecError):
        Receiver(load_method(spec)).packet([0], payload)


@pytest.mark.parametrize("engine", ["libzstd", "zstandard"])
@pytest.mark.parametrize("level", [19, 22])
def test_zstd_highest_levels_fit_the_window(engine: str, level: int) -> None:
    payload = Sender(load_method(f"zstd:engine={engine},level={level}")).packet([0, 1, 2])
    assert zstandard.get_frame_parameters(payload).window_size <= 32 << 20
    assert Receiver(load_method("zstd")).packet([0, 1, 2], payload) == expected([0, 1, 2])


@pytest.mark.parametrize("spec", ZSTD)
def test_error_survives_collection(spec: str) -> None:
    """An exception must not carry a library's view of the packet away: CPython 3.11 crashes on freeing both."""
    code = f"""
import gc
from multifd.errors import CodecError
from multifd.registry import load_method
from one_channel import Receiver
for threshold in range(1, 100):  # whether it crashes depends on the moment of the collection
    gc.set_threshold(threshold)
    kept = []
    try:
        Receiver(load_method({spec!r})).packet([0, 1], bytes.fromhex("28b52ffd") + bytes(20))
    except CodecError as e:
        kept += [e, kept]
    assert kept
    del kept
gc.collect()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# -- memory that is written meanwhile ---------------------------------------------------------------


@pytest.mark.parametrize("spec", CODECS)
def test_a_guest_that_writes_after_the_call_spoils_nothing(spec: str) -> None:
    """A codec may look back into what it was given only in a copy of its own."""
    memory, rng = bytearray(IMAGE), random.Random(3)
    sender, receiver = Sender(load_method(spec), memory), Receiver(load_method(spec))
    for _ in range(6):
        indexes = rng.sample(range(256), 40)
        now = b"".join(sender.pages(indexes))
        payload = sender.packet(indexes)
        memory[:] = bytes(reversed(memory))  # every page, also those sent before
        assert receiver.packet(indexes, payload) == now


# -- options and engines ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", ["zlib:level=10", "zlib:level=-1", "zlib:level=x", "zlib:engine=qat", "zstd:level=23", "zstd:level=-8",
             "none:level=1", "zstd:window=3"],
)  # fmt: skip
def test_bad_options(spec: str) -> None:
    with pytest.raises(OptionError) as caught:
        load_method(spec)
    assert caught.value.method == spec.partition(":")[0]


def test_isal_has_three_levels() -> None:
    with pytest.raises(MethodUnavailable, match="levels 1 to 3"):
        load_method("zlib:engine=isal,level=6")


@pytest.mark.parametrize(
    ("spec", "engine"),
    [("zlib:level=1", "isal"), ("zlib:level=6", "zlib"), ("zlib:level=1,engine=zlib", "zlib"), ("zstd", "libzstd"),
     ("zstd:engine=zstandard", "zstandard")],
)  # fmt: skip
def test_engine(spec: str, engine: str) -> None:
    method = load_method(spec)
    assert method.availability(method.options).engine == engine


def test_zstd_without_libzstd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release of zstandard: the public way, and it says why."""
    _libzstd.unavailable_reason.cache_clear()
    monkeypatch.setattr(zstandard, "__version__", "0.99.0")
    try:
        method = load_method("zstd")
        available = method.availability(method.options)
        assert available.engine == "zstandard"
        assert "0.99.0" in available.reason
        with pytest.raises(MethodUnavailable, match=r"0\.99\.0"):
            load_method("zstd:engine=libzstd")
        assert Receiver(method).packet([1], Sender(method).packet([1])) == expected([1])
    finally:
        monkeypatch.undo()
        _libzstd.unavailable_reason.cache_clear()
