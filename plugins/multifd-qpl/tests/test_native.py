"""Native hooks beside those in Python: the same bytes, the same refusals, the same figures, in any mixture."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import child
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multifd_qpl import _batch
from multifd_qpl.method import QplMethod, QplOptions
from multifd_qpl.simulator import Fault, Faults, SimulatedIaa
from native_calls import DECLINED, NativeEnds
from qpl_ends import PAGE_SIZES, make_pages

from multifd.errors import CodecError, MethodError
from multifd.method import MethodUnavailable


@pytest.fixture(params=["isal", "libqpl", "iaa"])
def method(request: pytest.FixtureRequest) -> Iterator[QplMethod]:
    """The method on each engine with native hooks; the device is simulated."""
    if request.param == "iaa":
        with SimulatedIaa() as iaa:
            yield QplMethod(QplOptions(), library=iaa.library)
        return
    if request.param == "libqpl":
        request.getfixturevalue("libqpl")
    yield QplMethod(QplOptions(software=request.param, hardware="off"))


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_same_bytes_and_figures(method: QplMethod, page_size: int) -> None:
    with NativeEnds(method, page_size) as native, NativeEnds(method, page_size) as python:
        count = native.geometry.page_count
        source, target = make_pages(page_size, count), bytearray(page_size * count)
        payload = native.native_send(source)
        assert payload == python.send(source)
        assert native.native_receive(payload, target) == 0
        assert target == source
        python.receive(payload, bytearray(len(source)))
        assert native.sender.counters == python.sender.counters
        assert native.receiver.counters == python.receiver.counters
        assert native.sender.counters["raw"] > 0


def test_any_mixture(method: QplMethod) -> None:
    """Offsets in any order, either hook at either end, on one channel."""
    source, target = make_pages(4096, 40), bytearray(4096 * 40)
    packets = [[0, 1, 2, 7, 9, 3], [20, 21, 22, 23], [39], [30, 33, 31], list(range(40)), [5]]
    with NativeEnds(method) as ends:
        for k, indexes in enumerate(packets * 2):
            places = [4096 * i for i in indexes]
            payload = ends.native_send(source, places) if k % 2 else ends.send(source, places)
            assert isinstance(payload, bytes)
            if k % 3:
                assert ends.native_receive(payload, target, places) == 0
            else:
                ends.receive(payload, target, places)
            assert all(target[at : at + 4096] == source[at : at + 4096] for at in places)
        done = sum(ends.sender.counters[name] for name in ("completed", "software", "raw"))
        assert done == 2 * sum(map(len, packets))


REFUSED = {
    "nothing": b"",
    "a table and no page": struct.pack(">2I", 4096, 4096),
    "more than a page": struct.pack(">2I", 4097, 1) + bytes(4098),
    "lengths that overflow": struct.pack(">2I", 2**32 - 1, 1) + bytes(8),
    "a byte less": struct.pack(">2I", 4096, 4096) + bytes(8191),
    "a byte more": struct.pack(">2I", 4096, 4096) + bytes(8193),
    "an empty stream": struct.pack(">2I", 4096, 0) + bytes(4096),
    "no stream": struct.pack(">2I", 4096, 3) + bytes(4096) + b"\x07\x00\x00",
    "half a table": struct.pack(">I", 4096)[:3],
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_pythons(method: QplMethod, case: str) -> None:
    """The native hook declines, as if it had not been called; the one in Python says what is wrong."""
    with NativeEnds(method) as ends:
        before = dict(ends.receiver.counters)
        assert ends.native_receive(REFUSED[case], bytearray(8192)) == DECLINED
        with pytest.raises(CodecError):
            ends.receive(REFUSED[case], bytearray(8192))
        assert {**ends.receiver.counters, **before} == ends.receiver.counters
        source, target = make_pages(4096, 8), bytearray(4096 * 8)
        assert ends.native_receive(ends.send(source), target) == 0
        assert target == source


def test_what_is_forgiven(method: QplMethod) -> None:
    """A page whose stream has no end mark, or bytes behind it, is right, or is left to Python, where it is."""
    page = bytes(make_pages(4096, 1))
    deflater = zlib.compressobj(1, zlib.DEFLATED, -12)
    stream = deflater.compress(page) + deflater.flush()
    unfinished = zlib.compressobj(1, zlib.DEFLATED, -12)
    without_end = unfinished.compress(page) + unfinished.flush(zlib.Z_SYNC_FLUSH)
    with NativeEnds(method) as ends:
        for part in (without_end, stream + bytes(20)):
            payload, target = struct.pack(">I", len(part)) + part, bytearray(4096)
            result = ends.native_receive(payload, target)
            assert result in (0, DECLINED)
            if result == DECLINED:
                ends.receive(payload, target)
            assert target == page


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_judged_alike(method: QplMethod, data: st.DataObject) -> None:
    """What the native hook takes of a damaged payload, Python's takes with the same bytes; nothing beside the pages."""
    places = [4096 * i for i in range(1, 7)]
    native, python = bytearray(b"\xaa" * (4096 * 8)), bytearray(b"\xaa" * (4096 * 8))
    with NativeEnds(method) as ends:
        payload = bytearray(ends.send(make_pages(4096, 6, seed=data.draw(st.integers(0, 50)))))
        for _ in range(data.draw(st.integers(1, 4))):
            payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
        payload = payload[: data.draw(st.sampled_from([len(payload), len(payload) - 1, 20]))]
        result = ends.native_receive(bytes(payload), native, places)
        assert result in (0, DECLINED)
        if result == 0:
            ends.receive(bytes(payload), python, places)
            assert native == python
    assert native[:4096] == native[-4096:] == b"\xaa" * 4096


