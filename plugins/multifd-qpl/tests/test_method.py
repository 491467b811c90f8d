"""The method on its engines: wire, options, tables that lie, payloads that lie."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multifd_qpl import isal_library
from multifd_qpl import method as qpl_method
from multifd_qpl.method import QplMethod, QplOptions
from qpl_ends import PAGE_SIZES, Ends, make_pages, split

from multifd.errors import CodecError, OptionError
from multifd.method import MethodUnavailable
from multifd.registry import find, load_method


@pytest.fixture(params=["isal", "libqpl"])
def method(request: pytest.FixtureRequest) -> QplMethod:
    """The method on each engine that needs no device."""
    if request.param == "libqpl":
        request.getfixturevalue("libqpl")
    return QplMethod(QplOptions(software=request.param, hardware="off"))


def test_is_found_by_name() -> None:
    assert find("qpl") is QplMethod
    assert QplMethod.wire_code == 0x08


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_round_trip_and_wire(method: QplMethod, page_size: int) -> None:
    """Every page is raw, or raw deflate with a 4 KiB window that ends properly."""
    with Ends(method, page_size) as ends:
        count = ends.geometry.page_count
        source, target = make_pages(page_size, count), bytearray(page_size * count)
        payload = ends.send(source)
        kinds = set()
        for i, part in enumerate(split(payload, count)):
            page = bytes(source[i * page_size : (i + 1) * page_size])
            kinds.add(len(part) == page_size)
            if len(part) == page_size:
                assert part == page
            else:
                inflater = zlib.decompressobj(-12)
                assert inflater.decompress(part) == page
                assert inflater.eof
                assert not inflater.unused_data
        assert kinds == {True, False}
        ends.receive(payload, target)
        assert target == source
        for counters in (ends.sender.counters, ends.receiver.counters):
            assert counters["software"] + counters["raw"] == count
            assert counters["raw"] > 0


def test_scattered_pages(method: QplMethod) -> None:
    """Offsets in any order, runs and single pages, several packets on one channel."""
    source, target = make_pages(4096, 40), bytearray(4096 * 40)
    with Ends(method) as ends:
        for offsets in ([0, 1, 2, 7, 9, 3], [20, 21, 22, 23], [39], [30, 33, 31]):
            places = [4096 * i for i in offsets]
            ends.receive(ends.send(source, places), target, places)
            for place in places:
                assert target[place : place + 4096] == source[place : place + 4096]


def test_raw_pages_are_the_guests_own() -> None:
    """A page that does not shrink is not copied."""
    noise = bytearray(os.urandom(4096 * 4))
    with Ends(QplMethod(QplOptions(software="isal", hardware="off"))) as ends:
        ends.send(noise)
        noise[0] ^= 0xFF
        assert bytes(ends.sender.iov[1][:1]) == bytes(noise[:1])


@pytest.mark.parametrize(
    ("payload", "word"),
    [
        (b"", "length table"),
        (struct.pack(">2I", 4096, 4096), "length table"),
        (struct.pack(">2I", 4097, 1) + bytes(4098), "at most 4096"),
        (struct.pack(">2I", 2**32 - 1, 1) + bytes(8), "at most 4096"),
        (struct.pack(">2I", 4096, 4096) + bytes(8191), "add up"),
        (struct.pack(">2I", 4096, 4096) + bytes(8193), "add up"),
        (struct.pack(">2I", 4096, 0) + bytes(4096), "page 1"),
        (struct.pack(">2I", 4096, 3) + bytes(4096) + b"\x07\x00\x00", "page 1"),
    ],
)
def test_refuses_payload(method: QplMethod, payload: bytes, word: str) -> None:
    with Ends(method) as ends, pytest.raises(CodecError, match=word):
        ends.receive(payload, bytearray(8192))


def test_refuses_a_bomb(method: QplMethod) -> None:
    """A stream of more than a page is refused; memory behind the page stays."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -12)
    stream = deflater.compress(bytes(3_000_000)) + deflater.flush()
    assert len(stream) < 4096
    memory = bytearray(b"\xaa" * 8192)
    with Ends(method) as ends, pytest.raises(CodecError):
        ends.receive(struct.pack(">I", len(stream)) + stream, memory, [0])
    assert memory[4096:] == b"\xaa" * 4096


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_never_escapes(method: QplMethod, data: st.DataObject) -> None:
    """A damaged payload is an error, or bytes of some content within its pages."""
    source = make_pages(4096, 6, seed=data.draw(st.integers(0, 50)))
    memory = bytearray(b"\xaa" * (4096 * 8))
    places = [4096 * i for i in range(1, 7)]
    with Ends(method) as ends:
        payload = bytearray(ends.send(source))
        for _ in range(data.draw(st.integers(1, 4))):
            payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
        with contextlib.suppress(CodecError):
            ends.receive(bytes(payload), memory, places)
    assert memory[:4096] == memory[-4096:] == b"\xaa" * 4096