def test_counts_are_not_trusted(method: QplMethod) -> None:
    with NativeEnds(method) as ends:
        count = ends.geometry.page_count
        source = make_pages(4096, count + 1)
        assert ends.native_send(source) == DECLINED
        assert ends.native_send(bytearray()) == DECLINED
        room = 4 * (4096 + 4)
        assert ends.native_send(source[: 4 * 4096], capacity=room - 1) == DECLINED
        assert isinstance(ends.native_send(source[: 4 * 4096], capacity=room), bytes)
        payload = ends.native_send(source[: count * 4096])
        assert isinstance(payload, bytes)
        assert ends.native_receive(payload, bytearray()) == DECLINED
        assert ends.native_receive(payload, bytearray(len(source))) == DECLINED


def test_abort(method: QplMethod) -> None:
    source = make_pages(4096, 8)
    with NativeEnds(method) as ends:
        payload = ends.send(source)
        ends.abort[0] = 1
        results = [ends.native_send(source), ends.native_receive(payload, bytearray(len(source)))]
        for name, result in zip(("native_send", "native_recv"), results, strict=True):
            assert isinstance(result, int)
            assert result < DECLINED
            with pytest.raises(MethodError, match="torn down"):
                raise ends.hook(name).explain(result)


def test_page_by_page_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from multifd_qpl import method as module
    from multifd_qpl.abi import LibraryUnavailable

    def refuse() -> None:
        raise LibraryUnavailable("not today")

    monkeypatch.setattr(module, "load_isal", refuse)
    method = QplMethod(QplOptions(software="isal", hardware="off"))
    assert "not today" in QplMethod.availability(method.options).reason
    with NativeEnds(method) as ends:
        assert method.native_send(ends.sender) is None
        assert method.native_recv(ends.receiver) is None


def test_a_fork_is_declined() -> None:
    code = """
import os
from multifd_qpl.method import QplMethod, QplOptions
from native_calls import DECLINED, NativeEnds
from qpl_ends import make_pages
with NativeEnds(QplMethod(QplOptions(hardware="off", software="isal"))) as ends:
    source = make_pages(4096, 8)
    payload = ends.native_send(source)
    pid = os.fork()
    if not pid:
        results = ends.native_send(source), ends.native_receive(payload, bytearray(len(source)))
        os._exit(0 if results == (DECLINED, DECLINED) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert ends.native_send(source) == payload
"""
    child.run("import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" + code)


# A device in trouble.


PAGES = bytearray(make_pages(4096, 3) * 43)[: 128 * 4096]  # every page shrinks

TROUBLES = {
    "answers nothing": (Faults({10: Fault.SILENT}), 2),
    "failed 128 of": (Faults(always=Fault.SUBMIT_ERROR), 2),
    "took no page": (Faults(always=Fault.BUSY), 65),
}


def send_somehow(ends: NativeEnds) -> bytes:
    """As the engine: natively, and what is declined by the hook in Python."""
    result = ends.native_send(PAGES)
    if isinstance(result, bytes):
        return result
    assert result == DECLINED
    return ends.send(PAGES)


@pytest.mark.parametrize("word", TROUBLES)
def test_required_holds(word: str) -> None:
    """A packet later than in Python at the most."""
    faults, packets = TROUBLES[word]
    with SimulatedIaa(faults=faults) as iaa:
        method = QplMethod(QplOptions(hardware="required", retries=0, verify="off"), library=iaa.library)
        with NativeEnds(method) as ends, pytest.raises(MethodUnavailable, match=f"hardware=required.*{word}"):
            for _ in range(packets):
                send_somehow(ends)


@pytest.mark.parametrize("word", TROUBLES)
def test_trouble_counts_as_in_python(word: str, caplog: pytest.LogCaptureFixture) -> None:
    counters = []
    for is_native in (True, False):
        caplog.clear()
        with SimulatedIaa(faults=TROUBLES[word][0]) as iaa:
            method = QplMethod(QplOptions(retries=0, verify="off"), library=iaa.library)
            with NativeEnds(method) as ends:
                target = bytearray(len(PAGES))
                for _ in range(70):
                    payload = send_somehow(ends) if is_native else ends.send(PAGES)
                ends.receive(payload, target)
                assert target == PAGES
                counters.append(dict(ends.sender.counters))
        assert len([record for record in caplog.records if word in record.getMessage()]) == 1
    assert counters[0] == counters[1]


def test_goes_on_natively_after_trouble() -> None:
    """A packet in trouble is followed by one in Python; when that goes well, the native hook is back."""
    options = QplOptions(retries=0, verify="off")
    with (
        SimulatedIaa(faults=Faults({3: Fault.SUBMIT_ERROR})) as iaa,
        NativeEnds(QplMethod(options, library=iaa.library)) as ends,
    ):
        assert isinstance(ends.native_send(PAGES), bytes)
        assert ends.sender.counters["failed"] == 1
        assert ends.native_send(PAGES) == DECLINED
        ends.send(PAGES)
        assert isinstance(ends.native_send(PAGES), bytes)
        assert ends.sender.counters["failed"] == 1


def test_is_exported() -> None:
    assert _batch.lib.MQ_DECLINED == DECLINED