def test_options() -> None:
    with pytest.raises(OptionError, match="one level only"):
        load_method("qpl:level=1")
    with pytest.raises(OptionError, match="fallback, wait"):
        load_method("qpl:busy=never")
    for retries in (-1, 1001):
        with pytest.raises(OptionError, match="from 0 to 1000"):
            load_method(f"qpl:retries={retries}")
    options = QplOptions.parse({"busy": "wait", "retries": "0", "software": "isal", "hardware": "off"})
    assert (options.busy, options.retries) == ("wait", 0)


def test_says_why_not_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIFD_QPL_LIBRARY", "/nowhere/libqpl.so.1")
    available = QplMethod.availability(QplOptions())
    assert available.ok
    assert available.engine == "isal"
    assert "libqpl not found" in available.reason
    assert "/nowhere/libqpl.so.1" in available.reason
    for options in (QplOptions(software="libqpl"), QplOptions(hardware="required")):
        available = QplMethod.availability(options)
        assert not available.ok
        assert "/nowhere/libqpl.so.1" in available.reason
        with pytest.raises(MethodUnavailable, match="nowhere"), Ends(QplMethod(options)):
            pass


@pytest.mark.parametrize(
    ("status", "word"), [(500, "kernel"), (501, "libaccel-config"), (502, "context"), (503, "work queue"), (999, "999")]
)
def test_hardware_statuses_in_words(standin_library: object, status: int, word: str) -> None:
    standin_library.standin_set_hardware(status)  # type: ignore[attr-defined]
    for software in ("isal", "libqpl"):
        available = QplMethod.availability(QplOptions(software=software))
        assert available.engine == software
        assert word in available.reason
    required = QplMethod.availability(QplOptions(hardware="required"))
    assert not required.ok
    assert word in required.reason


def test_engines_by_option(standin_library: object) -> None:
    """ISA-L is the better engine without a device."""
    for software, engine in (("isal", "isal"), ("libqpl", "libqpl"), ("auto", "isal")):
        for hardware in ("auto", "off"):
            assert QplMethod.availability(QplOptions(software=software, hardware=hardware)).engine == engine
    standin_library.standin_set_hardware(0)  # type: ignore[attr-defined]
    for software in ("isal", "libqpl", "auto"):
        assert QplMethod.availability(QplOptions(software=software)).engine == "iaa"
    assert QplMethod.availability(QplOptions(hardware="off")).engine == "isal"


def test_libqpl_if_there_is_no_isal(standin_library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal.igzip_lib", None)
    monkeypatch.setattr(qpl_method, "load_isal", isal_library._open_and_test)
    monkeypatch.setattr(isal_library, "SONAME", "libisal-is-not-here.so.2")
    available = QplMethod.availability(QplOptions())
    assert available.engine == "libqpl"
    assert "ISA-L cannot be imported" in available.reason
    assert not QplMethod.availability(QplOptions(software="isal")).ok


def test_works_without_the_extension() -> None:
    """As after an installation without a compiler: ISA-L, and the reason says so."""
    code = (
        "import sys; sys.modules['multifd_qpl._batch'] = None\n"
        "from multifd_qpl.method import QplMethod, QplOptions\n"
        "available = QplMethod.availability(QplOptions())\n"
        "assert available.engine == 'isal', available\n"
        "assert 'extension multifd_qpl._batch' in available.reason, available\n"
        "method = QplMethod()\n"
        "from multifd.method import SendParams, Geometry, Memory, Pages\n"
        "import numpy as np\n"
        "memory = Memory(bytearray(8192), 4096)\n"
        "p = SendParams(0, Geometry.of(4096), bytearray(1), Pages(memory, np.array([0, 4096]), memory))\n"
        "method.send_setup(p); method.send_prepare(p); method.send_cleanup(p)\n"
        "assert p.iov\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
